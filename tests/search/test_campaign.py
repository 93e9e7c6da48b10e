"""The course of a study without any model: what is asked, what is spent, and what the optimizer gets to know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tailorlib_strategies.operations import LayerRemoval
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.schedulers import ASHA, SuccessiveHalving
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout, Optimizer, Params, Trial
from tailorlib.exceptions import RecipeError
from tailorlib.scheduler import Scheduler
from tailorlib.search.campaign import Campaign, Job, check_capabilities
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import Tailoring
from tailorlib.trial import TrialState

SAMPLES = 27
Score = Callable[[Tailoring, int], float]


class Listening(RandomSearch):
    """Random search that keeps what it is told."""

    def _setup(self, space: object, seed: int) -> None:
        self.told: list[Trial] = []

    def _tell(self, trial: Trial) -> None:
        self.told.append(trial)


class Plain(Optimizer):
    """Declares nothing beyond the defaults."""

    def _ask(self) -> Params:
        return self.space.sample(self.rng)


def space(count: int | list[int] = 2, layers: int = 8) -> PruningSpace:
    found = PruningSpace(LayerRemoval(count=count))
    found.setup(FamilyLayout(("a", "b"), layers, ("full_attention",) * layers))
    return found


def campaign(
    optimizer: Optimizer | None = None, scheduler: Scheduler | None = None, budget: float = 10.0, **more: object
) -> Campaign:
    own = space() if "own" not in more else more.pop("own")
    optimizer = optimizer or Listening()
    optimizer.setup(own, 0)  # type: ignore[arg-type]
    if scheduler is not None:
        scheduler.setup(SAMPLES, 1, budget)
    return Campaign(own, optimizer, budget, SAMPLES, scheduler, **more)  # type: ignore[arg-type]


def goodness(tailoring: Tailoring, samples: int) -> float:
    """A score on which the first samples agree but for an offset: they are harder by 1 / samples."""
    return float(numpy_generator("goodness", tailoring.digest).random()) - 1 / samples


def lead(found: Campaign, score: Score = goodness, batch: int = 1) -> tuple[list[Job], list[Trial]]:
    done: list[Job] = []
    told: list[Trial] = []
    while jobs := found.jobs(batch):
        trials = [
            Trial(
                len(told) + i,
                job.proposal.params,
                job.proposal.tailoring,
                "complete",
                score(job.proposal.tailoring, job.samples),
                origin=job.proposal.origin,
                samples=job.samples,
                fidelity=job.samples / SAMPLES,
            )
            for i, job in enumerate(jobs)
        ]
        done, told = [*done, *jobs], [*told, *trials]
        found.tell(trials)
    return done, told


@pytest.mark.parametrize("batch", [1, 4])
def test_without_a_scheduler_the_budget_is_the_number_of_trials(batch: int) -> None:
    found = campaign(budget=10)
    jobs, told = lead(found, batch=batch)
    assert len(told) == 10 and found.spent == 10 and found.over
    assert all((job.known, job.samples) == (0, SAMPLES) for job in jobs)
    assert len({t.tailoring.digest for t in told}) == 10


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_spent_is_counted_in_samples_and_nothing_is_scored_twice(batch: int) -> None:
    found = campaign(scheduler=ASHA(eta=3, min_samples=1), budget=8)
    jobs, _ = lead(found, batch=batch)
    scored: dict[str, int] = {}
    for job in jobs:
        digest = job.proposal.tailoring.digest
        assert job.known == scored.get(digest, 0) < job.samples
        scored[digest] = job.samples
    assert sum(scored.values()) == found.spent_samples
    assert 8 <= found.spent < 8 + batch
    assert len(scored) > 30


def test_when_the_budget_ends_first_the_best_candidate_is_still_scored_on_all_samples() -> None:
    found = campaign(budget=1)
    found.scheduler = SuccessiveHalving(eta=3, min_samples=3, size=27)
    found.scheduler.setup(SAMPLES, 1, 100)
    jobs, told = lead(found)
    assert [job.samples for job in jobs] == [3] * 9 + [27]
    best = max(told[:9], key=lambda t: t.fitness or 0.0)
    assert told[-1].tailoring == best.tailoring and jobs[-1].known == 3


def test_a_failure_on_all_samples_is_no_result() -> None:
    found = campaign(budget=1)
    found.scheduler = SuccessiveHalving(eta=3, min_samples=3, size=27)
    found.scheduler.setup(SAMPLES, 1, 100)
    failed = False
    last: list[Trial] = []
    while jobs := found.jobs(1):
        (job,) = jobs
        tailoring, fails = job.proposal.tailoring, job.samples == SAMPLES and not failed
        failed = failed or fails
        score = None if fails else goodness(tailoring, job.samples)
        state: TrialState = "failed" if fails else "complete"
        trial = Trial(len(last), job.proposal.params, tailoring, state, score, samples=job.samples)
        last.append(trial)
        found.tell([trial])
    assert [t.state for t in last[-2:]] == ["failed", "complete"]
    assert last[-1].samples == SAMPLES and found.over


@pytest.mark.parametrize("positive", [True, False])
def test_scores_on_few_samples_reach_the_optimizer_as_what_all_would_give(positive: bool) -> None:
    """Positive scores by a ratio, others by a difference: the dense model's first, then that of candidates."""
    optimizer = Listening()
    found = campaign(optimizer, SuccessiveHalving(eta=3, min_samples=3, size=9), budget=9)
    found.observe_dense(lambda samples: samples if positive else -3.0 / samples)

    def score(tailoring: Tailoring, samples: int) -> float:
        whole = 1 + float(numpy_generator("goodness", tailoring.digest).random())
        return whole * (1 + 1 / samples) if positive else -whole - 1 / samples

    _, told = lead(found, score)
    early = told.index(next(t for t in told if t.samples == SAMPLES))
    for heard, trial in zip(optimizer.told, told, strict=True):
        assert heard.samples == trial.samples and heard.fitness is not None and trial.fitness is not None
        if trial.samples == SAMPLES:
            assert heard.fitness == trial.fitness
        elif trial.number < early:  # as the dense model gains
            n = trial.samples
            expected = trial.fitness * SAMPLES / n if positive else trial.fitness + 3 / n - 3 / SAMPLES
            assert heard.fitness == pytest.approx(expected)
        else:  # as candidates do: exactly, since all of them gain alike
            assert heard.fitness == pytest.approx(score(trial.tailoring, SAMPLES))


def test_a_candidate_that_goes_on_keeps_its_origin() -> None:
    own = space()
    starts = [("a start", own.decode(own.sample(numpy_generator(i)))) for i in range(9)]
    found = campaign(scheduler=SuccessiveHalving(eta=3, min_samples=3, size=9), budget=3, warm_starts=starts)
    _, told = lead(found)
    assert {t.origin for t in told[:9]} == {"a start"}
    assert next(t.origin for t in told if t.samples == SAMPLES) == "a start"


@pytest.mark.parametrize("scheduler", [None, SuccessiveHalving(eta=3, min_samples=3, size=40)])
def test_a_space_that_is_exhausted_ends_the_study(scheduler: Scheduler | None) -> None:
    own = PruningSpace(LayerRemoval(count=1), selection=None)
    own.setup(FamilyLayout((), 6, ("full_attention",) * 6))
    found = campaign(scheduler=scheduler, budget=40, own=own)
    _, told = lead(found)
    assert len({t.tailoring.digest for t in told}) == 6
    best = max(told, key=lambda t: (t.samples, t.fitness or 0.0))
    assert best.samples == SAMPLES
    expected = max({t.tailoring for t in told}, key=lambda t: goodness(t, SAMPLES))
    assert best.tailoring == expected


def test_a_replayed_course_is_the_same_course() -> None:
    runs = []
    for _ in range(2):
        found = campaign(scheduler=ASHA(eta=3, min_samples=1), budget=6)
        jobs, _ = lead(found, batch=2)
        runs.append([(job.proposal.tailoring.digest, job.samples) for job in jobs])
    assert runs[0] == runs[1]


def test_what_an_optimizer_does_not_declare_is_refused_all_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        check_capabilities(Plain(), space(), batch_size=2, scheduler=True, objectives=2)
    assert len(caught.value.faults) == 3
    for word in ("'batch'", "'fidelity'", "'multi_objective'", "study.batch_size: 1", "ParEGO"):
        assert word in str(caught.value)
    check_capabilities(Plain(), space(), batch_size=1, scheduler=False, objectives=1)
    plain = Plain()
    plain.supports = frozenset()
    with pytest.raises(RecipeError, match=r"(?s)'conditional'.*'subset'"):
        check_capabilities(plain, space(), batch_size=1, scheduler=False, objectives=0)
