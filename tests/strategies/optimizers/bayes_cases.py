"""Toy landscapes with known optima for the Bayesian adapters."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout, Optimizer, Params, Trial

LAYERS, REMOVED = 12, 4
COST = np.array([1.2, 0.1, 0.6, 0.2, 0.7, 0.3, 0.8, 0.4, 0.9, 0.5, 1.0, 1.1])
"""What removing each layer costs: the best four to remove are 1, 3, 5 and 7, for 1.0."""
GAIN = np.array([0.2, -0.2] * 6)
"""What taking candidate a in a kept layer gains."""
BEST_REMOVED = (1, 3, 5, 7)
OPTIMUM = 1.0 - 0.2 * 6
"""The best four removed, and a in the six even layers."""


def make_space(least: int | None = None, candidates: tuple[str, ...] = ("a",)) -> PruningSpace:
    merges = [TaskArithmetic(scale=(0.1, 1.0))] if len(candidates) > 1 else None
    removal = LayerRemoval(count=REMOVED if least is None else [least, REMOVED])
    space = PruningSpace(removal, merges=merges)
    space.setup(FamilyLayout(candidates, LAYERS, ("full_attention",) * LAYERS))
    return space


def additive(params: Params) -> float:
    """The loss of a candidate: the cost of the removed layers less the gain of the candidate's."""
    removed = params["removed"]
    assert isinstance(removed, tuple)
    gains = [GAIN[i] for i in range(LAYERS) if params.get(f"layer.{i}.source") == "a"]
    return float(COST[list(removed)].sum() - sum(gains))


def make_trial(
    space: PruningSpace, params: Params, number: int, losses: float | tuple[float, ...] | None, **changes: float
) -> Trial:
    """Return a trial with that loss, those losses, or failed."""
    tailoring = space.decode(params)
    if losses is None:
        return Trial(number, params, tailoring, "failed", None, reason="out of memory")
    each = losses if isinstance(losses, tuple) else (losses,)
    objectives = {f"o{i}": -loss for i, loss in enumerate(each)} if len(each) > 1 else {}
    return Trial(number, params, tailoring, "complete", -each[0], objectives=objectives, **changes)


def search(
    optimizer: Optimizer,
    space: PruningSpace,
    loss: Callable[[Params], float | tuple[float, ...] | None],
    trials: int,
    seed: int = 0,
    objectives: tuple[str, ...] = ("fitness",),
) -> list[Trial]:
    """Run a study and return its trials."""
    optimizer.setup(space, seed, objectives)
    done: list[Trial] = []
    for number in range(trials):
        params = optimizer.ask()
        done.append(make_trial(space, params, number, loss(params)))
        optimizer.tell(done[-1])
    return done


def regret(optimizer: Optimizer, trials: int, seed: int) -> float:
    """Return how far the best of a study on the additive landscape is from the optimum."""
    done = search(optimizer, make_space(), additive, trials, seed)
    return min(trial.loss for trial in done) - OPTIMUM


def two_objectives(params: Params) -> tuple[float, float]:
    """Two losses at odds: what removal costs, less twice the share of kept layers that are of a; and that share.

    The Pareto front is the best removal, with a in 0 to 8 of the kept layers.
    """
    removed = params["removed"]
    assert isinstance(removed, tuple)
    share = sum(params.get(f"layer.{i}.source") == "a" for i in range(LAYERS)) / (LAYERS - REMOVED)
    return float(COST[list(removed)].sum() - 2 * share), share


CORNER = (4.2, 1.1)
"""The worst removal costs 4.2."""


def area(trials: list[Trial]) -> float:
    """Return the area that a set of trials dominates, up to the corner, by a sweep along the first loss."""
    points = sorted({t.losses for t in trials if t.fitness is not None})
    total, height = 0.0, CORNER[1]
    for first, second in points:
        if first < CORNER[0] and second < height:
            total += (CORNER[0] - first) * (height - second)
            height = second
    return total


FRONT_AREA = (CORNER[0] + 1.0) * (CORNER[1] - 1.0) + math.fsum(
    (CORNER[0] - (1.0 - 2 * n / 8)) / 8 for n in range(8)
)
"""The area of the whole front: 0.1 high at share 1, where the first loss is -1, and 1/8 for each share below."""
