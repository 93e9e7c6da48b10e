"""Every search space: one name per candidate, exact size, tailorings that can be built, and errors that help."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from space_cases import CASES, TINY, assignments, layout, made, values
from tailorlib_strategies.operations import TIES, LayerFolding, LayerRemoval, Linear, ResidualScale, TaskArithmetic
from tailorlib_strategies.optimizers import Nevergrad, RandomSearch
from tailorlib_strategies.search_spaces import (
    DepthIntegrationSpace,
    FoldingSpace,
    LayerFusionSpace,
    PruningSpace,
)

from tailorlib import Float, Optimizer, Params, SearchSpace, Tailoring
from tailorlib.exceptions import PluginError
from tailorlib.search_space import SEARCH_SPACES, SpaceSize
from tailorlib.testing.contracts import check_optimizer, check_search_space

SPACES = {name: made(case) for name, case in (CASES | TINY).items()}


def test_every_registered_space_is_among_the_cases() -> None:
    assert {type(space).__name__ for space in SPACES.values()} == set(SEARCH_SPACES.names())


@pytest.mark.parametrize("name", SPACES)
def test_the_contract_is_kept(name: str) -> None:
    make, family = (CASES | TINY)[name]
    check_search_space(make(), family)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_active_parameter_matters(name: str, seed: int) -> None:
    space, rng = SPACES[name], np.random.default_rng(seed)
    active = dict(space.sample(rng))
    for changed, value in active.items():
        moved = space.distributions()[changed].mutate(value, rng)
        other = space.complete({**active, changed: moved})
        same_name = space.active(other) == active
        assert same_name == (space.decode(other) == space.decode(active))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mutations_stay_inside(name: str, seed: int) -> None:
    space, rng = SPACES[name], np.random.default_rng(seed)
    params: Params = space.sample(rng)
    for _ in range(5):
        changed = str(rng.choice(list(params)))
        moved = space.distributions()[changed].mutate(params[changed], rng)
        params = space.active(space.complete({**params, changed: moved}))
        space.check(params)
        tailoring = space.decode(params)
        assert faults_of(space, tailoring) == []
        assert space.encode(tailoring) == params


@pytest.mark.parametrize("name", TINY)
def test_the_size_is_the_number_of_distinct_tailorings(name: str) -> None:
    space = SPACES[name]
    names: dict[Tailoring, Params] = {}
    for params in assignments(space):
        tailoring, active = space.decode(params), space.active(params)
        assert names.setdefault(tailoring, active) == active  # equal tailorings have equal names
        assert faults_of(space, tailoring) == []
    assert space.size().discrete == len(names)
    assert len({frozenset(active.items()) for active in names.values()}) == len(names)  # and unequal ones unequal
    for tailoring, active in names.items():
        assert space.encode(tailoring) == active


@pytest.mark.parametrize("name", CASES)
def test_the_continuous_size_is_reached_and_never_exceeded(name: str) -> None:
    space, rng = SPACES[name], np.random.default_rng(0)
    free = {n for n, d in space.distributions().items() if isinstance(d, Float) and d.low < d.high}
    assert max(len(free & set(space.sample(rng))) for _ in range(60)) <= space.size().continuous
    assert max((len(free & set(p)) for p in richest(space)), default=0) == space.size().continuous


def richest(space: SearchSpace) -> list[Params]:
    """Assignments with as many contributors as possible: one per operation that can be chosen, and per removal."""
    fixed = {n: max(values(d)) for n, d in space.distributions().items() if isinstance(values(d)[0], int | float)}
    cut = next((n for n in ("removed", "folded") if n in space.distributions()), None)
    cuts = values(space.distributions()[cut]) if cut else [()]
    # operation.n for every n at once: all places choose alike, each set of operations in turn
    choices = {n: values(d) for n, d in space.distributions().items() if "operation" in n}
    found = []
    for k in range(max(map(len, choices.values()), default=1)):
        chosen = {n: c[min(k, len(c) - 1)] for n, c in choices.items()}
        found += [space.active(space.complete({**fixed, **chosen, **({cut: c} if cut else {})})) for c in cuts]
    return found


def faults_of(space: SearchSpace, tailoring: Tailoring) -> list[str]:
    """Say what no family with the space's layout could build."""
    faults, kinds = [], space.layout.layer_types
    for i, plan in enumerate(tailoring.layers):
        drawn = plan.drawn
        if not {s.model for s in drawn} <= set(space.layout.models):
            faults.append(f"layer {i} draws on unknown models")
        if not all(0 <= s.layer < len(kinds) for s in drawn) or len({kinds[s.layer] for s in drawn}) > 1:
            faults.append(f"layer {i} mixes kinds")
        operations = {op.name: op for op in space.operations()}
        for part in plan.plans:
            if part.operation == "LayerSelection":
                continue
            op = operations[part.operation]
            if not op.min_sources <= len(part.sources) <= (op.max_sources or len(part.sources)):
                faults.append(f"layer {i} has {len(part.sources)} sources for {op.name}")
            if (part.base is not None) != op.needs_base:
                faults.append(f"layer {i} has the base {part.base} for {op.name}")
            if set(dict(part.params)) - {"weights"} != set(op.distributions()):
                faults.append(f"layer {i} has params {part.params} for {op.name}")
    return faults


@pytest.mark.parametrize("name", CASES)
def test_parameters_have_a_fixed_order(name: str) -> None:
    assert list(made(CASES[name]).distributions()) == list(SPACES[name].distributions())


def test_a_space_is_set_up_before_use() -> None:
    for make in (PruningSpace, FoldingSpace):
        space = make(LayerRemoval(count=1))
        for use in (space.distributions, space.operations):
            with pytest.raises(PluginError, match="before setup"):
                use()


def test_operations_lists_what_tailorings_can_use() -> None:
    merges = [TaskArithmetic(), TIES()]
    fusion, alone = LayerFusionSpace(merges=merges), LayerFusionSpace(merges=merges)
    fusion.setup(layout())
    alone.setup(layout(candidates="a"))
    assert fusion.operations() == tuple(merges)
    assert alone.operations() == ()  # one candidate is never merged
    folding = FoldingSpace(LayerRemoval(count=1), merges=merges)
    folding.setup(layout())
    assert [op.name for op in folding.operations()] == ["LayerFolding", "TaskArithmetic", "TIES"]
    stacks = DepthIntegrationSpace()
    stacks.setup(layout())
    assert stacks.operations() == ()


@pytest.mark.parametrize("optimizer", [RandomSearch, Nevergrad])
@pytest.mark.parametrize(
    "name",
    ["pruning: weights", "folding: merges", "depth: not too deep, some removed", "fusion: merges in bins"],
)
def test_optimizers_search_every_space(name: str, optimizer: type[Optimizer]) -> None:
    check_optimizer(optimizer, SPACES[name], trials=6)


LARGE: dict[str, Callable[[], SearchSpace]] = {
    "PruningSpace": lambda: PruningSpace(
        LayerRemoval(0.25), merges=[TaskArithmetic(), TIES(), Linear()], residual_scale=ResidualScale()
    ),
    "FoldingSpace": lambda: FoldingSpace(
        LayerRemoval(0.25),
        LayerFolding((0.0, 1.0)),
        merges=[TaskArithmetic(), TIES()],
        residual_scale=ResidualScale(),
    ),
    "DepthIntegrationSpace": lambda: DepthIntegrationSpace(
        stack=3, removal=LayerRemoval(0.25), max_layers=40, residual_scale=ResidualScale()
    ),
    "LayerFusionSpace": lambda: LayerFusionSpace(
        merges=[TaskArithmetic(), TIES()], removal=LayerRemoval(0.25), residual_scale=ResidualScale()
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_40_layers_of_8_candidates_are_named_and_decoded_in_under_5_ms(name: str) -> None:
    space, rng = LARGE[name](), np.random.default_rng(0)
    space.setup(layout(40, "abcdefgh"))
    params = {n: d.sample(rng) for n, d in space.distributions().items()}

    def fastest(use: Callable[[], object]) -> float:
        times = [time.perf_counter()]
        for _ in range(30):
            use()
            times.append(time.perf_counter())
        return min(b - a for a, b in pairwise(times))

    assert fastest(lambda: space.active(params)) < 5e-3
    assert fastest(lambda: space.decode(params)) < 5e-3
    assert isinstance(space.size(), SpaceSize)
