from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.warm_starts import LeaveOneOut
from transformers import PreTrainedModel
from warm_start_cases import CPU, Given, VaryingRemoval, in_space, less, loss, removed, token_ids

from tailorlib import WarmStartContext
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import RecipeError


@torch.no_grad()
def without(model: PreTrainedModel, gone: list[int], windows: list[torch.Tensor]) -> float:
    return float(loss(less(model, gone), windows))


def test_losses_are_those_of_models_with_a_layer_less(context: WarmStartContext, plain: PreTrainedModel) -> None:
    start = LeaveOneOut(Given(), context_length=16)
    windows = token_ids(start, context)
    for gone in ([], [3]):
        others = [i for i in range(6) if i not in gone]
        expected = {i: without(plain, [*gone, i], windows) for i in others}
        assert start.losses(context, others, gone) == pytest.approx(expected, abs=1e-5)


def test_at_once_the_layers_of_the_least_loss_go(context: WarmStartContext, plain: PreTrainedModel) -> None:
    start = LeaveOneOut(Given())
    windows = token_ids(start, context)
    order = sorted(range(1, 6), key=lambda i: without(plain, [i], windows))  # 0 is protected
    (found,) = start.propose(context)
    assert removed(found) == tuple(sorted(order[:2]))


def test_greedy_is_greedy(context: WarmStartContext, plain: PreTrainedModel) -> None:
    there = in_space(context, PruningSpace(VaryingRemoval(1, 4, protect=[0])))
    start = LeaveOneOut(Given(), greedy=True)
    windows = token_ids(start, there)
    gone: list[int] = []
    for _ in range(4):
        left = [i for i in range(1, 6) if i not in gone]
        gone.append(min(left, key=lambda i: without(plain, [*gone, i], windows)))
    assert [removed(t) for t in start.propose(there)] == [tuple(sorted(gone[:n])) for n in (1, 2, 4)]


def test_greedy_ranks_again(context: WarmStartContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(_context: object, layers: list[int], gone: list[int], *_: object) -> dict[int, float]:
        # without layer 1 its neighbour 2 is worth more than all: the second to go is 4
        worth = {1: 0.1, 2: 0.2, 3: 0.9, 4: 0.3, 5: 0.8}
        return {i: worth[i] + (i == 2 and 1 in gone) for i in layers}

    monkeypatch.setattr("tailorlib_strategies.warm_starts.leave_one_out._losses", losses)
    found = {greedy: removed(LeaveOneOut(Given(), greedy).propose(context)[0]) for greedy in (False, True)}
    assert found == {False: (1, 2), True: (1, 4)}


@pytest.mark.parametrize("greedy", [False, True])
def test_candidates_are_used_where_they_are_asked_for(context: WarmStartContext, greedy: bool) -> None:
    (bare,) = LeaveOneOut(Given(), greedy).propose(context)
    found = LeaveOneOut(Given(), greedy, merge_scales=[0.25, 0.5]).propose(context)
    assert found[0] == bare
    assert {removed(t) for t in found} == {removed(bare)}
    assert [{source.model for plan in t.layers for source in plan.sources} for t in found] == [
        {"base"},
        {"a"},
        {"b"},
        {"a", "b"},
        {"a", "b"},
    ]
    assert [{plan.params for plan in t.layers} for t in found[3:]] == [{(("scale", x),)} for x in (0.25, 0.5)]


def test_a_merge_without_a_scale_is_refused_before_layers_are_ranked() -> None:
    with pytest.raises(RecipeError, match=r"LeaveOneOut\.merge is an operation with the hyperparameter 'scale'"):
        LeaveOneOut(Given(), merge_scales=[0.5], merge="SLERP")


def test_lower_layers_run_once_and_nothing_is_kept(context: WarmStartContext) -> None:
    start, layers = LeaveOneOut(Given()), range(6)
    bare = replace(context, engine=Engine(context.engine.tokenizer, CPU, 256, state_bytes=0))
    before = context.engine.work
    reused = start.losses(context, layers)
    work = context.engine.work - before
    assert reused == start.losses(bare, layers)  # the very same bits
    tokens = work.tokens // 6
    # without layer i, i layers below it are known (but for the first that is measured), and 5 - i run
    assert work.run == tokens * (5 + sum(5 - i for i in range(5)))
    assert bare.engine.work.reused == 0
    assert context.engine.states.nbytes == 0


def test_the_number_of_evaluations(context: WarmStartContext, monkeypatch: pytest.MonkeyPatch) -> None:
    score, scored = Engine.score, []
    monkeypatch.setattr(Engine, "score", lambda *args: scored.append(1) or score(*args))
    LeaveOneOut(Given(), greedy=True).propose(context)
    assert len(scored) == 5 + 4  # R (n - (R - 1) / 2) of n = 5 removable layers, R = 2
