from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tailorlib_strategies.operations import TIES, LayerRemoval, ResidualScale, TaskArithmetic
from tailorlib_strategies.search_spaces import (
    DepthIntegrationSpace,
    FoldingSpace,
    LayerFusionSpace,
    PruningSpace,
)
from tailorlib_strategies.warm_starts import BlockInfluence, RandomTailoring
from transformers import PreTrainedModel
from warm_start_cases import Given, VaryingRemoval, in_space, removed, states, token_ids

from tailorlib import LayerPlan, LayerSource, SearchSpace, Tailoring, WarmStartContext
from tailorlib.exceptions import EvaluationError, RecipeError


def test_block_influence_removes_the_least_influential_removable_layers(context: WarmStartContext) -> None:
    start = BlockInfluence(Given())
    influence = start.influence(context)
    assert len(influence) == 6
    gone = sorted(range(1, 6), key=lambda i: influence[i])[:2]
    first, *others = start.propose(context)
    assert first == replace(Tailoring.whole("base", 6, without=gone), seed=7)
    kept = [i for i in range(6) if i not in gone]
    for name, proposal in zip("ab", others, strict=True):
        assert proposal.layers == tuple(LayerPlan((LayerSource(name, i),)) for i in kept)


def test_block_influence_is_that_of_the_plain_model(context: WarmStartContext, plain: PreTrainedModel) -> None:
    start = BlockInfluence(Given(), context_length=16)
    cosines = []
    for ids in token_ids(start, context):
        h = states(plain, ids[:, :-1])  # the last token predicts nothing that is scored
        cosines.append(torch.cosine_similarity(h[:-1], h[1:], dim=-1))
    expected = 1 - torch.cat(cosines, 1).mean(1)
    assert start.influence(context) == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_varying_number_of_layers_starts_at_its_least_middle_and_largest(context: WarmStartContext) -> None:
    varying = in_space(context, PruningSpace(VaryingRemoval(1, 4, protect=[0]), selection=None))
    start = BlockInfluence(Given())
    order = sorted(range(1, 6), key=start.influence(varying).__getitem__)
    assert [removed(t) for t in start.propose(varying)] == [tuple(sorted(order[:n])) for n in (1, 2, 4)]


def test_influence_that_is_nan_ranks_nothing(context: WarmStartContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockInfluence, "influence", lambda *_: [0.5, 0.1, float("nan"), 0.2, 0.3, 0.4])
    with pytest.raises(EvaluationError, match=r"ShortGPT .* got NaN"):
        BlockInfluence(Given()).propose(context)


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
        PruningSpace(LayerRemoval(count=2), residual_scale=ResidualScale(mlp=0.9)),  # a layer as it is has 1
        FoldingSpace(LayerRemoval(count=2)),
    ],
)
def test_proposals_outside_the_space_are_baselines_and_no_first_trials(
    context: WarmStartContext, space: SearchSpace
) -> None:
    there = in_space(context, space)
    found = BlockInfluence(Given()).propose(there)
    assert [len(t.layers) for t in found] == [4, 4, 4]
    context.family.stitch(found[0])
    with pytest.raises(RecipeError, match=rf"nothing that lies in this {type(space).__name__}.*baselines"):
        BlockInfluence(Given()).starts(there)


def test_first_trials_are_each_once_in_the_form_of_the_space(context: WarmStartContext) -> None:
    class Repeats(BlockInfluence):
        def propose(self, context: WarmStartContext) -> list[Tailoring]:
            whole = Tailoring.whole("base", 6)
            inside = [Tailoring.whole("base", 6, without=[1, i]) for i in (2, 3, 2)]
            return [whole, *inside]  # seed 0, where the space's is 7

    found = Repeats(Given()).starts(context)
    assert [removed(t) for t in found] == [(1, 2), (1, 3)]
    assert [t.seed for t in found] == [7, 7]


@pytest.mark.parametrize(
    "space",
    [
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


@pytest.mark.parametrize("merge", ["Linear", "LayerSelection", "TaskArithmetics"])
def test_block_influence_refuses_other_merges(context: WarmStartContext, merge: str) -> None:
    with pytest.raises(RecipeError, match=r"BlockInfluence\.merge"):
        BlockInfluence(Given(), merge_scales=[0.5], merge=merge).propose(context)


def test_block_influence_merges_with_other_hyperparameters_in_the_middle(context: WarmStartContext) -> None:
    space = PruningSpace(LayerRemoval(count=1), merges=[TIES(density=[0.5, 0.7], scale=[0.0, 1.0])])
    found = BlockInfluence(Given(), merge_scales=[0.25], merge="TIES").propose(in_space(context, space))
    params = [dict(plan.params) for plan in found[-1].layers]
    assert [p["density"] for p in params] == pytest.approx([0.6] * len(params))  # of TIES's own range
    assert {(p["scale"], p["normalize"]) for p in params} == {(0.25, True)}
    space.setup(context.family.layout)
    assert space.decode(space.encode(found[-1]), seed=context.seed).digest == found[-1].digest


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
