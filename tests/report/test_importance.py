"""The model of importance against closed forms and simulated studies."""

from __future__ import annotations

import numpy as np
import pytest

from tailorlib import FamilyLayout, LayerPlan, LayerSource, Tailoring, Trial
from tailorlib.report import importance as module
from tailorlib.report.importance import Decision, comparable, cross_validated, fit, importance
from tailorlib.report.names import decision_text, ranges

LAYOUT = FamilyLayout(("code", "math"), 8, ("full_attention",) * 8)


def study(number: int, seed: int, fewest: int = 1) -> list[Trial]:
    """Layer 2 is worth 0.3, math's layer 5 is 0.2 better than the base's, and nothing else matters.

    Two layers are removed at most, and ``fewest`` at least.
    """
    rng = np.random.default_rng(seed)
    trials = []
    for i in range(number):
        removed = set(rng.choice(8, size=rng.integers(fewest, 3), replace=False).tolist())
        models = rng.choice(["base", "code", "math"], size=8)
        plans = [LayerPlan((LayerSource(str(models[k]), k),)) for k in range(8) if k not in removed]
        fitness = 1.0 - 0.3 * (2 in removed) + 0.2 * (5 not in removed and models[5] == "math")
        tailoring = Tailoring(tuple(plans), seed=i)
        trials.append(Trial(i, {}, tailoring, "complete", fitness + 0.01 * float(rng.standard_normal())))
    return trials


def test_planted_effects_are_found_with_their_sizes_and_little_else() -> None:
    found = importance(study(150, seed=1), LAYOUT)
    assert found.layers is not None
    first, second, *others = found.layers.effects
    assert first.decisions == (Decision("removed", 2),)
    assert second.decisions == (Decision("source", 5, "math"),)
    assert first.low < -0.3 < first.high and first.high - first.low < 0.03
    assert second.mean == pytest.approx(0.2, abs=0.01)
    assert max(abs(e.mean) for e in others) < 0.02
    assert sum(e.is_clear for e in others) <= 5  # of 22, at 10 % error
    assert found.layers.r2 > 0.98
    assert found.trials == 150


def test_where_all_remove_as_many_layers_effects_are_held_against_the_mean_layer() -> None:
    found = importance(study(150, seed=1, fewest=2), LAYOUT)
    assert found.layers is not None and found.layers.r2 > 0.98
    top = found.layers.effects[0]
    assert top.mean == pytest.approx(-0.3 * 7 / 8, abs=0.01)  # removing it means keeping one of seven others
    assert top.low < -0.3 < top.high


def test_noise_explains_nothing_that_was_not_seen() -> None:
    rng = np.random.default_rng(5)
    columns = (rng.random((40, 30)) < 0.5).astype(float)
    assert cross_validated(columns, rng.standard_normal(40), 20) < 0.1


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    hits = []
    for _ in range(120):
        columns = (rng.random((25, 12)) < 0.4).astype(float)
        effects = rng.standard_normal(12) * rng.choice([0.2, 0.5, 1.0])
        mean, deviation = fit(columns, columns @ effects + rng.standard_normal(25))
        hits += (abs(mean - effects) < 1.645 * deviation).tolist()
    assert 0.86 < np.mean(hits) < 0.95


@pytest.mark.parametrize("shape", [(30, 6), (8, 20)])
def test_the_posterior_is_that_of_the_normal_equations(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    columns, y = rng.standard_normal(shape), rng.standard_normal(shape[0])
    monkeypatch.setattr(module, "SIGNALS", np.array([0.7]))
    x, c = columns - columns.mean(axis=0), y - y.mean()
    scale = 0.7 * len(y) / (x**2).sum()
    inverse = np.linalg.inv(x.T @ x + np.eye(shape[1]) / scale)
    spread = np.eye(len(y)) + scale * x @ x.T
    noise = c @ np.linalg.solve(spread, c) / (len(y) - 3)
    mean, deviation = fit(columns, y)
    np.testing.assert_allclose(mean, inverse @ x.T @ c, atol=1e-10)
    np.testing.assert_allclose(deviation, np.sqrt(noise * np.diag(inverse)), rtol=1e-8)


def test_too_few_candidates_give_no_effects_but_a_reason() -> None:
    found = importance(study(9, seed=0), LAYOUT)
    assert (found.layers, found.trials) == (None, 9)
    assert found.left_out is not None and "from 10 on" in found.left_out
    assert importance([], LAYOUT).layers is None


def test_what_is_always_done_together_is_one_effect() -> None:
    trials = []
    for i, trial in enumerate(study(30, seed=3)):
        keep = [p for p in trial.tailoring.layers if p.sources[0].layer not in (0, 1)]
        both = [LayerPlan((LayerSource("base", k),)) for k in (0, 1)] if i % 2 else []
        trials.append(Trial(i, {}, Tailoring((*both, *keep), seed=i), "complete", float(i % 2)))
    found = importance(trials, LAYOUT)
    assert found.layers is not None
    top = found.layers.effects[0]
    assert top.decisions == (Decision("removed", 0), Decision("removed", 1))
    assert top.trials == 15 and top.high < 0
    assert decision_text(top.decisions) == "layers 0, 1 removed"


def test_candidates_count_once_and_only_with_as_many_samples() -> None:
    trials = study(30, seed=4)
    again = [Trial(30 + i, {}, t.tailoring, "complete", 0.0) for i, t in enumerate(trials[:5])]
    coarse = [
        Trial(40 + i, {}, Tailoring(t.tailoring.layers, seed=99), "complete", 9.0, fidelity=0.5)
        for i, t in enumerate(trials)
    ]
    chosen, fidelity = comparable([*trials, *again, *coarse])
    assert [t.number for t in chosen] == list(range(30))
    assert fidelity == 1.0
    chosen, fidelity = comparable([*trials[:3], *coarse])
    assert fidelity == 0.5 and len(chosen) >= 10


def test_numbers_are_told_as_ranges() -> None:
    assert ranges([5, 3, 4, 0, 8, 9]) == "0, 3–5, 8, 9"
    decisions = (
        Decision("removed", 3),
        Decision("source", 1, "code"),
        Decision("removed", 4),
        Decision("removed", 5),
    )
    assert decision_text(decisions) == "layers 3–5 removed; layer 1 from code"
    assert decision_text(decisions, longest=5) == "3 layers removed; 1 layers from code"
