"""Selection by magnitude: exact against a sort, whatever the values and however many blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mergekit.sparsify import magnitude, magnitude_outliers
from tailorlib_strategies.operations.blocks import BLOCK, blocks
from tailorlib_strategies.operations.ranking import Largest, kth_largest
from tailorlib_strategies.operations.sparsify import trim_, trim_both_ends_
from torch import Tensor

from tailorlib.seeding import torch_generator

N = 2 * BLOCK + 77


def draw(n: int = N) -> Tensor:
    return torch.randn(n, generator=torch_generator("ranking"))


VALUES: dict[str, Callable[[], Tensor]] = {
    "random": draw,
    "bfloat16": lambda: draw().bfloat16().float(),
    "few values": lambda: draw().round(),
    "constant": lambda: torch.full((N,), -0.25),
    "mostly zero": lambda: draw() * (draw() > 2),
    "sorted": lambda: draw().sort().values,
    "sampled at the outliers": lambda: torch.where(torch.arange(N) % 64 == 0, 100.0, draw()),
    "small": lambda: draw(50),
    "tiny numbers": lambda: 1e-42 * draw().round(),
    "large numbers": lambda: 1e38 * draw().clamp(-3, 3),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("share", [0.0, 0.003, 0.3, 0.5, 0.995, 1.0])
def test_the_threshold_and_its_counts_are_those_of_a_sort(name: str, share: float) -> None:
    values = VALUES[name]()
    k = max(1, int(share * len(values)))
    expected = values.abs().sort(descending=True).values[k - 1]
    threshold, above, tied = kth_largest(values, k)
    assert threshold == float(expected)
    assert above == int((values.abs() > expected).sum())
    assert tied == int((values.abs() == expected).sum())


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("share", [0.0, 0.003, 0.3, 0.5, 0.995, 1.0])
def test_the_first_of_tied_entries_survive(name: str, share: float) -> None:
    values = VALUES[name]()
    k = int(share * len(values))
    order = values.abs().sort(descending=True, stable=True).indices[:k]
    expected = torch.zeros_like(values)
    expected[order] = (values[order] != 0).float()
    largest = Largest(values, k)
    assert torch.equal(torch.cat([largest.mask(block) for (block,) in blocks(values)]), expected)


@pytest.mark.parametrize("density", [0.03, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(1,), (17,), (40, 30), (400, 500)])
def test_trim_agrees_with_mergekit(density: float, shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape, generator=torch_generator("trim", shape)).double().float()
    assert len(delta.abs().unique()) > 0.98 * delta.numel()
    trimmed = delta.clone()
    trim_(trimmed, density)
    assert (
        float((trimmed != magnitude(delta, density)).float().mean()) <= 2 / delta.numel()
    )  # a tie at the threshold


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.0), (0.5, 0.1), (0.9, 0.3), (0.2, 0.9), (1.0, 0.5)])
def test_trimming_both_ends_agrees_with_mergekit(density: float, gamma: float) -> None:
    delta = torch.randn(40, 30, generator=torch_generator("both ends"))
    trimmed = delta.clone()
    trim_both_ends_(trimmed, density, gamma)
    assert torch.equal(trimmed, magnitude_outliers(delta, density, gamma=gamma))


def test_trim_keeps_exactly_its_share_of_tied_entries_and_the_first_ones() -> None:
    delta = torch.tensor([1.0, -2.0, 1.0, 1.0, -1.0, 3.0])
    trim_(delta, 0.5)
    assert delta.tolist() == [1.0, -2.0, 0.0, 0.0, 0.0, 3.0]


def test_trimming_both_ends_counts_tied_entries_from_the_first() -> None:
    delta = torch.tensor([1.0, -2.0, 2.0, 1.0, 1.0, -2.0])
    trim_both_ends_(delta, 0.5, 0.34)
    assert delta.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0, -2.0]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_positive_density_keeps_an_entry_of_the_smallest_tensor(n: int) -> None:
    # mergekit 0.1.5 keeps none: floor(0.3 n) = 0 entries from the top
    delta = torch.arange(1.0, n + 1)
    assert not bool(magnitude_outliers(delta, 0.3, gamma=0.01).any())
    trim_both_ends_(delta, 0.3, 0.01)
    assert delta.tolist() == [0.0] * (n - 1) + [float(n)]


@pytest.mark.parametrize("density", [0.0, -1.0])
def test_a_density_of_zero_keeps_nothing(density: float) -> None:
    delta = torch.ones(4)
    trim_(delta, density)
    assert not bool(delta.any())
