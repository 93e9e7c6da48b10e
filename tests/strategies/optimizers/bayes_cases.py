"""Toy landscapes with known optima for the Bayesian adapters."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout, Optimizer, Params, Trial

LAYERS, REMOVED = 8, 3
COST = np.array([0.9, 0.1, 0.6, 0.2, 0.7, 0.3, 0.8, 0.5])
"""What removing each layer costs: the best three to remove are 1, 3 and 5."""
GAIN = np.array([0.2, -0.2] * 4)
"""What taking candidate a in a kept layer gains."""
OPTIMUM = 0.6 - 0.2 * 4
"""Layers 1, 3, 5 removed (0.1 + 0.2 + 0.3), a in the kept layers 0, 2, 4, 6 and not in 7."""


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
    """Cost of the removed layers, against how few of the first layers are kept as they are.

    The second loss is the share of kept layers whose source is a; the first rewards a in every layer. So each
    further layer of a gains 0.2 of the one and loses 1/5 of the other: the Pareto front is the line of the best
    removal with 0 to 5 layers of a.
    """
    removed = params["removed"]
    assert isinstance(removed, tuple)
    share = sum(params.get(f"layer.{i}.source") == "a" for i in range(LAYERS)) / (LAYERS - REMOVED)
    return float(COST[list(removed)].sum() - share), share


def area(trials: list[Trial], corner: tuple[float, float] = (2.5, 1.1)) -> float:
    """Return the area between a set of trials and a corner, by a sweep along the first loss.

    On the whole front of :func:`two_objectives` it is the area of six steps.
    """
    points = sorted({t.losses for t in trials if t.fitness is not None})
    total, height = 0.0, corner[1]
    for first, second in points:
        if first < corner[0] and second < height:
            total += (corner[0] - first) * (height - second)
            height = second
    return total


FRONT_AREA = math.fsum(
    (2.5 - (0.6 - share)) * (above - share)
    for share, above in zip((1.0, 0.8, 0.6, 0.4, 0.2, 0.0), (1.1, 1.0, 0.8, 0.6, 0.4, 0.2), strict=True)
)
"""The area of the whole front: the best removal costs 0.6, with a in 5, 4, .. 0 of the kept layers."""
