"""The surrogate benchmark: it finds a fitness that is a sum over layers; the shipped ones know what matters."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from surrogate import Surrogate, features, fitted

from tailorlib import LayerPlan, LayerSource, Tailoring

LAYERS, REMOVED, CANDIDATES = 10, 3, ("a", "b")
SHIPPED = sorted((Path(__file__).parent / "surrogates").glob("*.json"))


def drawn(rng: np.random.Generator, removed: int = REMOVED) -> Tailoring:
    kept = sorted(int(i) for i in rng.permutation(LAYERS)[removed:])
    return Tailoring(tuple(LayerPlan((LayerSource(str(rng.choice(["base", "a", "b"])), i),)) for i in kept))


def test_a_sum_over_layers_is_found_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=len(features(drawn(rng), CANDIDATES, LAYERS)))
    tailorings = [Tailoring.whole("base", LAYERS), *(drawn(rng) for _ in range(600))]
    tailorings += [drawn(rng, 2) for _ in range(100)]  # of another size: left out
    rows = [
        {"tailoring": t.to_dict(), "score": float(features(t, CANDIDATES, LAYERS) @ weights)} for t in tailorings
    ]
    path = tmp_path / "scores.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ({}, *rows)).encode()))
    found = fitted(path, None)
    assert (found.layers, found.removed, found.candidates) == (LAYERS, REMOVED, CANDIDATES)
    assert (found.fitted, found.held_out) == (480, 120)
    assert found.rank_correlation > 0.98
    written = tmp_path / "surrogate.json"
    written.write_text(json.dumps(vars(found)))
    assert Surrogate.read(written) == found


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_surrogate_knows_that_the_first_layer_matters(path: Path) -> None:
    """Without its first layer a model is broken; without one more from the middle it is only worse."""
    surrogate = Surrogate.read(path)
    assert surrogate.rank_correlation > 0.85

    def without(gone: set[int]) -> float:
        kept = (i for i in range(surrogate.layers) if i not in gone)
        return surrogate.score(Tailoring(tuple(LayerPlan((LayerSource("base", i),)) for i in kept)))

    apart = set(range(3, 3 + 2 * surrogate.removed, 2))  # no two in a row, which is an effect of its own
    assert without(apart - {3} | {0}) < without(apart)
