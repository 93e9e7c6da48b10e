"""Merge operations against mergekit 0.1.5 and closed forms."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from mergekit.merge_methods import registry as mergekit
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.slerp import slerp as mergekit_slerp
from mergekit.sparsify import magnitude
from tailorlib_strategies.operations import DARETIES, SLERP, TIES, DARELinear, Linear, TaskArithmetic
from tailorlib_strategies.operations.sparsify import drop_and_rescale, trim
from torch import Tensor

from tailorlib import MergeOperation
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import torch_generator

G = torch.Generator().manual_seed(0)
SAME = torch.randn(6, 5, generator=G)
FAMILIES: dict[str, list[Tensor]] = {  # base first
    "matrix": [torch.randn(16, 12, generator=G) for _ in range(4)],
    "two models": [torch.randn(8, 8, generator=G) for _ in range(3)],
    "vector": [torch.randn(33, generator=G) for _ in range(4)],
    "one element": [torch.randn(1, generator=G) for _ in range(4)],
    "rank 1": [torch.outer(torch.randn(7, generator=G), torch.randn(9, generator=G)) for _ in range(4)],
    "all zero": [torch.zeros(4, 4) for _ in range(4)],
    "equal models": [SAME] + [SAME + 0.5] * 3,
    "equal to the base": [SAME] * 4,
    "opposite signs": [torch.zeros(6, 5), SAME, -SAME, 0.5 * SAME],
    "large": [1e12 * torch.randn(300, 200, generator=G) for _ in range(4)],
    "bfloat16": [torch.randn(16, 12, generator=G).bfloat16() for _ in range(4)],
}


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> list[Tensor]:
    return FAMILIES[request.param]


def apply(op: MergeOperation, family: Sequence[Tensor], seed: int = 0, **params: float) -> Tensor:
    base, *tensors = family
    generators = [torch_generator(seed, f"model {i}", "a.weight") for i in range(len(tensors))]
    return op.apply(tensors, base=base, params=params, generators=generators)


def peer(method: str, family: Sequence[Tensor], **parameters: object) -> Tensor:
    """Run a mergekit method in float32; ``weight`` and ``density`` are the same for every model."""
    group = TensorGroup.from_tensors([t.float() for t in family], base_index=0)
    ids = [entry.id for entry in group.non_base]
    per_model = {k: dict.fromkeys(ids, v) for k, v in parameters.items() if k in {"weight", "density"}}
    defaults = {"int8_mask": False, "normalize": False, "rescale": False, "lambda": 1.0}
    return mergekit.get(method).merge_group(group, **{**defaults, **parameters, **per_model})


def assert_agrees(ours: Tensor, theirs: Tensor) -> None:
    if ours.dtype == torch.bfloat16:  # ours is computed in float32 and rounded once, as theirs is here
        torch.testing.assert_close(ours, theirs.bfloat16(), rtol=0.0, atol=0.0)
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("scale", [0.0, 0.35, 1.0])
def test_task_arithmetic_agrees_with_mergekit(family: list[Tensor], scale: float) -> None:
    # mergekit: weight 1 per model without normalising, our scale is its lambda
    theirs = peer("task_arithmetic", family, weight=1.0, density=1.0, **{"lambda": scale})
    assert_agrees(apply(TaskArithmetic(), family, scale=scale), theirs)


@pytest.mark.parametrize(("density", "scale"), [(1.0, 1.0), (0.5, 0.7), (0.1, 1.3)])
def test_ties_agrees_with_mergekit(family: list[Tensor], density: float, scale: float) -> None:
    if density < 1 and any(family is FAMILIES[name] for name in ("equal models", "bfloat16")):
        pytest.skip("of tied entries mergekit's unstable sort chooses which survive; ours are tested below")
    # mergekit: equal weights and normalize=True give the disjoint mean; our scale is its lambda
    theirs = peer("ties", family, weight=1.0, density=density, normalize=True, **{"lambda": scale})
    assert_agrees(apply(TIES(), family, density=density, scale=scale), theirs)


@pytest.mark.parametrize("density", [0.03, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(1,), (17,), (40, 30)])
def test_trim_agrees_with_mergekit(density: float, shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape, generator=torch_generator("trim", shape))
    assert torch.equal(trim(delta, density), magnitude(delta, density))


def test_trim_keeps_exactly_its_share_of_tied_entries_and_the_first_ones() -> None:
    delta = torch.tensor([1.0, -2.0, 1.0, 1.0, -1.0, 3.0])
    assert trim(delta, 0.5).tolist() == [1.0, -2.0, 0.0, 0.0, 0.0, 3.0]
    assert int((trim(torch.ones(1000), 0.25) != 0).sum()) == 250


def test_linear_without_tilt_is_mergekits_mean(family: list[Tensor]) -> None:
    group = TensorGroup.from_tensors([t.float() for t in family[1:]])
    weights = dict.fromkeys((entry.id for entry in group.entries), 1.0)
    (theirs,) = mergekit.get("linear")([group], parameters={"weight": weights, "normalize": True})
    assert_agrees(apply(Linear(), family, tilt=0.0), theirs)


def test_linear_reaches_each_of_two_sources_and_what_lies_between() -> None:
    _, a, b = two = FAMILIES["two models"]
    torch.testing.assert_close(apply(Linear(), two, tilt=1.0), a)
    torch.testing.assert_close(apply(Linear(), two, tilt=-1.0), b)
    torch.testing.assert_close(apply(Linear(), two, tilt=0.5), 0.75 * a + 0.25 * b)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_slerp_agrees_with_mergekit(name: str, t: float) -> None:
    family = FAMILIES[name][:3]
    a, b = (x.float() for x in family[1:])
    # mergekit batches over the leading axis: a batch of one flattens the whole tensor, as ours does
    theirs = mergekit_slerp(torch.tensor([t]), a[None], b[None])[0]
    assert_agrees(apply(SLERP(), family, t=t), theirs)


def test_slerp_of_nearly_parallel_tensors_is_the_line() -> None:
    a = torch.ones(8)
    b = a + 1e-4 * torch.arange(8.0)
    torch.testing.assert_close(apply(SLERP(), [a, a, b], t=0.25), 0.75 * a + 0.25 * b)


def test_slerp_with_a_zero_tensor_is_the_line() -> None:
    # mergekit takes the angle to a zero tensor for a right one, and scales by sin(t pi/2)
    a, b = torch.zeros(8), torch.arange(8.0)
    torch.testing.assert_close(apply(SLERP(), [a, a, b], t=0.25), 0.25 * b)


@pytest.mark.parametrize(("op", "method"), [(DARELinear(), "dare_linear"), (DARETIES(), "dare_ties")])
def test_dare_on_its_own_masks_agrees_with_mergekit(op: MergeOperation, method: str, family: list[Tensor]) -> None:
    # mergekit draws its masks from the global generator, and restores the L1 norm in place of 1 / density: hand it
    # task vectors that are dropped and rescaled already (density 1); our consensus is its normalize=True
    base, *tensors = (t.float() for t in family)
    generators = [torch_generator(0, f"model {i}", "a.weight") for i in range(len(tensors))]
    dropped = [base + drop_and_rescale(t - base, 0.5, g) for t, g in zip(tensors, generators, strict=True)]
    theirs = peer(
        method, [base, *dropped], weight=1.0, density=1.0, normalize=method == "dare_ties", **{"lambda": 0.7}
    )
    ours = apply(op, [t.float() for t in family], density=0.5, scale=0.7)
    assert_agrees(ours, theirs)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_its_density_and_the_expectation(density: float) -> None:
    delta = torch.linspace(-1.0, 2.0, 500)
    draws = torch.stack([drop_and_rescale(delta, density, torch_generator("draw", i)) for i in range(400)])
    share = float((draws[:, delta != 0] != 0).float().mean())
    assert share == pytest.approx(density, abs=4 * (density * (1 - density) / draws.numel()) ** 0.5)
    spread = delta.abs() * ((1 - density) / density / len(draws)) ** 0.5
    assert bool(((draws.mean(dim=0) - delta).abs() <= 5 * spread + 1e-6).all())


def test_dare_with_density_1_is_task_arithmetic() -> None:
    family = FAMILIES["matrix"]
    exact = apply(TaskArithmetic(), family, scale=0.4)
    torch.testing.assert_close(apply(DARELinear(), family, density=1.0, scale=0.4), exact)


def test_a_dare_mask_depends_on_seed_model_and_tensor_name_alone() -> None:
    base = torch.zeros(50)
    a, b = torch.ones(50), 2 * torch.ones(50)

    def mask(order: Sequence[str], seed: int = 0, tensor: str = "q.weight") -> Tensor:
        tensors = [{"a": a, "b": b, "c": 1e-3 * b}[m] for m in order]
        generators = [torch_generator(seed, m, tensor) for m in order]
        params = {"density": 0.5, "scale": 1.0}
        merged = DARELinear().apply(tensors, base=base, params=params, generators=generators)
        return merged.round() % 4 == 2  # a survivor of a weighs 2, one of b 4, one of c nothing

    assert torch.equal(mask("ab"), mask("ba"))
    assert torch.equal(mask("ab"), mask("ac"))
    assert torch.equal(mask("ab"), mask("cba"))
    assert not torch.equal(mask("ab"), mask("ab", seed=1))
    assert not torch.equal(mask("ab"), mask("ab", tensor="k.weight"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskArithmetic(scale=(1.0, 0.0)), "TaskArithmetic.scale"),
        (lambda: TIES(density=(0.0, 1.0)), "TIES.density"),
        (lambda: DARETIES(density=1.5), "DARETIES.density"),
        (lambda: SLERP(t=(-0.1, 1.0)), r"SLERP.t .* within \[0, 1\]"),
        (lambda: Linear(tilt=float("nan")), "Linear.tilt"),
    ],
)
def test_a_range_that_the_method_is_not_defined_for_is_refused(make, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_number_fixes_a_hyperparameter() -> None:
    distribution = TIES(density=0.3).distributions()["density"]
    assert (distribution.low, distribution.high, distribution.cardinality) == (0.3, 0.3, 1)
