"""Merge operations at the edges: closed forms, what their settings mean, and where mergekit 0.1.5 goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from merge_cases import apply, generators, peer
from tailorlib_strategies.operations import (
    DARETIES,
    DELLA,
    RAM,
    SCE,
    SLERP,
    TIES,
    ArceeFusion,
    Breadcrumbs,
    DARELinear,
    Karcher,
    LayerFolding,
    Linear,
    ModelStock,
    MultiSLERP,
    NearSwap,
    NuSLERP,
    RAMPlus,
    TaskArithmetic,
    TaskMultiSLERP,
    TaskNuSLERP,
)
from torch import Tensor
from torch.testing import assert_close

from tailorlib import MergeOperation
from tailorlib.exceptions import PluginError, RecipeError
from tailorlib.seeding import torch_generator


def draw(*shape: int, name: object = "") -> Tensor:
    return torch.randn(shape, generator=torch_generator("merges", name, shape))


def family(number: int = 3, shape: Sequence[int] = (6, 5)) -> list[Tensor]:
    """Return a base and fine-tunes."""
    base = draw(*shape, name="base")
    return [base, *(base + 0.3 * draw(*shape, name=i) for i in range(number))]


EVERY: list[MergeOperation] = [
    Linear(),
    TaskArithmetic(),
    TIES(),
    Breadcrumbs(),
    MultiSLERP(),
    TaskMultiSLERP(),
    Karcher(),
    ModelStock(),
    ModelStock(filter_wise=True),
    SCE(),
    RAM(),
    LayerFolding(),
    SLERP(),
    NuSLERP(vectors="rows"),
    TaskNuSLERP(vectors="columns"),
]


@pytest.mark.parametrize("op", EVERY, ids=lambda op: op.name)
def test_equal_models_merge_to_themselves(op: MergeOperation) -> None:
    same = draw(6, 5)
    assert_close(apply(op, [same, same, same, same]), same, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", [Linear(), TIES(), TaskMultiSLERP(), Karcher(), ModelStock(), SCE(), RAM()])
def test_the_order_of_the_sources_does_not_matter(op: MergeOperation) -> None:
    base, a, b, c = family()
    assert_close(apply(op, [base, a, b, c]), apply(op, [base, c, a, b]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
@pytest.mark.parametrize("op", [op for op in EVERY if not isinstance(op, RAM)], ids=lambda op: op.name)
def test_the_size_of_the_numbers_does_not_matter(op: MergeOperation, factor: float) -> None:
    # mergekit 0.1.5 compares lengths and squares with fixed numbers in SCE, ModelStock and Karcher
    tensors = family()
    assert_close(
        apply(op, [factor * t for t in tensors]), factor * apply(op, tensors), rtol=1e-4, atol=1e-6 * factor
    )


@pytest.mark.parametrize("op", EVERY, ids=lambda op: op.name)
def test_how_a_tensor_lies_in_memory_does_not_matter(op: MergeOperation) -> None:
    tensors = family(shape=(120, 50))
    strided = [torch.stack([t, t], dim=-1)[..., 0] for t in tensors]
    shifted = [torch.cat([torch.zeros(1), t.flatten()])[1:].view(t.shape) for t in tensors]
    assert not strided[0].is_contiguous()
    assert shifted[0].data_ptr() % 64 != tensors[0].data_ptr() % 64
    assert torch.equal(apply(op, strided), apply(op, tensors))
    assert torch.equal(apply(op, shifted), apply(op, tensors))


@pytest.mark.parametrize(
    "op", [TIES(rescale="l1"), SLERP(), TaskMultiSLERP(), Karcher(), ModelStock(), SCE(), DELLA(rescale="l1")]
)
def test_the_number_of_threads_does_not_matter(op: MergeOperation) -> None:
    tensors, before, merged = family(shape=(700, 300)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            merged.append(apply(op, tensors))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(merged[0], merged[1])
    assert torch.equal(merged[0], merged[2])


def test_linear_weighs_its_sources() -> None:
    _, a, b, c = tensors = family()
    assert_close(apply(Linear(), tensors, weights=(1.0, 0.0, 0.0)), a)
    assert_close(apply(Linear(), tensors, weights=(1.0, 2.0, 1.0)), 0.25 * a + 0.5 * b + 0.25 * c)
    assert_close(apply(Linear(normalize=False), tensors, weights=(1.0, -1.0, 0.5)), a - b + 0.5 * c)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (1.0, -2.0, 1.0)])
def test_weights_that_sum_to_zero_count_as_equal(weights: tuple[float, ...]) -> None:
    tensors = family()
    assert_close(apply(Linear(), tensors, weights=weights), sum(tensors[1:]) / 3)
    assert not bool(peer("linear", tensors[1:], weight=list(weights), normalize=True).isfinite().all())


def test_a_method_of_task_vectors_takes_one_source() -> None:
    base, a = family(1)
    delta = a - base
    trimmed = torch.where(delta.abs() >= delta.abs().flatten().sort().values[15], delta, 0.0)
    assert_close(apply(TaskArithmetic(), [base, a], scale=0.3, weights=(2.0,)), base + 0.6 * delta)
    assert_close(apply(TIES(), [base, a], density=0.5, scale=1.0), base + trimmed)
    assert_close(apply(TIES(), [base, a], density=0.5, scale=1.0, weights=(-1.0,)), base + trimmed)
    assert_close(apply(TIES(normalize=False), [base, a], density=0.5, scale=1.0, weights=(-1.0,)), base - trimmed)
    assert_close(apply(TaskMultiSLERP(), [base, a]), a)
    assert_close(apply(SCE(), [base, a], select_topk=1.0), a)
    assert torch.equal(apply(SCE(), [base, a], select_topk=0.9), base)  # one source doesn't vary
    assert_close(apply(RAM(), [base, a]), a)


def test_each_source_can_have_a_density_of_its_own() -> None:
    base, a, b = family(2)
    merged = apply(TIES(normalize=False), [base, a, b], density=(1.0, 0.0), scale=1.0)
    assert_close(merged, a)
    with pytest.raises(PluginError, match="density is a number or one number for each of the 2 sources"):
        apply(TIES(), [base, a, b], density=(0.5, 0.5, 0.5))


def test_weights_decide_the_sign() -> None:
    base, a = torch.zeros(3), torch.tensor([1.0, -1.0, 2.0])
    b = torch.tensor([-3.0, -3.0, 1.0])
    merged = apply(TIES(), [base, a, b], density=1.0, scale=1.0, weights=(4.0, 1.0))
    assert_close(merged, torch.tensor([1.0, -7 / 5, 9 / 5]))


def test_a_draw_of_signs_is_positive() -> None:
    merged = apply(
        TIES(), [torch.zeros(2), torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 2.0])], density=1.0, scale=1.0
    )
    assert merged.tolist() == [1.0, 2.0]


def test_weights_that_cancel_divide_by_one() -> None:
    base, a = torch.zeros(2), torch.tensor([1.0, 2.0])
    merged = apply(TIES(), [base, a, -a], density=1.0, scale=1.0, weights=(0.3, -0.3))
    assert_close(merged, 0.6 * a)


def test_rescaling_restores_the_l1_norm() -> None:
    base, a = family(1)
    merged = apply(TIES(rescale="l1"), [base, a], density=0.3, scale=1.0)
    assert float((merged - base).abs().sum()) == pytest.approx(float((a - base).abs().sum()), rel=1e-5)


def test_slerp_of_nearly_parallel_tensors_is_the_line() -> None:
    a = torch.ones(8)
    b = a + 1e-4 * torch.arange(8.0)
    assert_close(apply(SLERP(), [a, a, b], t=0.25), 0.75 * a + 0.25 * b)


@pytest.mark.parametrize("op", [SLERP(), NuSLERP(), NuSLERP(vectors="rows"), TaskNuSLERP(vectors="columns")])
def test_zeros_are_at_a_right_angle_to_all(op: MergeOperation) -> None:
    zero, b = torch.zeros(3, 4), draw(3, 4)
    params = {"t": 0.25} if isinstance(op, SLERP) else {"weights": (3.0, 1.0)}
    assert_close(apply(op, [zero, zero, b], **params), math.sin(0.125 * math.pi) * b)


@pytest.mark.parametrize("vectors", ["rows", "columns"])
def test_nuslerp_takes_every_row_or_column_for_itself(vectors: str) -> None:
    _, a, b = tensors = family(2)
    merged = apply(NuSLERP(vectors=vectors), tensors, weights=(1.0, 3.0))
    for i in range(5):
        part = (slice(None), i) if vectors == "columns" else i
        assert_close(merged[part], apply(SLERP(), [a[part], a[part], b[part]], t=0.75))


@pytest.mark.parametrize("vectors", ["tensor", "rows", "columns"])
def test_nuslerp_of_opposites_is_the_line(vectors: str) -> None:
    a = draw(6, 5)
    merged = apply(NuSLERP(vectors=vectors), [a, a, -a], weights=(0.75, 0.25))
    assert_close(merged, 0.5 * a, rtol=1e-5, atol=1e-6)


def test_multislerp_of_balanced_antipodes_is_the_weighted_mean() -> None:
    a, b = draw(4, 4), draw(4, 4, name="b")
    merged = apply(MultiSLERP(), [a, a, -2 * a, b], weights=(1.0, 1.0, 0.0))
    assert_close(merged, -0.5 * a)
    with pytest.raises(ValueError, match="antipodal"):
        peer("multislerp", [a, -2 * a, b], weight=[1.0, 1.0, 0.0])


@pytest.mark.parametrize("op", [MultiSLERP(), Karcher()], ids=lambda op: op.name)
def test_the_mean_of_two_directions_is_between_them_at_the_mean_length(op: MergeOperation) -> None:
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    assert_close(apply(op, [a, a, b]), 3 * torch.tensor([0.5**0.5, 0.5**0.5, 0.0]))


def test_karcher_is_where_the_angles_balance() -> None:
    # on one arc the mean angle, which the mean of the directions isn't
    angles = torch.tensor([0.0, 0.2, 1.6], dtype=torch.float64)
    points = [torch.tensor([math.cos(x), math.sin(x)], dtype=torch.float32) for x in angles]
    merged = apply(Karcher(max_iter=100, tol=1e-9), [points[0], *points], weights=(1.0, 2.0, 1.0))
    assert math.atan2(merged[1], merged[0]) == pytest.approx(0.5, abs=1e-6)
    assert float(merged.norm()) == pytest.approx(1.0, abs=1e-6)


def test_karcher_is_not_pulled_by_an_opposite() -> None:
    a = draw(6, 5)
    assert_close(apply(Karcher(), [a, a, -a, 0.5 * a]), (2.5 / 3) * a)


def test_model_stock_goes_by_the_angle() -> None:
    zero, a = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    b, c = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert_close(apply(ModelStock(), [zero, a, b]), zero)  # a right angle: the base
    assert_close(apply(ModelStock(), [zero, a, a]), a)
    cosine = 0.5**0.5
    assert_close(apply(ModelStock(), [zero, a, c]), 2 * cosine / (1 + cosine) * (a + c) / 2)
    assert_close(apply(ModelStock(), [zero, a, -a]), zero)


def test_model_stock_of_short_task_vectors_is_not_taken_for_orthogonal() -> None:
    base, a, b = family(2)
    tensors = [base, a, a + 0.1 * (b - base)]
    short = [1e-5 * t for t in tensors]
    exact = 1e-5 * apply(ModelStock(), tensors)
    assert_close(apply(ModelStock(), short), exact, rtol=1e-4, atol=1e-10)
    assert_close(peer("model_stock", short[1:], short[0]), short[0], rtol=1e-2, atol=1e-10)  # the base stays


def test_sce_weighs_by_mean_squares_however_small() -> None:
    base, a, b = torch.zeros(4), torch.full((4,), 1e-4), torch.full((4,), 3e-4)
    expected = torch.full((4,), (1e-4 * 1 + 3e-4 * 9) / 10)
    assert_close(apply(SCE(), [base, a, b], select_topk=1.0), expected, rtol=1e-5, atol=0.0)
    theirs = peer("sce", [a, b], base, select_topk=1.0)  # equal weights
    assert_close(theirs, torch.full((4,), 2e-4), rtol=1e-5, atol=0.0)


def test_sce_takes_what_a_source_of_little_weight_alone_changed() -> None:
    base, a = torch.zeros(2), torch.tensor([1e3, 0.0])
    merged = apply(SCE(), [base, a, torch.tensor([0.0, 0.1]), base], select_topk=1.0)
    assert_close(merged, torch.tensor([1e3, 0.1]))


def test_sce_selects_where_sources_differ() -> None:
    base = torch.zeros(5)
    a, b = torch.tensor([1.0, 1.0, 1.0, 1.0, 4.0]), torch.tensor([1.0, 1.5, 3.0, 1.0, 1.0])
    merged = apply(SCE(), [base, a, b], select_topk=0.7)  # floor(0.7 * 3) = 2 of the 3 entries that vary
    weight = torch.tensor([1.0 + 16.0, 9.0 + 1.0])
    both = [(weight[0] * x + weight[1] * y) / weight.sum() for x, y in ((1.0, 3.0), (4.0, 1.0))]
    assert_close(merged, torch.tensor([0.0, 0.0, both[0], 0.0, both[1]]))


def test_nearswap_moves_no_farther_than_t() -> None:
    base, source = torch.tensor([0.0, 1.0, -1.0, 5.0]), torch.tensor([0.05, 2.0, -4.0, 5.0])
    assert_close(apply(NearSwap(), [base, source], t=0.1), torch.tensor([0.05, 1.1, -1.1, 5.0]))
    assert torch.equal(apply(NearSwap(), [base, source], t=0.0), base)


def test_ram_reinforces_what_one_source_alone_changed() -> None:
    base = torch.zeros(5)
    a, b = torch.tensor([1.0, 2.0, 0.0, 4.0, 1e-6]), torch.tensor([3.0, 0.0, 6.0, 0.0, 0.0])
    assert_close(apply(RAM(), [base, a, b], epsilon=1e-5), torch.tensor([2.0, 2.0, 6.0, 4.0, 0.0]))
    merged = apply(RAMPlus(), [base, a, b], epsilon=1e-5, r=0.5, alpha=0.8)  # rho is 1/2 and 1/1
    assert_close(merged, torch.tensor([2.0, 2.5, 6 * 1.4, 5.0, 0.0]))


def test_arcee_fusion_takes_quantiles_of_all_entries() -> None:
    base = draw(1100, 1000)
    source = base + 0.1 * draw(1100, 1000, name="source")
    p, q = source.softmax(dim=-1) + 1e-8, base.softmax(dim=-1) + 1e-8
    scores = (source - base).abs() * (p * (p / q).log()).sum(dim=-1, keepdim=True)
    ranked, last = scores.flatten().sort().values, scores.numel() - 1
    lower, median, upper = (float(ranked[last * i // 4]) for i in (1, 2, 3))
    expected = torch.where(scores >= median + 1.5 * (upper - lower), source, base)
    merged = apply(ArceeFusion(), [base, source])
    assert int((merged != expected).sum()) <= 5  # scores within rounding of the threshold
    assert 0.01 < float((merged != base).float().mean()) < 0.2


def test_folding_adds_what_the_other_layers_are_more_than_the_first() -> None:
    _, a, b, c = tensors = family()
    assert_close(apply(LayerFolding(), tensors), b + c - a)
    assert_close(apply(LayerFolding(), tensors, scale=0.5), 0.5 * b + 0.5 * c)
    assert torch.equal(apply(LayerFolding(), tensors, scale=0.0), a)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskArithmetic(scale=(1.0, 0.0)), "TaskArithmetic.scale"),
        (lambda: TIES(density=(0.0, 1.0)), "TIES.density"),
        (lambda: DARETIES(density=1.5), "DARETIES.density"),
        (lambda: SLERP(t=(-0.1, 1.0)), r"SLERP.t .* within \[0, 1\]"),
        (lambda: Linear(weights=float("nan")), "Linear.weights"),
        (lambda: TIES(rescale="density"), "TIES.rescale is one of none, l1, got density"),
        (lambda: TaskNuSLERP(vectors="row"), "TaskNuSLERP.vectors is one of tensor, rows, columns"),
        (lambda: Karcher(max_iter=0), "Karcher.max_iter is 1 or more"),
        (lambda: DELLA(epsilon=0.7), r"DELLA.epsilon .* within \[0, 0.5\]"),
        (lambda: SCE(select_topk=0.0), "SCE.select_topk"),
    ],
)
def test_a_setting_that_the_method_is_not_defined_for_is_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_word_that_a_tailoring_has_wrong_is_refused() -> None:
    with pytest.raises(PluginError, match="rescale is one of none, density, l1, got 'l2'"):
        apply(DARELinear(), family(), rescale="l2")
    with pytest.raises(PluginError, match="vectors is one of tensor, rows, columns"):
        apply(NuSLERP(), family(), vectors="row")


def test_a_number_fixes_a_hyperparameter_and_a_pair_is_searched() -> None:
    distribution = TIES(density=0.3).distributions()["density"]
    assert (distribution.low, distribution.high, distribution.cardinality) == (0.3, 0.3, 1)
    searched = NearSwap(t=(1e-4, 1e-2)).distributions()["t"]
    assert searched.log and searched.decode((0.5,)) == pytest.approx(1e-3)
    assert NearSwap(t=0.0).distributions()["t"].contains(0.0)


def test_settings_of_a_recipe_reach_the_tailoring() -> None:
    op = TIES(normalize=False, rescale="l1")
    params = {name: distribution.default for name, distribution in op.distributions().items()}
    assert (params["normalize"], params["rescale"]) == (False, "l1")
    base, *tensors = family()
    made = [m.apply(tensors, base=base, params=params, generators=generators(3)) for m in (op, TIES())]
    assert torch.equal(*made)
