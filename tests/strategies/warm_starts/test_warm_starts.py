from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tailorlib_strategies.operations import LayerRemoval, ResidualScale, TaskArithmetic
from tailorlib_strategies.search_spaces import (
    DepthIntegrationSpace,
    FoldingSpace,
    LayerFusionSpace,
    PruningSpace,
)
from tailorlib_strategies.warm_starts import BlockInfluence, RandomTailoring

from tailorlib import LayerPlan, LayerSource, SearchSpace, Tailoring, TextSource, WarmStartContext
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import RecipeError
from tailorlib.models.family import ModelFamily
from tailorlib.testing.tiny import write_tiny_family

CPU = torch.device("cpu")


class Given(TextSource):
    def documents(self) -> Sequence[str]:
        return ["The quick brown fox jumps over the lazy dog. " * 3, "def add(a, b): return a + b\n" * 4]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> WarmStartContext:
    folders = write_tiny_family(tmp_path_factory.mktemp("family"), num_layers=6)
    candidates = {name: str(path) for name, path in folders.items() if name != "base"}
    family = ModelFamily(str(folders["base"]), candidates, dtype="float32")
    family.load(CPU)
    space = PruningSpace(LayerRemoval(count=2, protect=[0]), merges=[TaskArithmetic()])
    space.setup(family.layout)
    return WarmStartContext(family, space, Engine(family.tokenizer, CPU, 256), seed=7)


def in_space(context: WarmStartContext, space: SearchSpace) -> WarmStartContext:
    space.setup(context.family.layout)
    return replace(context, space=space)


def test_block_influence_removes_the_least_influential_removable_layers(context: WarmStartContext) -> None:
    start = BlockInfluence(Given())
    influence = start.influence(context)
    assert len(influence) == 6
    removed = sorted(range(1, 6), key=lambda i: influence[i])[:2]
    first, *others = start.propose(context)
    assert first == replace(Tailoring.whole("base", 6, without=removed), seed=7)
    kept = [i for i in range(6) if i not in removed]
    for name, proposal in zip("ab", others, strict=True):
        assert proposal.layers == tuple(LayerPlan((LayerSource(name, i),)) for i in kept)


def test_block_influence_merges_all_candidates_at_each_scale(context: WarmStartContext) -> None:
    proposals = BlockInfluence(Given(), merge_scales=[0.25, 0.5]).propose(context)
    assert len(proposals) == 5
    for scale, proposal in zip((0.25, 0.5), proposals[3:], strict=True):
        for plan in proposal.layers:
            depth = plan.sources[0].layer
            assert plan == LayerPlan(
                (LayerSource("a", depth), LayerSource("b", depth)),
                operation="TaskArithmetic",
                params=(("scale", scale),),
                base=LayerSource("base", depth),
            )
    for proposal in proposals:  # all can be built and are points of the search space
        context.family.stitch(proposal)
        assert context.space.decode(context.space.encode(proposal), seed=7) == proposal


def test_what_lies_outside_the_space_is_left_out(context: WarmStartContext) -> None:
    narrow = in_space(context, PruningSpace(LayerRemoval(count=2), selection=None))
    assert len(BlockInfluence(Given(), merge_scales=[0.5]).propose(narrow)) == 1


@pytest.mark.parametrize(
    ("space", "proposals"),
    [
        (PruningSpace(LayerRemoval(count=2), merges=[TaskArithmetic()], residual_scale=ResidualScale()), 4),
        (PruningSpace(LayerRemoval(count=2), residual_scale=ResidualScale(mlp=0.9)), 0),  # a layer as it is has 1
        (LayerFusionSpace(granularity=4, merges=[TaskArithmetic()], removal=LayerRemoval(count=2)), 4),
        (DepthIntegrationSpace(removal=LayerRemoval(count=2)), 3),  # it merges nothing
    ],
)
def test_block_influence_starts_every_space_that_removes_layers(
    context: WarmStartContext, space: SearchSpace, proposals: int
) -> None:
    there = in_space(context, space)
    found = BlockInfluence(Given(), merge_scales=[0.5]).propose(there)
    assert len(found) == proposals
    for tailoring in found:
        assert len(tailoring.layers) == 4
        assert space.decode(space.encode(tailoring), seed=7) == tailoring


@pytest.mark.parametrize(
    "space",
    [
        FoldingSpace(LayerRemoval(count=2)),
        LayerFusionSpace(),
        DepthIntegrationSpace(2, removal=LayerRemoval(count=1)),
    ],
)
def test_block_influence_refuses_spaces_that_do_not_remove_single_layers(
    context: WarmStartContext, space: SearchSpace
) -> None:
    with pytest.raises(RecipeError, match=f"removes layers one by one, got {type(space).__name__}"):
        BlockInfluence(Given()).propose(in_space(context, space))


def test_block_influence_is_the_same_every_time(context: WarmStartContext) -> None:
    assert BlockInfluence(Given()).propose(context) == BlockInfluence(Given()).propose(context)


@pytest.mark.parametrize("merge", ["TIES", "LayerSelection", "TaskArithmetics"])
def test_block_influence_refuses_other_merges(context: WarmStartContext, merge: str) -> None:
    with pytest.raises(RecipeError, match=r"BlockInfluence\.merge"):
        BlockInfluence(Given(), merge_scales=[0.5], merge=merge).propose(context)


def test_random_tailorings_follow_the_seed(context: WarmStartContext) -> None:
    first, again = (RandomTailoring(3).propose(context) for _ in range(2))
    other = RandomTailoring(3).propose(replace(context, seed=8))
    assert list(first) == list(again)
    assert list(first) != list(other)
    assert len({t.digest for t in first}) == 3
    assert all(len(t.layers) == 4 for t in first)


def test_settings_are_checked() -> None:
    with pytest.raises(RecipeError, match="at least one tailoring"):
        RandomTailoring(0)
    with pytest.raises(RecipeError, match="positive context_length and max_tokens"):
        BlockInfluence(Given(), max_tokens=0)
