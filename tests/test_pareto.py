"""Fronts, volumes and knees of small sets that can be worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from tailorlib.pareto import dominates, front, hypervolume, knee, study_result
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import LayerPlan, LayerSource, Tailoring
from tailorlib.trial import Trial, incumbent


def trials(*scores: tuple[float, ...], fidelity: float = 1.0, first: int = 0) -> list[Trial]:
    return [
        Trial(
            first + i,
            {},
            Tailoring((LayerPlan((LayerSource("base", first + i),)),)),
            "complete",
            own[0],
            objectives={f"o{k}": x for k, x in enumerate(own)},
            fidelity=fidelity,
        )
        for i, own in enumerate(scores)
    ]


def test_the_front_is_what_nobody_beats() -> None:
    found = trials((1, 1), (3, 1), (2, 2), (1, 3), (2, 1), (2, 2))
    assert [t.number for t in front(found)] == [1, 2, 3]
    assert not dominates((1, 1), (1, 1)) and dominates((0, 1), (1, 1)) and not dominates((0, 2), (1, 1))


def test_what_failed_or_was_scored_on_fewer_samples_is_not_on_the_front() -> None:
    lucky = trials((9, 9), fidelity=0.1, first=10)
    failed = Trial(20, {}, Tailoring((LayerPlan((LayerSource("base", 20),)),)), "failed", None)
    found = [*trials((1, 1), (2, 0)), *lucky, failed]
    assert [t.number for t in front(found)] == [1, 0]
    assert front(lucky) == lucky  # there is nothing better yet


def test_hypervolume_in_closed_form() -> None:
    assert hypervolume(trials((2, 3))) == pytest.approx(6)
    assert hypervolume(trials((2, 3), (3, 1), (1, 1))) == pytest.approx(6 + 1)
    assert hypervolume(trials((-1, 5))) == 0
    assert hypervolume([]) == 0
    assert hypervolume(trials((1, 2, 3), (2, 1, 1))) == pytest.approx(6 + 1)


def test_hypervolume_of_three_objectives_is_the_share_of_points_below_the_front() -> None:
    rng = numpy_generator("hypervolume")
    found = trials(*(tuple(row) for row in rng.random((12, 3)).tolist()))
    points = rng.random((20_000, 3))
    covered = sum(
        any(all(x <= s for x, s in zip(point, t.objectives.values(), strict=True)) for t in found)
        for point in points[:4000]
    )
    assert hypervolume(found) == pytest.approx(covered / 4000, abs=0.03)


def test_the_knee_is_the_best_balance_whatever_the_units() -> None:
    found = trials((0.0, 100.0), (0.9, 80.0), (1.0, 0.0), (0.1, 90.0))
    for order in itertools.permutations(found):
        best = knee(order)
        assert best is not None and best.number == 1
    assert knee([]) is None


def test_the_incumbent_is_the_fittest_of_those_on_most_samples() -> None:
    lucky, full = trials((9,), fidelity=0.5, first=5), trials((1,), (2,), (2,))
    best = incumbent([*lucky, *full])
    assert best is not None and best.number == 1
    assert incumbent(lucky) == lucky[0]


def test_a_study_ends_with_what_validated_best_else_with_the_knee_else_with_the_fittest() -> None:
    one, several = trials((1,), (3,), (2,)), trials((0.0, 100.0), (0.9, 80.0), (1.0, 0.0))
    plain = [Trial(t.number, {}, t.tailoring, "complete", t.fitness) for t in one]
    assert study_result(plain) is plain[1]
    assert study_result(several) is several[1]
    assert study_result(several, {2: 0.5, 0: 0.7}) is several[0]
    assert study_result(plain, {2: 0.5, 0: 0.5}) is plain[0]  # of equals the first
    assert study_result(plain, {7: 1.0}) is plain[1]  # a trial that isn't there
    assert study_result([]) is None
