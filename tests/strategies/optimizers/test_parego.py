"""ParEGO: the scalarisation in closed form, and what the inner optimizer is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bayes_cases import FRONT_AREA, area, make_space, make_trial, search, two_objectives
from tailorlib_strategies.optimizers import Optuna, ParEGO, RandomSearch, StructuredBayes
from tailorlib_strategies.optimizers.parego import scalarised

from tailorlib import Optimizer, Params, Trial
from tailorlib.exceptions import RecipeError
from tailorlib.testing.contracts import check_optimizer

NAMES = ("cost", "share")


class Notes(Optimizer):
    """Proposes at random, and keeps what it was told since it was set up."""

    supports = frozenset({"conditional", "subset"})

    def _setup(self, space, seed):
        self.told: list[Trial] = []
        self.names = self.objectives

    def _ask(self) -> Params:
        return self.space.sample(self.rng)

    def _tell(self, trial: Trial) -> None:
        self.told.append(trial)


@pytest.mark.parametrize("inner", [StructuredBayes, Optuna])
def test_it_keeps_the_contract(inner: type[Optimizer]) -> None:
    check_optimizer(lambda: ParEGO(inner()), make_space(1), trials=8)


def test_scalarisation_is_that_of_knowles() -> None:
    """Losses 10 .. 20 and 1 .. 5 scale to 0 .. 1; w = (0.25, 0.75), rho = 0.1."""
    losses = [(10.0, 5.0), (20.0, 1.0), (15.0, 3.0), (math.inf, math.inf)]
    expected = [0.75 + 0.1 * 0.75, 0.25 + 0.1 * 0.25, 0.375 + 0.1 * 0.5, math.inf]
    assert scalarised(losses, [0.25, 0.75], 0.1) == pytest.approx(expected)
    assert scalarised([(3.0, 3.0)], [0.5, 0.5], 0.05) == [0.0]
    assert scalarised([(math.inf, math.inf)], [0.5, 0.5], 0.05) == [math.inf]


def test_the_inner_optimizer_is_told_everything_latest_and_pending_with_one_objective() -> None:
    space, inner = make_space(), Notes()
    optimizer = ParEGO(inner, rho=0.0)
    optimizer.setup(space, 0, NAMES)
    asked = [optimizer.ask() for _ in range(4)]
    assert inner.names == ("fitness",)
    for number, losses in enumerate([(1.0, 0.0), (0.0, 1.0), None]):
        optimizer.tell(make_trial(space, asked[number], number, losses))
    optimizer.tell(make_trial(space, asked[0], 3, (2.0, 0.0)))  # scored on more samples
    optimizer.ask()
    by_params = {frozenset(t.params.items()): t for t in inner.told}
    found = [by_params[frozenset(params.items())] for params in asked]
    assert len(inner.told) == 4
    assert not any(trial.objectives for trial in found)
    # the scaled losses are (1, 0) and (0, 1): the weights themselves, which sum to 1
    assert found[0].loss + found[1].loss == pytest.approx(1)
    assert found[2].loss == math.inf
    assert found[3].loss == max(found[0].loss, found[1].loss)  # pending: as the worst


def test_weights_are_uniform_on_the_simplex() -> None:
    """Of three objectives each weight has mean 1/3, and variance 1/18 (Dirichlet)."""
    space, inner, drawn = make_space(), Notes(), []
    optimizer = ParEGO(inner, rho=0.0)
    optimizer.setup(space, 3, ("x", "y", "z"))
    corners = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    rng = np.random.default_rng(0)
    for number, losses in enumerate(corners):
        optimizer.tell(make_trial(space, space.sample(rng), number, losses))
    for _ in range(1000):
        optimizer.ask()
        optimizer._pending.clear()
        drawn.append([trial.loss for trial in inner.told[:3]])
    assert np.mean(drawn, axis=0) == pytest.approx([1 / 3] * 3, abs=0.04)
    assert np.var(drawn, axis=0) == pytest.approx([1 / 18] * 3, abs=0.015)
    assert np.sum(drawn, axis=1) == pytest.approx(np.ones(1000))


@pytest.mark.parametrize(("inner", "margin"), [(StructuredBayes, 0.6), (Optuna, 0.2)])
def test_a_pareto_front_is_approached_better_than_by_random_search(inner: type[Optimizer], margin: float) -> None:
    """On six seeds: the area that one search dominates has a standard deviation of 0.3."""
    space, seeds = make_space(), range(6)
    ours = [area(search(ParEGO(inner()), space, two_objectives, 50, seed, NAMES)) for seed in seeds]
    theirs = [area(search(RandomSearch(), space, two_objectives, 50, seed, NAMES)) for seed in seeds]
    assert max(ours + theirs) <= FRONT_AREA + 1e-9
    assert np.mean(ours) >= np.mean(theirs) + margin


def test_it_supports_what_the_inner_one_does_and_several_objectives() -> None:
    assert ParEGO(Notes()).supports == {"conditional", "subset", "batch", "fidelity", "multi_objective"}
    only = Notes()
    only.supports = frozenset({"subset"})
    assert "conditional" not in ParEGO(only).supports


@pytest.mark.parametrize("rho", [-0.1, math.nan])
def test_a_negative_rho_is_refused(rho: float) -> None:
    with pytest.raises(RecipeError, match=r"ParEGO\.rho is a finite number of at least 0"):
        ParEGO(Notes(), rho)
