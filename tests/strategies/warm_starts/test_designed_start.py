from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, combinations

import pytest
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.warm_starts import DesignedStart, FullDepthMerge
from tailorlib_strategies.warm_starts.designed_start import patterns
from warm_start_cases import in_space, removed

from tailorlib import LayerPlan, LayerSource, Params, Tailoring, WarmStart, WarmStartContext
from tailorlib.exceptions import RecipeError

LISTS = [(1, 2), (3, 4), (2, 5)]


class Without(WarmStart):
    """Removes the layers that it is told; its second proposal is no matter of the designs."""

    def __init__(self, *gone: int) -> None:
        self.gone = gone

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        return [Tailoring.whole("base", 6, without=gone) for gone in (self.gone, (0, 5))]


class Everything(PruningSpace):
    """A space in which every tailoring lies."""

    def encode(self, tailoring: Tailoring) -> Params:
        return {"tailoring": tailoring.to_yaml()}

    def decode(self, params: Params, *, seed: int = 0) -> Tailoring:
        return Tailoring.from_yaml(str(params["tailoring"]))


def starts() -> list[WarmStart]:
    return [Without(*gone) for gone in LISTS]


def test_the_designs_of_the_paper_are_129(three: WarmStartContext) -> None:
    designs = DesignedStart(starts()).designs(three)
    assert len(designs) == len({t.digest for t in designs}) == 3 * (1 + 6 * 7) == 129
    for t in designs:
        three.family.check(t)


def test_each_design_is_a_list_a_scale_and_a_pattern(three: WarmStartContext) -> None:
    scales = [0.3, 0.7]
    designs = iter(DesignedStart(starts(), scales).designs(three))
    every = [tuple("abc"), *(tuple(p) for n in (1, 2) for p in combinations("abc", n))]
    for gone in LISTS:
        kept = [i for i in range(6) if i not in gone]
        assert next(designs) == replace(Tailoring.whole("base", 6, without=gone), seed=7)
        for scale in scales:
            for pattern in every:
                assert next(designs).layers == tuple(
                    LayerPlan(
                        tuple(LayerSource(model, i) for model in pattern),
                        "TaskArithmetic",
                        (("scale", scale),),
                        LayerSource("base", i),
                    )
                    for i in kept
                )
    assert next(designs, None) is None


def test_where_one_model_is_not_merged_it_is_taken_as_it_is(three: WarmStartContext) -> None:
    found = DesignedStart(starts()).propose(three)
    assert len(found) == len({t.digest for t in found}) == 3 * (1 + 3 + 6 * 4) == 84
    assert [three.space.decode(three.space.encode(t), seed=7) for t in found] == list(found)
    alone = [t for t in found if len(t.layers[0].sources) == 1]
    assert {(t.layers[0].sources[0].model, removed(t)) for t in alone} == {
        (model, gone) for model in ("base", "a", "b", "c") for gone in LISTS
    }
    merged = {(t.layers[0].params, tuple(s.model for s in t.layers[0].sources)) for t in found} - {
        ((), (model,)) for model in ("base", "a", "b", "c")
    }
    assert len(merged) == 6 * 4


def test_a_space_that_merges_one_model_gets_them_all(three: WarmStartContext) -> None:
    there = in_space(three, Everything(LayerRemoval(count=2)))
    start = DesignedStart(starts())
    assert start.propose(there) == start.designs(there)


def test_what_lies_outside_is_left_out_and_equal_lists_are_one(three: WarmStartContext) -> None:
    narrow = in_space(three, PruningSpace(LayerRemoval(count=2), merges=[TaskArithmetic(scale=(0.5, 1.0))]))
    twice = DesignedStart([Without(1, 2), Without(1, 2), Without(1, 2, 3)], scales=[0.25, 0.75])
    assert len(twice.designs(narrow)) == 2 * (1 + 2 * 7)
    found = twice.propose(narrow)  # neither three layers less, nor the lower scale
    assert len(found) == 1 + 3 + 4
    assert {removed(t) for t in found} == {(1, 2)}


@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_patterns_come_all_together_then_by_size(names: str) -> None:
    found = list(patterns(names))
    subsets = chain.from_iterable(combinations(names, n) for n in range(1, len(names) + 1))
    assert sorted(found) == sorted(subsets)
    assert found[0] == tuple(names)
    assert [len(p) for p in found[1:]] == sorted(len(p) for p in found[1:])
    for limit in range(1, len(found) + 2):
        assert list(patterns(names, limit)) == found[:limit]


def test_the_number_of_patterns_is_capped(three: WarmStartContext) -> None:
    assert len(DesignedStart(starts(), [0.5], max_patterns=2).designs(three)) == 3 * (1 + 2)


def test_settings_are_checked(three: WarmStartContext) -> None:
    with pytest.raises(RecipeError, match="removals names one warm start or more") as caught:
        DesignedStart([], scales=[0.5, 0.5], max_patterns=0)
    assert len(caught.value.faults) == 3
    for merge in ("Linear", "LayerSelection", "TaskArithmetics"):
        with pytest.raises(RecipeError, match=r"DesignedStart\.merge"):
            DesignedStart(starts(), merge=merge).propose(three)


def test_removal_lists_are_of_the_bases_layers_in_order(three: WarmStartContext) -> None:
    class Stacked(WarmStart):
        def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
            return [Tailoring(tuple(LayerPlan((LayerSource("base", i),)) for i in (0, 1, 1, 2)))]

    class Nothing(WarmStart):
        def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
            return []

    with pytest.raises(RecipeError, match=r"Stacked has the layers \[0, 1, 1, 2\]"):
        DesignedStart([Stacked()]).propose(three)
    with pytest.raises(RecipeError, match="Nothing proposes nothing"):
        DesignedStart([Nothing()]).propose(three)
    whole = DesignedStart([FullDepthMerge("Linear")], [0.5]).designs(three)
    assert {len(t.layers) for t in whole} == {6}  # an empty list is a list
