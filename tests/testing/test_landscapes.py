"""The landscapes' optima against exhaustive search, and what each kind promises."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from tailorlib_strategies.operations import TIES, LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import LayerPlan, LayerSource, Tailoring
from tailorlib.seeding import numpy_generator
from tailorlib.testing.landscapes import FIXED, LANDSCAPES, MERGES, Deceptive, Landscape, Noisy

KINDS = pytest.mark.parametrize("name", LANDSCAPES)


def small(name: str, seed: int) -> Landscape:
    """Return a landscape that can be searched exhaustively: some 10,000 tailorings."""
    merges = {"TaskArithmetic": MERGES["TaskArithmetic"]}
    sizes = (
        {"layers": 10, "removed": 4, "candidates": ("a",)} if name == "deceptive" else {"layers": 6, "removed": 2}
    )
    return LANDSCAPES[name](seed, **{"candidates": ("a", "b"), **sizes}, merges=merges)  # type: ignore[arg-type]


def every_tailoring(landscape: Landscape):
    """Yield all structures, each with its best hyperparameters."""
    layers, mixes = landscape.layout.num_layers, range(len(landscape.mixes))
    for gone in combinations(range(layers), landscape.removed):
        for kept in product(mixes, repeat=layers - landscape.removed):
            rest = iter(kept)
            yield landscape.tailoring([-1 if i in gone else next(rest) for i in range(layers)])


@KINDS
@pytest.mark.parametrize("seed", range(2))
def test_the_optimum_is_that_of_exhaustive_search(name: str, seed: int) -> None:
    landscape = small(name, seed)
    best = max(landscape.score(t) for t in every_tailoring(landscape))
    assert landscape.best == pytest.approx(best, abs=1e-12)
    assert landscape.regret(landscape.optimum) == 0


@KINDS
def test_no_hyperparameter_is_better_than_the_optimums(name: str) -> None:
    landscape, rng = LANDSCAPES[name](0), numpy_generator("hyperparameters")
    plans = landscape.optimum.layers
    merged = [i for i, plan in enumerate(plans) if len(plan.sources) > 1]
    assert merged
    for i in merged:
        params = dict(plans[i].params)
        for key, (low, high) in MERGES[plans[i].operation].items():
            moved = {**params, key: rng.uniform(low, high)}
            plan = LayerPlan(plans[i].sources, plans[i].operation, tuple(moved.items()), plans[i].base)
            assert landscape.regret(Tailoring((*plans[:i], plan, *plans[i + 1 :]))) > 0


def test_the_score_is_the_sum_that_the_description_says() -> None:
    landscape = small("neighbours", 3)
    base, first, _, merged = range(4)
    kept = {0: first, 3: merged, 4: base, 5: merged}
    expected = -3.265 - landscape.importance[1] - landscape.importance[2] - landscape.adjacent[1]
    expected += sum(landscape.worth[i, m] for i, m in kept.items())
    expected -= sum(landscape.seams[a, b] for a, b in pairwise(kept.values()))
    tailoring = landscape.tailoring([kept.get(i, -1) for i in range(6)])
    assert landscape.score(tailoring) == pytest.approx(expected)
    off = list(tailoring.layers)
    scale = float(dict(off[1].params)["scale"])  # type: ignore[arg-type]
    off[1] = LayerPlan(off[1].sources, off[1].operation, (("scale", scale - 0.1),), off[1].base)
    assert landscape.score(Tailoring(tuple(off))) == pytest.approx(expected - landscape.curvature * 0.01)


@KINDS
def test_start_and_optimum_lie_in_the_papers_space(name: str) -> None:
    landscape = LANDSCAPES[name](0)
    space = PruningSpace(LayerRemoval(count=8), merges=[TaskArithmetic(), TIES()])
    space.setup(landscape.layout)
    for tailoring in (landscape.start, landscape.optimum):
        assert space.decode(space.encode(tailoring)).digest == tailoring.digest
    assert 0.1 < landscape.regret(landscape.start) < 1.5
    drawn = [landscape.regret(space.decode(space.sample(numpy_generator("random", i)))) for i in range(20)]
    assert min(drawn) > 0.3


def test_the_deceptive_landscape_deceives() -> None:
    """The cheapest layers are bad together, and no exchange of one layer, or two, leaves the local optimum."""
    for seed in range(3):
        landscape = Deceptive(seed)
        gone = set(range(32)) - {plan.sources[0].layer for plan in landscape.optimum.layers}
        assert set(landscape.block) <= gone
        assert set(np.argsort(landscape.importance)[:8]) == set(landscape.trap)
        assert landscape.regret(landscape.tailoring(_without(landscape, set(landscape.trap)))) > 0.3
        local = set(range(32)) - {plan.sources[0].layer for plan in landscape.decoy.layers}
        at = landscape.regret(landscape.decoy)
        assert at > 0.1
        for size in (1, 2):
            for out in combinations(sorted(local), size):
                for into in combinations(sorted(set(range(32)) - local), size):
                    other = _without(landscape, (local - set(out)) | set(into))
                    assert _regret(landscape, other) >= at - 1e-9


def _without(landscape: Landscape, gone: set[int]) -> list[int]:
    best = landscape.worth.argmax(axis=1)
    return [-1 if i in gone else int(best[i]) for i in range(landscape.layout.num_layers)]


def _regret(landscape: Landscape, choices: list[int]) -> float:
    """The regret of a choice of layers with the best mixes, without building a tailoring."""
    gone = [i for i, m in enumerate(choices) if m < 0]
    kept = [i for i, m in enumerate(choices) if m >= 0]
    return landscape.best - (-3.265 - landscape._cost(gone) + float(landscape.worth.max(axis=1)[kept].sum()))


def test_noise_shrinks_with_the_samples_and_stays_with_the_candidate() -> None:
    landscape = Noisy(0, noise=0.05, samples=64)
    space = PruningSpace(LayerRemoval(count=8), merges=[TaskArithmetic(), TIES()])
    space.setup(landscape.layout)
    drawn = [space.decode(space.sample(numpy_generator("noise", i))) for i in range(300)]
    for samples in (4, 16, 64):
        off = [landscape.measure(t, samples) - landscape.score(t) for t in drawn]
        assert np.std(off) == pytest.approx(0.05 * (64 / samples) ** 0.5, rel=0.15)
        assert abs(np.mean(off)) < 4 * np.std(off) / 300**0.5
    again = Noisy(0, noise=0.05, samples=64)
    assert again.measure(drawn[0], 4) == landscape.measure(drawn[0], 4)
    assert Noisy(1, noise=0.05).measure(drawn[0]) != landscape.measure(drawn[0])


def test_more_samples_go_on_where_fewer_stopped() -> None:
    """The mean of 3 samples and of 4 differ by the fourth sample's share, whoever measures first."""
    landscape = Noisy(0, samples=8)
    values = [n * landscape.measure(landscape.start, n) for n in range(1, 9)]
    parts = np.diff([0.0, *values])
    assert np.mean(parts) == pytest.approx(landscape.measure(landscape.start))
    assert len(set(parts.round(9))) == 8


@pytest.mark.parametrize("samples", [0, 257])
def test_samples_that_are_not_there_are_refused(samples: int) -> None:
    with pytest.raises(ValueError, match="on 1 to 256 samples"):
        Noisy(0).measure(Noisy(0).start, samples)


def test_a_tailoring_of_another_family_is_refused() -> None:
    landscape = LANDSCAPES["additive"](0)
    with pytest.raises(ValueError, match="without 8 of 32 layers"):
        landscape.score(Tailoring((LayerPlan((LayerSource("base", 0),)),)))
    strange = [LayerPlan((LayerSource("z", i),)) for i in range(24)]
    with pytest.raises(ValueError, match="is one of"):
        landscape.score(Tailoring(tuple(strange)))
    with pytest.raises(ValueError, match="needs 14 layers"):
        Deceptive(0, layers=10)


def test_the_merges_are_the_built_in_ones() -> None:
    for operation in (TaskArithmetic(), TIES()):
        drawn = operation.distributions()
        ranges = {n: (d.low, d.high) for n, d in drawn.items() if d.cardinality != 1}  # type: ignore[attr-defined]
        assert ranges == MERGES[operation.name]
        fixed = {n: d.default for n, d in drawn.items() if d.cardinality == 1}
        assert fixed == FIXED.get(operation.name, {})
