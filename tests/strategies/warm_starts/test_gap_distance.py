"""GapDistance: the removal of the least sum of distances, against all removals one by one."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from tailorlib_strategies.operations import LayerRemoval
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.warm_starts import GapDistance
from tailorlib_strategies.warm_starts.gap_distance import least_removal
from transformers import AutoModelForCausalLM
from warm_start_cases import Given, in_space

from tailorlib import WarmStartContext
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import numpy_generator


def cost(distances: list[list[float]], removed: tuple[int, ...]) -> float:
    """Return the sum of the distances of a removal's gaps."""
    number = len(distances) - 1
    kept = [-1, *(i for i in range(number) if i not in removed), number]
    return sum(distances[a + 1][b] for a, b in pairwise(kept) if b > a + 1)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_best_of_all_removals(seed: int) -> None:
    number, size, free = 9, 4, (0, 2, 3, 4, 5, 6, 8)
    distances = numpy_generator(seed, "distances").random((number + 1, number + 1)).tolist()
    every = {removed: cost(distances, removed) for removed in combinations(free, size)}
    found = least_removal(distances, size, free)
    assert cost(distances, found) == pytest.approx(min(every.values()))
    assert found in every


def test_too_few_layers_are_told() -> None:
    with pytest.raises(RecipeError, match="removes 3 of the layers \\[1, 2\\]: there are too few"):
        least_removal([[0.0] * 5] * 5, 3, (1, 2))


def test_distances_are_those_of_transformers_own_hidden_states(three: WarmStartContext) -> None:
    there = in_space(three, PruningSpace(LayerRemoval(count=2)))
    start = GapDistance(Given(), context_length=16, max_tokens=60)
    model = AutoModelForCausalLM.from_pretrained(there.family.source.folder, dtype=torch.float64).eval()
    states: list[list[torch.Tensor]] = [[] for _ in range(7)]
    for i, module in enumerate((*model.model.layers, model.model.norm)):
        module.register_forward_pre_hook(
            lambda _, args, kwargs, i=i: states[i].append((args[0] if args else kwargs["hidden_states"])[0, 1:]),
            with_kwargs=True,
        )
    with torch.no_grad():
        for window in start.windows(there):
            model(torch.tensor([[*window.request.context, *window.request.continuation]]))
    streams = [torch.cat(found) for found in states]
    found = start.distances(there)
    for a in range(7):
        for b in range(a + 1, 7):
            spread = (streams[b] - streams[b].mean(0)).square().sum()
            assert found[a][b] == pytest.approx(float((streams[b] - streams[a]).square().sum() / spread), rel=1e-4)
