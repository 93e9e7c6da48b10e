"""The Bayesian linear model against closed forms, and the search that uses it against random search."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import RandomSearch, StructuredBayes
from tailorlib_strategies.optimizers.structured_bayes import Features, _evidence
from tailorlib_strategies.optimizers.variation import Variation
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout, Optimizer
from tailorlib.distributions import Float
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import numpy_generator
from tailorlib.testing.contracts import check_optimizer
from tailorlib.trial import Trial

LAYERS, REMOVED = 12, 4


def make_space(layers: int = LAYERS) -> PruningSpace:
    space = PruningSpace(LayerRemoval(count=REMOVED), merges=[TaskArithmetic(scale=(0.1, 1.0))])
    space.setup(FamilyLayout(("a", "b"), layers, ("full_attention",) * layers))
    return space


def test_it_keeps_the_contract() -> None:
    check_optimizer(lambda: StructuredBayes(starts=4, tries=8), make_space(), trials=10)


def test_features_tell_members_neighbours_choices_and_places() -> None:
    space = make_space()
    features = Features(space)
    params = space.active({**space.complete({}), "removed": (1, 2, 5, 9), "layer.0.a": 1, "layer.0.b": 1})
    found = features(params)
    assert list(np.flatnonzero(found[:LAYERS])) == [1, 2, 5, 9]
    assert list(np.flatnonzero(found[LAYERS : 2 * LAYERS - 1])) == [1]  # layers 1 and 2 are neighbours
    changed = {**params, "layer.0.b": 0}
    assert not np.array_equal(found, features(space.active(changed)))
    inactive = {**params, "layer.1.a": 1}  # of a removed layer
    assert np.array_equal(found, features(space.active(inactive)))


def test_draws_have_the_posterior_of_bayesian_linear_regression() -> None:
    """Bishop, Pattern Recognition and Machine Learning, equations 3.50 to 3.51, with a constant feature."""
    space = make_space()
    optimizer = StructuredBayes(starts=2)
    optimizer.setup(space, 0)
    rng = numpy_generator("posterior")
    for number in range(30):
        params = space.sample(rng)
        loss = float(sum(params["removed"]) + rng.standard_normal())  # type: ignore[arg-type]
        optimizer.tell(Trial(number, params, space.decode(params), "complete", -loss))
    optimizer._draw(range(30))  # fits the prior
    draws = np.stack([optimizer._draw(range(30)) for _ in range(4000)])
    rows = np.stack(optimizer._rows)
    losses = np.array(optimizer._losses)
    clipped = np.minimum(losses, losses.min() + 4 * (np.median(losses) - losses.min()))
    targets = (clipped - clipped.mean()) / clipped.std()
    design = np.hstack([rows, np.ones((30, 1))])
    prior = np.append(optimizer._prior.groups[optimizer._features.groups], 1.0)
    precision = np.diag(1 / prior) + design.T @ design / optimizer._prior.noise
    covariance = np.linalg.inv(precision)
    mean = (covariance @ design.T @ targets / optimizer._prior.noise)[:-1]
    spread = np.sqrt(np.diag(covariance))[:-1]
    assert np.abs((draws.mean(axis=0) - mean) / spread).max() < 5 / np.sqrt(len(draws)) * 1.2
    assert draws.std(axis=0) == pytest.approx(spread, rel=0.08)


def test_the_evidence_is_that_of_a_gaussian() -> None:
    rng = numpy_generator("evidence")
    rows = rng.standard_normal((6, 4, 3))
    kernels, targets = np.stack([r.T @ r for r in rows[:4]]), rng.standard_normal(3)
    logs = rng.standard_normal(5)
    covariance = sum(np.exp(logs[g]) * kernels[g] for g in range(4)) + 1 + np.exp(logs[4]) * np.eye(3)
    expected = -0.5 * targets @ np.linalg.inv(covariance) @ targets - 0.5 * np.log(np.linalg.det(covariance))
    assert _evidence(kernels, targets, logs) == pytest.approx(expected)


def test_steps_stay_in_the_space_and_are_of_every_kind() -> None:
    space, rng = make_space(), numpy_generator("steps")
    variation = Variation(space, swap=0.35, nudge=0.25)
    genome = variation.genome(space.sample(rng))
    kinds = {"subset": 0, "number": 0, "choice": 0}
    for _ in range(400):
        before = dict(space.active(genome))
        variation.step(genome, rng)
        after = space.active(genome)
        space.check(after)
        changed = [n for n in before if n in after and before[n] != after[n]]
        if "removed" in changed:
            kinds["subset"] += 1
        elif changed:
            kinds["number" if isinstance(variation.distributions[changed[0]], Float) else "choice"] += 1
    assert kinds["subset"] == pytest.approx(140, abs=40)
    assert min(kinds.values()) > 20


def test_a_layer_that_comes_back_takes_the_plan_of_the_nearest_one() -> None:
    space = make_space()
    variation = Variation(space, swap=1.0, nudge=0.0)
    sources = {name: 0 for name in space.distributions() if name.endswith((".a", ".b"))}
    own = {"layer.7.a": 1, "layer.7.b": 0}
    removed = {"removed": (5, 6, 8, 9)}
    genome = variation.genome(space.active({**space.complete({}), **sources, **own, **removed}))
    assert [genome[f"layer.{i}.a"] for i in (4, 5, 6, 7, 8, 9)] == [0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("fault", [{"starts": 0}, {"radius": 0}, {"swap": 1.5}, {"tries": 0}])
def test_settings_out_of_range_are_told(fault: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=f"StructuredBayes.{next(iter(fault))} is"):
        StructuredBayes(**fault)  # type: ignore[arg-type]


class Landscape:
    """A loss that adds up over layers, with a price for removed neighbours, and noise that a candidate keeps."""

    def __init__(self, seed: int) -> None:
        rng = numpy_generator("landscape", seed)
        self.seed, self.importance = seed, rng.exponential(size=LAYERS)
        self.sources = rng.normal(scale=0.15, size=(LAYERS, 2))

    def loss(self, space: PruningSpace, params: dict[str, object]) -> float:
        tailoring = space.decode(params)  # type: ignore[arg-type]
        kept = {plan.sources[0].layer: plan for plan in tailoring.layers}
        gone = sorted(set(range(LAYERS)) - set(kept))
        total = float(self.importance[gone].sum()) + 0.3 * sum(b == a + 1 for a, b in pairwise(gone))
        for layer, plan in kept.items():
            total += sum(self.sources[layer][("a", "b").index(s.model)] for s in plan.sources if s.model != "base")
        return total + 0.02 * float(numpy_generator("noise", self.seed, tailoring.digest).standard_normal())


def best_loss(optimizer: Optimizer, seed: int, trials: int) -> float:
    space, landscape = make_space(), Landscape(seed)
    optimizer.setup(space, seed)
    losses = []
    for number in range(trials):
        params = dict(optimizer.ask())
        losses.append(landscape.loss(space, params))
        optimizer.tell(Trial(number, params, space.decode(params), "complete", -losses[-1]))
    return min(losses)


def test_it_needs_a_quarter_of_random_searchs_trials_at_most() -> None:
    """With 50 trials it is better by far than random search with 200, on each of three landscapes."""
    for seed in range(3):
        ours = best_loss(StructuredBayes(tries=16), seed, 50)
        random = best_loss(RandomSearch(), seed, 200)
        assert ours < random - 0.3
