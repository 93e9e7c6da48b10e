from __future__ import annotations

import math

import pytest
import torch
from tailorlib_strategies.operations import LayerRemoval
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.warm_starts import AngularDistance
from transformers import PreTrainedModel
from warm_start_cases import Given, VaryingRemoval, in_space, removed, states, token_ids

from tailorlib import WarmStartContext
from tailorlib.exceptions import EvaluationError, RecipeError


def test_distances_are_those_of_the_plain_model(context: WarmStartContext, plain: PreTrainedModel) -> None:
    start = AngularDistance(Given(), context_length=16)
    windows = token_ids(start, context)
    total = torch.zeros(7, 7, dtype=torch.float64)
    for ids in windows:
        last = states(plain, ids[:, :-1])[:, -1]
        for low in range(7):
            for high in range(7):
                cosine = torch.dot(last[low], last[high]) / (last[low].norm() * last[high].norm())
                total[low, high] += math.acos(min(1.0, float(cosine))) / math.pi
    expected = total / len(windows)
    assert torch.allclose(torch.tensor(start.distances(context)).double(), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_block_of_least_distance_goes(context: WarmStartContext, count: int) -> None:
    there = in_space(context, PruningSpace(LayerRemoval(count=count)))
    start = AngularDistance(Given())
    distances = start.distances(there)
    best = min(range(6 - count + 1), key=lambda low: distances[low][low + count])
    (found,) = start.propose(there)
    assert removed(found) == tuple(range(best, best + count))
    assert found.models == ("base",)


def test_blocks_respect_protection_and_ties_go_to_the_lowest(
    context: WarmStartContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [[0.1 * abs(low - high) for high in range(7)] for low in range(7)]
    monkeypatch.setattr(AngularDistance, "distances", lambda *_: table)
    there = in_space(context, PruningSpace(LayerRemoval(count=2, protect=[0, 2, 5])))
    assert [removed(t) for t in AngularDistance(Given()).propose(there)] == [(3, 4)]
    assert [removed(t) for t in AngularDistance(Given()).propose(context)] == [(1, 2)]
    scattered = in_space(context, PruningSpace(LayerRemoval(count=2, protect=[1, 3, 5])))
    with pytest.raises(RecipeError, match=r"2 of them; got no such block among .*\[0, 2, 4\]"):
        AngularDistance(Given()).propose(scattered)


def test_blocks_come_in_the_sizes_of_the_space(context: WarmStartContext) -> None:
    there = in_space(context, PruningSpace(VaryingRemoval(0, 3)))
    assert [len(removed(t)) for t in AngularDistance(Given()).propose(there)] == [0, 1, 3]


def test_nan_is_refused(context: WarmStartContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tailorlib_strategies.warm_starts.angular_distance.last_token_states",
        lambda *_: torch.full((7, 3, 4), math.nan),
    )
    with pytest.raises(EvaluationError, match="NaN"):
        AngularDistance(Given()).propose(context)
