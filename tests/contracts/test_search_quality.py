"""Every registered optimizer finds more than random search on landscapes whose optimum is known."""

from __future__ import annotations

import inspect
from functools import cache

import pytest
from tailorlib_strategies.operations import TIES, LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import Optimizer, Trial
from tailorlib.optimizer import OPTIMIZERS
from tailorlib.search.proposer import Proposer
from tailorlib.testing.landscapes import LANDSCAPES
from tailorlib.trial import incumbent

TRIALS = 200
MARGINS = {"Evolution": 0.75, "StructuredBayes": 0.5}
MARGIN = 0.95
"""The regret is at most this share of random search's after as many trials; those of our own promise more."""
SLOW = {"SMAC": "fits a random forest for each proposal: 0.15 seconds each", "Optuna": "0.2 seconds a proposal"}
"""Optimizers that are tested with ``-m slow``, and why."""
CHEAP: dict[str, dict[str, object]] = {"StructuredBayes": {"tries": 24}, "SMAC": {"climbs": 2, "tries": 8}}
"""Settings that make a test fast."""


def search(optimizer: Optimizer, name: str, trials: int) -> float:
    """Return the regret without noise of the best candidate of a cold start."""
    landscape = LANDSCAPES[name](0)
    space = PruningSpace(LayerRemoval(count=landscape.removed), merges=[TaskArithmetic(), TIES()])
    space.setup(landscape.layout)
    optimizer.setup(space, 0)
    proposer = Proposer(space, optimizer)
    told: list[Trial] = []
    while len(told) < trials and (proposals := proposer.propose(1)):
        for one in proposals:
            score = landscape.measure(one.tailoring)
            told.append(Trial(len(told), one.params, one.tailoring, "complete", score))
        proposer.tell(told[-len(proposals) :])
    best = incumbent(told)
    assert best is not None
    return landscape.regret(best.tailoring)


@cache
def by_chance(name: str, trials: int) -> float:
    return search(RandomSearch(), name, trials)


@pytest.mark.parametrize("landscape", LANDSCAPES)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in OPTIMIZERS.names()
        if name != "RandomSearch"
    ],
)
def test_it_beats_random_search(name: str, landscape: str) -> None:
    cls = OPTIMIZERS.get(name)
    if required(cls):
        pytest.skip(f"{name} wraps another optimizer or needs settings: {', '.join(required(cls))}")
    found = search(cls(**CHEAP.get(name, {})), landscape, TRIALS)
    assert found <= MARGINS.get(name, MARGIN) * by_chance(landscape, TRIALS)


def required(cls: type[Optimizer]) -> list[str]:
    """Return the settings without which an optimizer can't be made."""
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
