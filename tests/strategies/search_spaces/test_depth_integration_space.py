"""Stacks of blocks: order and repetition, blocks that go, the depth's bound, and what lies outside."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from space_cases import layout
from tailorlib_strategies.operations import LayerRemoval, ResidualScale
from tailorlib_strategies.search_spaces import DepthIntegrationSpace

from tailorlib import LayerPlan, LayerSource, Tailoring
from tailorlib.exceptions import RecipeError


def space(
    granularity: int = 2, stack: Any = 2, num_layers: int = 5, candidates: str = "ab", **settings: Any
) -> DepthIntegrationSpace:
    made = DepthIntegrationSpace(granularity, stack, **settings)
    made.setup(layout(num_layers, candidates))
    return made


def layers(*names: str, **scales: float) -> tuple[LayerPlan, ...]:
    """Return layers written ``a0``."""
    return tuple(LayerPlan((LayerSource(n[:-1], int(n[-1])),), **scales) for n in names)


def named(tailoring: Tailoring) -> str:
    return " ".join(f"{p.sources[0].model}{p.sources[0].layer}" for p in tailoring.layers)


def test_a_stack_has_an_order_and_may_repeat() -> None:
    s = space(stack=3)
    slots = {"block.0.slot.0": "b", "block.0.slot.1": "a", "block.0.slot.2": "b", "block.2.slot.0": "a"}
    counts = {"block.0.count": 3, "block.1.count": 1, "block.2.count": 2}
    others = {"block.1.slot.0": "base", "block.2.slot.1": "a"}
    assert named(s.decode(slots | counts | others)) == "b0 b1 a0 a1 b0 b1 base2 base3 a4 a4"


def test_slots_above_the_count_are_inactive() -> None:
    s = space()
    active = s.active(s.complete({"block.0.count": 1, "block.1.count": 2, "block.2.count": 1}))
    assert {n for n in active if "slot" in n} == {
        "block.0.slot.0",
        "block.1.slot.0",
        "block.1.slot.1",
        "block.2.slot.0",
    }


def test_an_exact_number_of_blocks_goes_and_no_protected_one() -> None:
    s, rng = space(removal=LayerRemoval(count=1, protect=[0])), np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        blocks = {p.sources[0].layer // 2 for p in s.decode(s.sample(rng)).layers}
        seen.add(frozenset(blocks))
    assert seen == {frozenset({0, 1}), frozenset({0, 2})}


def test_blocks_can_go_but_never_all() -> None:
    s = space(stack=(0, 2))
    assert named(s.decode(s.complete({"block.0.count": 0, "block.1.count": 0, "block.2.count": 2}))) == "a4 a4"
    nothing = {f"block.{b}.count": 0 for b in range(3)}
    assert named(s.decode(s.complete({**nothing, "block.0.slot.0": "b"}))) == "b0 b1"
    assert s.active(s.complete(nothing))["block.0.count"] == 1


def test_a_model_that_is_too_deep_stands_for_the_one_with_its_highest_stacks_cut() -> None:
    s = space(1, 3, num_layers=4, candidates="", max_layers=9)
    params = s.complete({f"block.{b}.count": count for b, count in enumerate((3, 3, 1, 3))})
    # 10 layers: the first of the highest stacks loses one
    assert [s.active(params)[f"block.{b}.count"] for b in range(4)] == [2, 3, 1, 3]
    tight = space(1, 3, num_layers=4, candidates="", max_layers=5)
    assert sum(tight.active(params)[f"block.{b}.count"] for b in range(4)) == 5  # type: ignore[misc]
    assert len(tight.decode(params).layers) == 5


def test_cutting_spreads_over_the_depth() -> None:
    s = space(1, 2, num_layers=8, candidates="", max_layers=12)
    counts = s.active(s.complete({f"block.{b}.count": 2 for b in range(8)}))
    assert [counts[f"block.{b}.count"] for b in range(8)] == [1, 2, 1, 2, 1, 2, 1, 2]


def test_the_depth_is_bounded_for_every_assignment_and_everything_below_the_bound_is_reached() -> None:
    s = space(2, (0, 2), num_layers=5, candidates="", max_layers=6)
    free = [c for c in product(range(3), repeat=3) if 0 < 2 * c[0] + 2 * c[1] + c[2] <= 6]
    reached = {
        tuple(
            s.active(s.complete({f"block.{b}.count": n for b, n in enumerate(c)}))[f"block.{b}.count"]
            for b in range(3)
        )
        for c in product(range(3), repeat=3)
    }
    assert reached == set(free)
    assert s.size().discrete == len(free)


def test_a_block_is_scaled_as_a_whole() -> None:
    s = space(residual_scale=ResidualScale(attention=(0.5, 1.5), mlp=1.0), candidates="")
    params = s.complete({"block.0.count": 2, "block.0.slot.1.ResidualScale.attention": 0.5})
    scales = [p.attention_scale for p in s.decode(params).layers]
    assert scales[:4] == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("tailoring", "message"),
    [
        (Tailoring(layers("a0", "a1", "b2", "b3")), "keeps 2 blocks, where none is removed of 3"),
        (Tailoring(layers("a0", "a1", "b2", "a3", "a4")), "layer 2: no whole block of 2 layers.* begins with b:2"),
        (Tailoring(layers("a0", "a1", "a3", "a2", "a3", "a4")), "layer 2: no whole block .* with a:3"),
        (Tailoring(layers("a2", "a3", "a0", "a1", "a4")), "layer 2: block 0 stands above block 1"),
        (Tailoring(layers("a0", "a1", "a2", "a3", "a4", "a4", "b4")), "block 2: 3 blocks are stacked, .* 1 to 2"),
        (Tailoring(layers("a0", "a1", "a2", "a3", "z4")), "layer 4: z is no model"),
        (Tailoring(layers("a0", "a1", "a2", "a3", "a4", "a7")), "layer 5: no whole block"),
        (Tailoring(layers("a0", "a1", "a2", "a3", "a4"), head="a"), "head are a's"),
        (
            Tailoring((*layers("a0"), *layers("a1", mlp_scale=0.5), *layers("a2", "a3", "a4"))),
            "layer 0: no whole block of 2 layers, all scaled alike",
        ),
        (
            Tailoring((*layers("a0", "a1", mlp_scale=0.5), *layers("a2", "a3", "a4"))),
            r"block\.0\.slot\.0: ResidualScale\.mlp=0\.5 is not 1\.0",
        ),
        (
            Tailoring(
                (LayerPlan((LayerSource("a", 0), LayerSource("b", 0)), "Linear"), *layers("a2", "a3", "a4"))
            ),
            "layer 0: it is merged, where the space takes layers as they are",
        ),
    ],
)
def test_a_tailoring_outside_is_refused_with_the_reason(tailoring: Tailoring, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        space().encode(tailoring)


def test_a_model_deeper_than_the_bound_lies_outside() -> None:
    tailoring = Tailoring(layers("a0", "a1", "a0", "a1", "a2", "a3", "a4"))
    space().encode(tailoring)
    with pytest.raises(RecipeError, match="has 7 layers, more than max_layers=6"):
        space(max_layers=6).encode(tailoring)


def test_a_block_that_must_stay_or_that_must_go() -> None:
    removing = space(removal=LayerRemoval(count=1, protect=[0]))
    assert removing.encode(Tailoring(layers("a0", "a1", "b4")))["removed"] == (0,)
    with pytest.raises(RecipeError, match="keeps 2 blocks, where 1 of"):
        removing.encode(Tailoring(layers("a2", "a3", "b4")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: space(granularity=0), "granularity is 1 or more"),
        (lambda: space(stack=0), "stack is a number of blocks, 1 or more"),
        (lambda: space(stack=(2, 1)), "a pair low <= high"),
        (lambda: space(stack=(0, 2), removal=LayerRemoval(count=1)), "starts at 1 where removal says"),
        (
            lambda: space(removal=LayerRemoval(count=3)),
            "removal speaks of blocks, of which 5 layers have 3: .* 3 of 3",
        ),
        (lambda: space(max_layers=4), "room for the smallest stacks, 5 layers; got 4"),
        (
            lambda: space(max_layers=3, removal=LayerRemoval(count=1)),
            "room for the smallest stacks, 4 layers; got 3",
        ),
        (lambda: space(max_layers=1, stack=(0, 2)), "room for the smallest stacks, 2 layers; got 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_what_has_one_value_is_no_parameter() -> None:
    assert set(space(stack=1).distributions()) == {f"block.{b}.slot.0" for b in range(3)}
    assert set(space(candidates="").distributions()) == {f"block.{b}.count" for b in range(3)}
    with pytest.raises(RecipeError, match="something to search"):
        space(stack=1, candidates="")


def test_a_single_block_of_all_layers_is_a_choice_among_whole_models() -> None:
    s = space(99, 1)
    assert s.size().discrete == 3
    assert s.decode(s.complete({"block.0.slot.0": "b"})) == replace(
        Tailoring.whole("b", 5), **dict.fromkeys(("embeddings", "norm", "head"), "base")
    )
