"""A made-up study with known figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml

from tailorlib import FamilyLayout, LayerPlan, LayerSource, Measurement, Tailoring, Trial
from tailorlib.journal import Journal
from tailorlib.journal_header import JournalHeader


def merge(layer: int, operation: str = "TaskArithmetic", **params: float) -> LayerPlan:
    sources = (LayerSource("code", layer), LayerSource("math", layer))
    return LayerPlan(sources, operation, tuple(params.items()), LayerSource("base", layer))


def take(model: str, layer: int) -> LayerPlan:
    return LayerPlan((LayerSource(model, layer),))


TAILORING = Tailoring((take("base", 0), merge(1, scale=0.35), take("math", 3), merge(4, scale=1.0)))


@pytest.fixture
def layout() -> FamilyLayout:
    return FamilyLayout(("code", "math"), 6, ("full_attention",) * 6)


@pytest.fixture
def tailoring() -> Tailoring:
    """Of six layers 2 and 5 are removed, 1 and 4 merged."""
    return TAILORING


@pytest.fixture
def mixed_merges() -> Tailoring:
    """Two operations, one of them with two hyperparameters."""
    return Tailoring((merge(0, scale=0.35), merge(2, "DARETIES", scale=1.0, density=0.123), take("base", 5)))


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    return _trial


@pytest.fixture
def trials() -> tuple[Trial, ...]:
    """One warm start, four by the optimizer; one failed, and number 3 is the best."""
    return (
        _trial(0, 0.3, "BlockInfluence", 9.0),
        _trial(1, 0.2, seconds=2.0),
        _trial(2, None),
        _trial(3, 0.5, seconds=4.0),
        _trial(4, 0.4, seconds=3.0),
    )


def _trial(number: int, fitness: float | None, origin: str = "optimizer", seconds: float = 1.0) -> Trial:
    """A trial of a tailoring that no other trial has; TAILORING if its fitness is 0.5."""
    tailoring = TAILORING if fitness == 0.5 else Tailoring(TAILORING.layers, seed=number + 1)
    reason = "loss is NaN" if fitness is None else None
    state = "failed" if fitness is None else "complete"
    return Trial(number, {}, tailoring, state, fitness, seconds=seconds, origin=origin, reason=reason)


RECIPE = """\
family: {class_path: ModelFamily, init_args: {base: the/base, candidates: {code: the/code, math: the/math}}}
search_space: {class_path: PruningSpace}
optimizer: {class_path: Nevergrad, init_args: {optimizer: DiscreteOnePlusOne}}
fitness: {class_path: Perplexity}
study: {directory: runs/x, trials: 5, seed: 3}
"""


@pytest.fixture
def make_run(tmp_path: Path, layout: FamilyLayout) -> Callable[..., Path]:
    """Write a run folder, as a search does."""

    def write(
        name: str,
        trials: Iterable[Trial],
        *,
        recipe: str | None = RECIPE,
        dense: float | None = 0.8,
        layout: FamilyLayout | None = layout,
    ) -> Path:
        sizes = None if layout is None else (10,) * layout.num_layers
        identity = yaml.safe_load(recipe or RECIPE)
        header = JournalHeader(identity, {"torch": "2.12"}, layout, 100 if sizes else None, sizes)
        journal = Journal.create(tmp_path / name, header, {} if recipe is None else {"recipe.yaml": recipe})
        if dense is not None:
            journal.set_dense(Measurement(dense, {"perplexity": 1 / dense}))
        for trial in trials:
            journal.append(trial)
        journal.close()
        return tmp_path / name

    return write
