from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from tailorlib_strategies.operations import LayerFolding, LayerRemoval
from tailorlib_strategies.search_spaces import FoldingSpace, PruningSpace
from tailorlib_strategies.warm_starts import LaCo
from torch import Tensor
from transformers import PreTrainedModel
from warm_start_cases import Given, in_space, less, token_ids

from tailorlib import Tailoring, WarmStartContext
from tailorlib.exceptions import RecipeError


def runs(tailoring: Tailoring) -> list[list[int]]:
    return [[source.layer for source in plan.sources] for plan in tailoring.layers]


def folded(tailoring: Tailoring) -> frozenset[int]:
    return frozenset(i for run in runs(tailoring) for i in run[1:])


@torch.no_grad()
def collapse(model: PreTrainedModel, gone: frozenset[int]) -> PreTrainedModel:
    """Fold layers of a plain model, tensor by tensor."""
    result = copy.deepcopy(model)
    for i in sorted(gone):
        anchor = max(j for j in range(i) if j not in gone)
        own, other = model.model.layers[anchor].state_dict(), model.model.layers[i].state_dict()
        for name, tensor in result.model.layers[anchor].state_dict().items():
            tensor += other[name] - own[name]
    return less(result, gone)


@torch.no_grad()
def cosine(model: PreTrainedModel, gone: frozenset[int], windows: list[Tensor]) -> float:
    values, changed = [], collapse(model, gone)
    for ids in windows:
        a, b = (
            m.model(ids[:, :-1], use_cache=False).last_hidden_state.flatten().double() for m in (model, changed)
        )
        values.append(float(torch.dot(a, b) / (a.norm() * b.norm())))
    return sum(values) / len(values)


@pytest.mark.parametrize("count", [1, 2])
def test_the_fold_that_changes_least_is_made(
    context: WarmStartContext, plain: PreTrainedModel, count: int
) -> None:
    there = in_space(context, FoldingSpace(LayerRemoval(count=count)))
    start = LaCo(Given(), context_length=16)
    windows = token_ids(start, there)
    folds = [frozenset(range(low, low + count)) for low in range(1, 7 - count)]
    (found,) = start.propose(there)
    assert folded(found) == max(folds, key=lambda fold: cosine(plain, fold, windows))


def test_steps_follow_each_other_and_no_fold_is_folded(context: WarmStartContext, plain: PreTrainedModel) -> None:
    there = in_space(context, FoldingSpace(LayerRemoval(count=3)))
    start = LaCo(Given(), merged_layers=3, context_length=16)
    windows = token_ids(start, there)
    first = max((frozenset({i, i + 1}) for i in range(1, 5)), key=lambda fold: cosine(plain, fold, windows))
    last = [
        first | {i}
        for i in range(1, 6)
        # neither folded already, nor folded into, nor into a layer that is gone
        if i not in first and i + 1 not in first and i - 1 not in first
    ]
    (found,) = start.propose(there)
    assert folded(found) == max(last, key=lambda fold: cosine(plain, fold, windows))


@pytest.mark.parametrize(("count", "merged_layers"), [(1, 2), (2, 2), (3, 2), (3, 4), (4, 6)])
def test_exactly_as_many_layers_go_and_the_proposal_is_in_the_space(
    context: WarmStartContext, count: int, merged_layers: int
) -> None:
    there = in_space(context, FoldingSpace(LayerRemoval(count=count), LayerFolding(scale=(0.0, 1.0))))
    (found,) = LaCo(Given(), merged_layers).propose(there)
    assert len(found.layers) == 6 - count
    assert sorted(i for run in runs(found) for i in run) == list(range(6))
    assert max(map(len, runs(found))) <= merged_layers
    assert all(plan.params == (("scale", 1.0),) for plan in found.layers if len(plan.sources) > 1)
    assert there.space.decode(there.space.encode(found), seed=7) == found
    assert LaCo(Given(), merged_layers).starts(there) == [found]
    there.family.stitch(found)


def test_protected_layers_are_not_folded(context: WarmStartContext) -> None:
    protect = [1, 2, 5]
    there = in_space(context, FoldingSpace(LayerRemoval(count=1, protect=protect)))
    (found,) = LaCo(Given()).propose(there)
    assert folded(found) in [frozenset(gone) for gone in combinations((3, 4), 1)]


def test_there_has_to_be_room(context: WarmStartContext) -> None:
    there = in_space(context, FoldingSpace(LayerRemoval(count=5)))
    with pytest.raises(RecipeError, match=r"LaCo folds 5 layers .* raise merged_layers"):
        LaCo(Given(), merged_layers=2).propose(there)


@pytest.mark.parametrize(
    "space", [PruningSpace(LayerRemoval(count=2)), FoldingSpace(LayerRemoval(count=2), LayerFolding(scale=0.5))]
)
def test_other_spaces_take_it_as_a_baseline_only(
    context: WarmStartContext, space: PruningSpace | FoldingSpace
) -> None:
    there = in_space(context, space)
    (found,) = LaCo(Given()).propose(there)
    assert len(folded(found)) == 2
    there.family.stitch(found)
    with pytest.raises(
        RecipeError, match=rf"LaCo \(folds of 4 layers\) proposes nothing .* this {type(space).__name__}"
    ):
        LaCo(Given()).starts(there)


def test_settings_are_checked() -> None:
    with pytest.raises(RecipeError, match="merged_layers is 2 or more, got 1"):
        LaCo(Given(), merged_layers=1)


def test_a_fold_of_two_is_the_upper_layer(context: WarmStartContext, plain: PreTrainedModel) -> None:
    there = in_space(context, FoldingSpace(LayerRemoval(count=1)))
    (found,) = LaCo(Given()).propose(there)
    (run,) = [run for run in runs(found) if len(run) == 2]
    live = there.family.stitch(found).model.layers[run[0]].state_dict()
    upper = plain.model.layers[run[1]].state_dict()
    assert all(torch.allclose(tensor, upper[name], atol=1e-5) for name, tensor in live.items())
