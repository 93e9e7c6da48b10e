"""DARE and DELLA: how often an entry survives, what is expected of it, and what a mask depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from merge_cases import apply, peer
from mergekit.sparsify import bernoulli, della_magprune
from tailorlib_strategies.operations import DARETIES, DELLA, DARELinear, DELLALinear, TaskArithmetic
from tailorlib_strategies.operations.blocks import BLOCK
from tailorlib_strategies.operations.sparse import SparseTaskVectors
from tailorlib_strategies.operations.sparsify import drop_, drop_by_rank_
from torch import Tensor

from tailorlib.seeding import torch_generator

DRAWS = 600
SPREAD = 4.5
"""How many standard errors a mean may be off: once in 150,000 by chance, and the seeds are fixed."""
DELTA = torch.randn(6, 8, generator=torch_generator("delta"))
METHODS = [
    (DARELinear(), "dare_linear"),
    (DARETIES(), "dare_ties"),
    (DELLALinear(), "della_linear"),
    (DELLA(), "della"),
]


@pytest.fixture
def global_draws() -> Iterator[None]:
    """mergekit draws from torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        yield


def ours_dropped(density: float) -> Iterator[Tensor]:
    for i in range(DRAWS):
        delta = DELTA.clone()
        drop_(delta, density, torch_generator("draw", i), rescale=False)
        yield delta


def ours_by_rank(density: float, epsilon: float, *, rescale: bool = False) -> Iterator[Tensor]:
    for i in range(DRAWS):
        delta = DELTA.clone()
        drop_by_rank_(delta, density, epsilon, torch_generator("draw", i), rescale=rescale)
        yield delta


def off(ours: Tensor, theirs: Tensor) -> float:
    """Return how many standard errors two samples' means are apart, at the worst entry; (draws, ...) each."""
    error = ((ours.var(dim=0) + theirs.var(dim=0)) / len(ours)).sqrt()
    return float(((ours.mean(dim=0) - theirs.mean(dim=0)).abs() / (error + 1e-6)).max())


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.usefixtures("global_draws")
def test_dropping_keeps_its_density_as_mergekit_does(density: float) -> None:
    ours = torch.stack(list(ours_dropped(density))) != 0
    theirs = torch.stack([bernoulli(DELTA, density) for _ in range(DRAWS)]) != 0
    assert off(ours.float(), theirs.float()) <= SPREAD
    tolerance = SPREAD * (density * (1 - density) / ours.numel()) ** 0.5
    assert float(ours.float().mean()) == pytest.approx(density, abs=tolerance)


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.2), (0.3, 0.25), (0.8, 0.1)])
@pytest.mark.usefixtures("global_draws")
def test_dropping_by_rank_keeps_each_entry_as_often_as_mergekit_does(density: float, epsilon: float) -> None:
    ours = (torch.stack(list(ours_by_rank(density, epsilon))) != 0).float()
    theirs = (torch.stack([della_magprune(DELTA, density, epsilon) for _ in range(DRAWS)]) != 0).float()
    assert off(ours, theirs) <= SPREAD
    order = DELTA.abs().argsort(dim=-1)
    by_rank = ours.mean(dim=0).gather(-1, order).mean(dim=0)  # from the smallest of each row to the largest
    expected = torch.linspace(density - epsilon, density + epsilon, 8)
    assert bool(((by_rank - expected).abs() <= SPREAD * 0.5 / (DRAWS * 6) ** 0.5).all())


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_rescaling_keeps_the_expectation(density: float) -> None:
    for draws, p in (
        (torch.stack(list(ours_dropped(density))) / density, torch.full_like(DELTA, density)),
        (torch.stack(list(ours_by_rank(density, 0.05, rescale=True))), None),
    ):
        worst = DELTA.abs() * ((1 / (density - 0.05) - 1) / DRAWS) ** 0.5
        error = worst if p is None else DELTA.abs() * ((1 - p) / p / DRAWS) ** 0.5
        assert bool(((draws.mean(dim=0) - DELTA).abs() <= SPREAD * error + 1e-6).all())


@pytest.mark.parametrize(("op", "method"), METHODS, ids=[op.name for op, _ in METHODS])
@pytest.mark.usefixtures("global_draws")
def test_the_mean_over_seeds_is_mergekits(op: SparseTaskVectors, method: str, evidence) -> None:
    base, *tensors = family = [torch.randn(6, 8, generator=torch_generator("family", i)) for i in range(4)]
    params = {"density": 0.6, "scale": 0.8, "rescale": "l1", "weights": (1.0, 0.5, 2.0)}
    theirs = {"density": 0.6, "lambda": 0.8, "rescale": True, "weight": [1.0, 0.5, 2.0], "normalize": op.consensus}
    if "della" in method:
        params["epsilon"] = theirs["epsilon"] = 0.2
    if op.consensus:
        params["normalize"] = True
    ours = torch.stack([apply(op, family, seed, **params) for seed in range(DRAWS)])
    distance = off(ours, torch.stack([peer(method, tensors, base, **theirs) for _ in range(DRAWS)]))
    assert distance <= SPREAD
    evidence.record("merges", op.name, over_seeds=f"means of {DRAWS} agree to {distance:.1f} standard errors")


@pytest.mark.parametrize("op", [DARELinear(), DELLALinear()], ids=lambda op: op.name)
def test_a_density_of_1_is_task_arithmetic(op: SparseTaskVectors) -> None:
    family = [torch.randn(5, 7, generator=torch_generator("whole", i)) for i in range(4)]
    exact = apply(TaskArithmetic(), family, scale=0.4)
    assert torch.equal(apply(op, family, density=1.0, scale=0.4), exact)


@pytest.mark.parametrize("drop", [drop_, lambda *args, **kw: drop_by_rank_(args[0], args[1], 0.1, args[2], **kw)])
@pytest.mark.parametrize("density", [0.0, -0.5])
def test_a_density_of_zero_keeps_nothing(drop: Callable[..., None], density: float) -> None:
    delta = torch.ones(5)
    drop(delta, density, torch_generator("none"), rescale=True)
    assert delta.tolist() == [0.0] * 5


def test_an_epsilon_that_leaves_the_unit_interval_is_cut_and_the_density_stays() -> None:
    kept = torch.stack(list(ours_by_rank(0.9, 0.4))) != 0
    by_rank = kept.float().mean(dim=0).gather(-1, DELTA.abs().argsort(dim=-1)).mean(dim=0)
    assert by_rank[-1] == 1.0
    assert float(by_rank.mean()) == pytest.approx(0.9, abs=SPREAD * (0.09 / kept.numel()) ** 0.5)


def test_rows_of_one_entry_have_the_density() -> None:
    # mergekit 0.1.5 divides zero by zero here
    kept = 0
    for i in range(DRAWS):
        delta = torch.ones(6, 1)
        drop_by_rank_(delta, 0.5, 0.2, torch_generator("draw", i), rescale=False)
        kept += int(delta.sum())
    assert kept / (6 * DRAWS) == pytest.approx(0.5, abs=SPREAD * 0.5 / (6 * DRAWS) ** 0.5)


def test_a_mask_is_drawn_alike_in_one_block_and_in_many() -> None:
    n = 2 * BLOCK + 3
    delta = torch.ones(n)
    drop_(delta, 0.5, torch_generator("blocks"), rescale=False)
    assert torch.equal(delta, (torch.rand(n, generator=torch_generator("blocks")) < 0.5).float())


@pytest.mark.parametrize("op", [DARELinear(), DELLALinear()], ids=lambda op: op.name)
def test_a_mask_depends_on_seed_model_and_tensor_name_alone(op: SparseTaskVectors) -> None:
    base = torch.zeros(5, 10)
    a, b = torch.ones(5, 10), 2 * torch.ones(5, 10)

    def mask(order: Sequence[str], seed: int = 0, tensor: str = "q.weight") -> Tensor:
        tensors = [{"a": a, "b": b, "c": 1e-3 * b}[m] for m in order]
        generators = [torch_generator(seed, m, tensor) for m in order]
        params = {n: d.default for n, d in op.distributions().items()}
        params |= {"density": 0.5, "scale": 1.0, "rescale": "none"}
        merged = op.apply(tensors, base=base, params=params, generators=generators)
        return merged.round() % 2 == 1  # a survivor of a weighs 1, one of b 2, one of c nothing

    assert torch.equal(mask("ab"), mask("ba"))
    assert torch.equal(mask("ab"), mask("ac"))
    assert torch.equal(mask("ab"), mask("cba"))
    assert not torch.equal(mask("ab"), mask("ab", seed=1))
    assert not torch.equal(mask("ab"), mask("ab", tensor="k.weight"))
