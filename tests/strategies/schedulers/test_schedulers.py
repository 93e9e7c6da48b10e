"""Who goes on to more samples: counts in closed form, winners without noise, and what must never happen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
from tailorlib_strategies.schedulers import ASHA, Hyperband, Racing, SuccessiveHalving

from tailorlib.exceptions import RecipeError
from tailorlib.scheduler import SCHEDULERS, Promotion, Scheduler
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import LayerPlan, LayerSource, Tailoring
from tailorlib.trial import Trial

Loss = Callable[[int, int], float]
"""Of a candidate's number and a number of samples."""


def candidate(number: int) -> Tailoring:
    return Tailoring((LayerPlan((LayerSource("base", number),)),))


def trial(serial: int, number: int, samples: int, loss: float, every: int) -> Trial:
    fitness = None if math.isinf(loss) else -loss
    state = "failed" if fitness is None else "complete"
    return Trial(serial, {}, candidate(number), state, fitness, samples=samples, fidelity=samples / every)  # type: ignore[arg-type]


def drive(scheduler: Scheduler, loss: Loss, count: int, batch: int = 1) -> list[tuple[int, int]]:
    """Lead a scheduler through ``count`` scorings; return (candidate, samples) of each."""
    numbers = {candidate(i).digest: i for i in range(count)}
    done: list[tuple[int, int]] = []
    new = 0
    while len(done) < count:
        jobs = [(numbers[p.digest], p.samples) for p in scheduler.promote(batch)]
        while len(jobs) < batch:
            jobs.append((new, scheduler.start()))
            new += 1
        for number, samples in jobs:
            scheduler.tell(trial(len(done), number, samples, loss(number, samples), scheduler.samples))
            done.append((number, samples))
    return done


def shuffled(number: int, samples: int) -> float:
    """A loss that all samples agree on."""
    return float(numpy_generator("shuffled", number).random())


def per_rung(done: list[tuple[int, int]]) -> dict[int, int]:
    return dict(sorted(Counter(samples for _, samples in done).items()))


def test_a_round_of_successive_halving_has_the_known_sizes_and_finds_the_best() -> None:
    scheduler = SuccessiveHalving(eta=3, min_samples=1)
    scheduler.setup(27, 1, 27)
    done = drive(scheduler, shuffled, 27 + 9 + 3 + 1)
    assert per_rung(done) == {1: 27, 3: 9, 9: 3, 27: 1}
    assert done[-1] == (min(range(27), key=lambda i: shuffled(i, 27)), 27)


def test_hyperband_has_the_brackets_of_its_paper() -> None:
    """Table 1 of arXiv 1603.06560: R = 81, eta = 3."""
    scheduler = Hyperband(eta=3, min_samples=1)
    scheduler.setup(81, 1, 81)
    rounds = [
        {1: 81, 3: 27, 9: 9, 27: 3, 81: 1},
        {3: 34, 9: 11, 27: 3, 81: 1},
        {9: 15, 27: 5, 81: 1},
        {27: 8, 81: 2},
        {81: 5},
        {1: 81, 3: 27, 9: 9, 27: 3, 81: 1},
    ]
    done = drive(scheduler, shuffled, sum(sum(sizes.values()) for sizes in rounds))
    for sizes in rounds:
        part, done = done[: sum(sizes.values())], done[sum(sizes.values()) :]
        assert per_rung(part) == sizes


def test_asha_promotes_the_best_third_as_soon_as_it_is_known() -> None:
    scheduler = ASHA(eta=3, min_samples=1)
    scheduler.setup(9, 1, 10)
    done = drive(scheduler, lambda number, samples: float(number), 13)
    assert done == [
        *((0, 1), (1, 1), (2, 1), (0, 3)),  # the best of three
        *((3, 1), (4, 1), (5, 1), (1, 3)),  # the second of six
        *((6, 1), (7, 1), (8, 1), (2, 3)),
        (0, 9),  # the best of three on the middle rung, before anything new
    ]


@pytest.mark.parametrize("make", [ASHA, SuccessiveHalving, Hyperband])
@pytest.mark.parametrize("batch", [1, 4])
def test_each_candidate_climbs_rung_by_rung_and_the_worse_half_never(make: type[Scheduler], batch: int) -> None:
    scheduler = make(eta=2, min_samples=4)  # type: ignore[call-arg]
    scheduler.setup(32, 1, 100)
    done = drive(scheduler, shuffled, 300, batch)
    seen: dict[int, list[int]] = {}
    for number, samples in done:
        seen.setdefault(number, []).append(samples)
    for rungs in seen.values():
        assert rungs == [2**k for k in range(int(math.log2(rungs[0])), int(math.log2(rungs[-1])) + 1)]
    losses = {number: shuffled(number, 0) for number in seen}
    full = [losses[n] for n, rungs in seen.items() if rungs[-1] == 32 and rungs[0] == 4]
    stopped = [losses[n] for n, rungs in seen.items() if rungs == [4]]
    assert full and sum(full) / len(full) < 0.5 * sum(stopped) / len(stopped)


@pytest.mark.parametrize("name", sorted(SCHEDULERS.names()))
def test_a_failed_candidate_is_never_promoted(name: str) -> None:
    scheduler = SCHEDULERS.get(name)()
    scheduler.setup(54, 1, 100)
    done = drive(scheduler, lambda number, samples: math.inf if number % 2 else float(number), 120)
    lowest = {number: min(s for n, s in done if n == number) for number, _ in done}
    assert all(samples == lowest[number] for number, samples in done if number % 2)
    assert any(samples > lowest[number] for number, samples in done)


@pytest.mark.parametrize("name", sorted(SCHEDULERS.names()))
def test_the_same_results_give_the_same_decisions(name: str) -> None:
    def noisy(number: int, samples: int) -> float:
        return float(numpy_generator(number, samples).random())

    runs = []
    for _ in range(2):
        scheduler = SCHEDULERS.get(name)()
        scheduler.setup(54, 2, 100)
        runs.append(drive(scheduler, noisy, 100, 3))
    assert runs[0] == runs[1]
    assert len({samples for _, samples in runs[0]}) > 1


def test_racing_gives_up_who_is_behind_by_more_than_the_gains_differ() -> None:
    scheduler = Racing(eta=3, min_samples=9, z=2.0, warmup=3)
    scheduler.setup(27, 1, 10)
    gains = {0: 0.5, 1: 0.4, 2: 0.7}  # what the samples after the first nine change
    losses = {0: 1.0, 1: 3.0, 2: 4.0}
    for number in range(3):
        scheduler.tell(trial(2 * number, number, 9, losses[number], 27))
        assert scheduler.promote(2) == [Promotion(candidate(number).digest, 27)]
        scheduler.tell(trial(2 * number + 1, number, 27, losses[number] + gains[number], 27))
    sigma = math.sqrt(((0.4 - 0.5) ** 2 + (0.7 - 0.5) ** 2) / 2)  # around the gain of the best, number 0
    for number, behind, goes_on in ((5, 2 * sigma - 1e-6, True), (6, 2 * sigma + 1e-6, False), (7, -1.0, True)):
        scheduler.tell(trial(10 + number, number, 9, 1.0 + behind, 27))
        assert bool(scheduler.promote(1)) == goes_on


def test_racing_gives_nobody_up_before_it_can_know() -> None:
    scheduler = Racing(warmup=4)
    scheduler.setup(81, 1, 10)
    done = drive(scheduler, lambda number, samples: 10.0**number, 16)
    assert [number for number, samples in done if samples == 81] == [0, 1, 2, 3]


def test_a_round_that_waits_for_candidates_goes_on_when_none_will_come() -> None:
    scheduler = SuccessiveHalving(eta=3, min_samples=1)
    scheduler.setup(9, 1, 10)
    for number in range(4):
        scheduler.tell(trial(number, number, scheduler.start(), float(number), 9))
    assert scheduler.promote(5) == []
    scheduler.exhausted()
    assert scheduler.promote(5) == [Promotion(candidate(i).digest, 3) for i in range(3)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ASHA(eta=1.0), r"ASHA\.eta is the ratio of one rung to the next, more than 1, got 1\.0"),
        (lambda: Hyperband(min_samples=0), r"Hyperband\.min_samples is a positive number of samples, got 0"),
        (lambda: SuccessiveHalving(size=0), r"SuccessiveHalving\.size is a positive number of candidates, got 0"),
        (lambda: Racing(z=-1.0), r"Racing\.z is a number of standard deviations, at least 0, got -1"),
        (lambda: Racing(warmup=1), r"Racing\.warmup is at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Scheduler], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize(
    ("scheduler", "samples", "least", "budget", "message"),
    [
        (ASHA(), 3, 2, 9, "the fitness has 3, of which 2 are needed at least"),
        (ASHA(min_samples=2), 30, 3, 9, r"ASHA\.min_samples is at least 3 .* got 2"),
        (SuccessiveHalving(), 27, 1, 2, r"first round costs 3\.0 evaluations .* got study\.trials=2.* Raise"),
        (Hyperband(min_samples=1), 81, 1, 3, r"first round costs 3\.7 .* got study\.trials=3"),
        (Racing(warmup=6), 27, 1, 5, r"first round costs 6\.0 .* lower Racing\.warmup"),
    ],
)
def test_what_does_not_fit_the_samples_or_the_budget_is_refused(
    scheduler: Scheduler, samples: int, least: int, budget: float, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        scheduler.setup(samples, least, budget)
