"""RegMean and Fisher against closed forms: least squares on the data, and averages written out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from merge_cases import ALL, deviation
from tailorlib_strategies.operations import Fisher, RegMean
from tailorlib_strategies.operations.informed import fisher_mean, regression_mean
from torch import Tensor

from tailorlib import MergeOperation
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import torch_generator

K, IN, OUT, ROWS = 3, 12, 7, 60


def draw(*shape: int, name: str = "") -> Tensor:
    return torch.randn(shape, generator=torch_generator("informed", name, shape), dtype=torch.float64)


def data() -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs X_k [ROWS, IN], of a spread of scales and correlated, and weights W_k [OUT, IN]."""
    mix = draw(IN, IN, name="mix") * torch.logspace(-1.5, 1.5, IN, dtype=torch.float64)
    X = [draw(ROWS, IN, name=f"x{k}") @ mix * (1 + k) for k in range(K)]
    return X, [draw(OUT, IN, name=f"w{k}") for k in range(K)]


def grams(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.T @ x / len(x) for x in inputs]


def apply(
    op: MergeOperation, tensors: Sequence[Tensor], statistics: Sequence[Tensor | None] = (), **params: object
) -> Tensor:
    generators = [torch_generator(0, k) for k in range(len(tensors))]
    narrow = [s if s is None else s.float() for s in statistics]
    wide = [t.float() for t in tensors]
    return op.apply(wide, base=None, params=params, generators=generators, statistics=narrow)


def least_squares(inputs: Sequence[Tensor], thetas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the W that minimises sum_k w_k |X_k W^T - X_k W_k^T|^2."""
    rows = torch.cat([w**0.5 * x for x, w in zip(inputs, weights, strict=True)])
    wanted = torch.cat([w**0.5 * x @ theta.T for x, theta, w in zip(inputs, thetas, weights, strict=True)])
    return torch.linalg.lstsq(rows, wanted).solution.T


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 3.0, 1.0), (0.0, 1.0, 1.0)])
def test_regmean_is_the_least_squares_solution(weights: tuple[float, ...]) -> None:
    X, W = data()
    best = least_squares(X, W, weights)
    shares = [w / sum(weights) for w in weights]
    torch.testing.assert_close(regression_mean(W, grams(X), shares, 1.0), best, rtol=1e-7, atol=1e-7)
    found = apply(RegMean(), W, grams(X), alpha=1.0, weights=weights)  # from float32 weights and Gram matrices
    mean = sum(w * t for w, t in zip(shares, W, strict=True))
    loss = [
        sum(w * float(((x @ (t - theta).T) ** 2).sum()) for x, theta, w in zip(X, W, weights, strict=True))
        for t in (best, found.double(), mean)
    ]
    assert loss[1] - loss[0] <= 1e-4 * (loss[2] - loss[0])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_regmean_shrinks_the_off_diagonal_entries(alpha: float) -> None:
    X, W = data()
    scaled = [alpha * g + (1 - alpha) * g.diagonal().diag() for g in grams(X)]
    expected = torch.linalg.solve(sum(scaled), sum(g @ w.T for g, w in zip(scaled, W, strict=True))).T
    torch.testing.assert_close(regression_mean(W, grams(X), [1 / K] * K, alpha), expected, rtol=1e-9, atol=1e-9)
    found = apply(RegMean(), W, grams(X), alpha=alpha)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_regmean_with_alpha_0_weighs_each_input_by_its_energy() -> None:
    X, W = data()
    energy = torch.stack([(x**2).sum(0) for x in X])  # [K, IN]
    expected = (energy[:, None] * torch.stack(W)).sum(0) / energy.sum(0)
    torch.testing.assert_close(apply(RegMean(), W, grams(X), alpha=0.0).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_equal_models_stay_as_they_are(alpha: float) -> None:
    X, W = data()
    same = [W[0].float()] * K
    assert torch.equal(apply(RegMean(), same, grams(X), alpha=alpha), same[0])
    torch.testing.assert_close(apply(Fisher(), same, [x[:OUT] ** 2 for x in X]), same[0], rtol=2e-7, atol=0.0)


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_where_no_input_points_regmean_is_the_mean_and_elsewhere_it_solves(alpha: float) -> None:
    # three rows for each model span 6 of the 12 dimensions, and one of the inputs is always zero
    X = [draw(3, IN, name=f"few{k}") for k in range(2)]
    for x in X:
        x[:, -1] = 0.0
    W = data()[1][:2]
    mean = (W[0] + W[1]) / 2
    found = apply(RegMean(), W, grams(X), alpha=alpha).double()
    torch.testing.assert_close(found[:, -1], mean[:, -1], rtol=1e-6, atol=1e-6)
    assert float(found.abs().max()) < 5 * float(torch.stack(W).abs().max())
    if alpha == 1.0:  # every model's outputs can be had at once
        for x, theta in zip(X, W, strict=True):
            assert float((x @ (found - theta).T).norm()) < 1e-3 * float((x @ (mean - theta).T).norm())
        scale = sum(g.diagonal() for g in grams(X)).sqrt()[:-1]  # the correction is the shortest in this unit
        correction = (found - mean)[:, :-1] * scale
        seen = torch.linalg.svd(torch.cat(X)[:, :-1] / scale, full_matrices=False).Vh  # [6, IN - 1]
        unseen = correction - correction @ seen.T @ seen  # what float32 leaves of nothing
        assert float(unseen.norm()) < 0.05 * float(correction.norm())


def test_regmean_does_not_depend_on_the_inputs_unit() -> None:
    X, W = data()
    small, large = (apply(RegMean(), W, [s * g for g in grams(X)], alpha=1.0) for s in (2.0**-60, 2.0**60))
    torch.testing.assert_close(small, large, rtol=1e-6, atol=1e-6)


def test_a_gram_matrix_that_rounding_made_indefinite_is_solved_all_the_same() -> None:
    x = draw(2, IN, name="few")
    gram = (x.T @ x).float()
    gram -= 1e-4 * torch.eye(IN)
    assert float(torch.linalg.eigvalsh(gram.double())[0]) < -5e-5
    _, W = data()
    found = apply(RegMean(), W[:2], [gram, gram], alpha=1.0)
    torch.testing.assert_close(found.double(), (W[0] + W[1]) / 2, rtol=1e-4, atol=1e-4)  # equal Gram matrices


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 3.0, 1.0), (0.0, 2.0, 1.0)])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e12])
def test_fisher_is_the_weighted_average_entry_by_entry(weights: tuple[float, ...], scale: float) -> None:
    _, W = data()
    F = [(draw(OUT, IN, name=f"f{k}") ** 2 * scale).float() for k in range(K)]
    w = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    F64, theta = torch.stack(F).double(), torch.stack(W).float().double()
    expected = (w * F64 * theta).sum(0) / (w * F64).sum(0)
    torch.testing.assert_close(apply(Fisher(), W, F, weights=weights).double(), expected, rtol=1e-5, atol=1e-6)


def test_fisher_without_information_is_the_mean_exactly() -> None:
    _, W = data()
    F = [(draw(OUT, IN, name=f"f{k}") ** 2).float() for k in range(K)]
    mean = apply(Fisher(), W, [None] * K, weights=(0.2, 3.0, 1.0))
    nothing = [torch.zeros(OUT, IN)] * K
    assert torch.equal(apply(Fisher(), W, nothing, weights=(0.2, 3.0, 1.0)), mean)
    for f in F:
        f[2], f[3, 4] = 0.0, 1e-16  # a gradient of 1e-8 among gradients of 1 is rounding
    found = apply(Fisher(), W, F, weights=(0.2, 3.0, 1.0))
    assert torch.equal(found[2], mean[2])
    assert found[3, 4] == mean[3, 4]
    assert not bool((found == mean)[4:].any())


def test_fisher_takes_an_entry_from_the_only_model_that_knows_it() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 6.0, 7.0])
    found = apply(Fisher(), [a, b], [torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 1e-3, 1.0])])
    assert found.tolist() == [1.0, 6.0, 4.0]


@pytest.mark.parametrize("op", [RegMean(), Fisher()], ids=lambda op: op.name)
def test_a_tensor_without_statistics_is_averaged(op: MergeOperation) -> None:
    _, W = data()
    alpha = {"alpha": 0.9} if op.name == "RegMean" else {}
    for statistics in ((), (None,) * K, (torch.ones(IN, IN), None, torch.ones(IN, IN))):
        found = apply(op, W, statistics, **alpha)
        torch.testing.assert_close(found.double(), sum(W) / K, rtol=1e-6, atol=1e-6)
        found = apply(op, W, statistics, **alpha, weights=(1.0, 0.0, 3.0))
        torch.testing.assert_close(found.double(), (W[0] + 3 * W[2]) / 4, rtol=1e-6, atol=1e-6)
        found = apply(op, W, statistics, **alpha, weights=(0.0, 0.0, 0.0))  # of nothing: the plain mean
        torch.testing.assert_close(found.double(), sum(W) / K, rtol=1e-6, atol=1e-6)


def form(
    op: MergeOperation, tensors: list[Tensor], statistics: list[Tensor] | None, weights: list[float], alpha: float
) -> Tensor:
    """Return the paper's formula as it stands there, in float64."""
    theta, w = torch.stack(tensors).double(), torch.tensor(weights, dtype=torch.float64)
    wide = w.view(-1, *[1] * (theta.dim() - 1))
    if statistics is None:
        return (wide * theta).sum(0) / w.sum()
    known = torch.stack(statistics).double()
    if op.name == "Fisher":
        return (wide * known * theta).sum(0) / (wide * known).sum(0)
    shrunk = wide * (alpha * known + (1 - alpha) * torch.diag_embed(known.diagonal(dim1=1, dim2=2)))
    return (torch.linalg.inv(shrunk.sum(0)) @ (shrunk @ theta.mT).sum(0)).T


@pytest.mark.parametrize("op", [RegMean(), Fisher()], ids=lambda op: op.name)
def test_the_formula_on_ordinary_and_adversarial_tensors(op: MergeOperation, evidence) -> None:
    worst = 0.0
    for name, (base, *tensors) in ALL.items():
        wide, shape = [t.float() for t in tensors], tuple(tensors[0].shape)
        inputs = [draw(4 * shape[-1], shape[-1], name=f"{name} {k}") for k in range(len(tensors))]
        gram = [g.float() for g in grams(inputs)] if len(shape) == 2 else None
        fisher = [(draw(*shape, name=f"{name} {k}") ** 2).float() + 1e-3 for k in range(len(tensors))]
        statistics = gram if op.name == "RegMean" else fisher
        for weights in ((1.0,) * len(wide), tuple(0.5 + k for k in range(len(wide)))):
            for alpha in (0.0, 0.5, 0.9) if op.name == "RegMean" else (None,):
                params = {"weights": weights} if alpha is None else {"weights": weights, "alpha": alpha}
                ours = apply(op, wide, statistics or (), **params)
                expected = form(op, wide, statistics, list(weights), alpha or 0.0)
                worst = max(worst, off := deviation(ours, expected, base.float()))
                assert off <= 1e-5, f"{off} from the formula: {name} with {params}"
    evidence.record(
        "merges",
        op.name,
        mergekit_method="none",
        float32="-",
        bfloat16="-",
        edge_cases="-",
        formula=f"{worst:.0e}",
        over_seeds="deterministic",
        not_compared="all: mergekit 0.1.5 has no such method",
    )


def test_bfloat16_weights_come_back_as_bfloat16() -> None:
    X, W = data()
    half = [w.bfloat16() for w in W]
    exact = regression_mean([w.double() for w in half], grams(X), [1 / K] * K, 0.9)
    generators = [torch_generator(0, k) for k in range(K)]
    statistics = [g.float() for g in grams(X)]
    op = RegMean()
    found = op.apply(half, base=None, params={"alpha": 0.9}, generators=generators, statistics=statistics)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=8e-3, atol=1e-6)  # one unit in the last place


def test_statistics_are_left_as_they_are() -> None:
    X, W = data()
    G, F = grams(X), [w**2 for w in W]
    before = [t.clone() for t in (*G, *F)]
    regression_mean(W, G, [1 / K] * K, 0.9)
    fisher_mean(W, F, [1 / K] * K)
    assert all(torch.equal(a, b) for a, b in zip(before, (*G, *F), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegMean(alpha=1.5), r"RegMean.alpha .* within \[0, 1\]"),
        (lambda: RegMean(alpha=(0.9, 0.1)), "RegMean.alpha"),
        (lambda: RegMean(weights=-1.0), "RegMean.weights"),
        (lambda: Fisher(weights=(-1.0, 1.0)), "Fisher.weights"),
    ],
)
def test_settings_that_the_methods_are_not_defined_for_are_refused(make, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_number_fixes_and_a_pair_is_searched() -> None:
    op = RegMean(alpha=0.9, weights=(0.5, 2.0))
    alpha, weights = op.distributions()["alpha"], op.weights
    assert (alpha.low, alpha.high, alpha.cardinality) == (0.9, 0.9, 1)
    assert (weights.low, weights.high, weights.cardinality) == (0.5, 2.0, None)
