"""The course of a study: who is evaluated next and on how many samples, and what the optimizer gets to know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tailorlib.distributions import Subset
from tailorlib.exceptions import PluginError, RecipeError
from tailorlib.optimizer import CAPABILITIES, Optimizer
from tailorlib.scheduler import Scheduler
from tailorlib.search.proposer import Proposal, Proposer
from tailorlib.search_space import SearchSpace
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial


@dataclass(frozen=True)
class Job:
    """A candidate to score.

    Args:
        proposal: The candidate.
        known: Number of first samples that it was scored on in an earlier trial.
        samples: Number of first samples to score it on.
    """

    proposal: Proposal
    known: int
    samples: int


class Campaign:
    """Leads an optimizer and a scheduler through a study; no model, no device.

    Everything here depends on the seed and the told trials alone, so that replaying a journal, or running the same
    loop on several ranks, gives the same jobs.

    Args:
        space: The search space, set up.
        optimizer: The optimizer, set up.
        budget: What may be spent, in evaluations on all samples.
        samples: Number of samples of the fitness.
        scheduler: Decides on how many samples a candidate is scored, set up; ``None``: on all.
        warm_starts: Pairs (origin, tailoring) to try first, all inside the space.
        seed: The study's seed, which every tailoring carries.
        complete: Gives a tailoring its compensation.
    """

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: float,
        samples: int = 1,
        scheduler: Scheduler | None = None,
        warm_starts: Iterable[tuple[str, Tailoring]] = (),
        seed: int = 0,
        complete: Callable[[Tailoring], Tailoring] | None = None,
    ) -> None:
        self.budget, self.samples, self.scheduler = budget, samples, scheduler
        self.spent_samples = 0
        self._proposer = Proposer(space, optimizer, warm_starts, seed, complete)
        self._proposals: dict[str, Proposal] = {}
        self._known: dict[str, Trial] = {}
        self._scores = Comparable(samples)

    @property
    def spent(self) -> float:
        """What was spent, in evaluations on all samples."""
        return self.spent_samples / self.samples

    @property
    def over(self) -> bool:
        """Whether the budget is spent, and a candidate was scored on all samples."""
        return self._left() <= 0 and self._final() is None

    def jobs(self, count: int) -> list[Job]:
        """Return up to ``count`` jobs, all of different candidates; none when there is nothing left to do.

        When the budget ends and no candidate was scored on all samples, the best one is.
        """
        jobs: list[Job] = []
        while len(jobs) < count and self._left(jobs) > 0 and (job := self._next(jobs)) is not None:
            jobs.append(job)
        if not jobs and (digest := self._final()) is not None:
            jobs = [self._job(self._proposals[digest], self.samples)]
        return jobs

    def observe_dense(self, score_on: Callable[[int], float]) -> None:
        """Let the dense model's scores say how scores on few samples compare, until a candidate's do.

        Args:
            score_on: Returns the dense model's score on a number of first samples.
        """
        self._scores.reference = score_on

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn the trials of a batch, in the order of their numbers."""
        for trial in trials:
            digest = trial.tailoring.digest
            before = self._known.get(digest)
            self.spent_samples += max(0, trial.samples - (0 if before is None else before.samples))
            self._known[digest] = trial
            self._proposals.setdefault(digest, Proposal(trial.params, trial.tailoring, trial.origin))
            if self.scheduler is not None:
                self.scheduler.tell(trial)
            self._scores.add(trial)
        self._proposer.tell([self._scores.estimate(trial) for trial in trials])

    def _next(self, jobs: Sequence[Job]) -> Job | None:
        """Return another job beside those of this batch."""
        taken = {job.proposal.tailoring.digest for job in jobs}
        if (job := self._promoted()) is not None:
            return job
        for proposal in self._proposer.propose(1, taken):
            return self._job(proposal, self.samples if self.scheduler is None else self.scheduler.start())
        if self.scheduler is not None and not jobs:
            self.scheduler.exhausted()
            return self._promoted()
        return None

    def _promoted(self) -> Job | None:
        for promotion in self.scheduler.promote(1) if self.scheduler is not None else ():
            known = self._known.get(promotion.digest)
            if known is None or promotion.samples <= known.samples:
                has = "never scored" if known is None else f"scored on {known.samples}"
                raise PluginError(
                    f"{type(self.scheduler).__name__}._promote sends known candidates on to more samples; got "
                    f"{promotion.samples} samples for {promotion.digest!r}, which was {has}."
                )
            return self._job(self._proposals[promotion.digest], promotion.samples)
        return None

    def _job(self, proposal: Proposal, samples: int) -> Job:
        digest = proposal.tailoring.digest
        self._proposals.setdefault(digest, proposal)
        known = self._known[digest].samples if digest in self._known else 0
        return Job(proposal, known, samples)

    def _left(self, jobs: Sequence[Job] = ()) -> float:
        """Return the samples that are left of the budget, after some jobs."""
        return self.budget * self.samples - self.spent_samples - sum(job.samples - job.known for job in jobs)

    def _final(self) -> str | None:
        """Return the candidate that has to be scored on all samples so that there is a result, if one has."""
        complete = [t for t in self._known.values() if t.fitness is not None]
        if not complete or any(t.samples >= self.samples for t in complete):
            return None
        best = min(complete, key=lambda t: (-t.samples, t.loss, t.number))
        return best.tailoring.digest


class Comparable:
    """Makes scores on few samples comparable with scores on all.

    The first samples may be harder or easier than the rest. Candidates that were scored on n samples and later on
    all of them say by how much: every score on n samples is multiplied by the ratio of their means. Scores that
    can be negative, such as log-likelihoods, are shifted by the difference of the means instead. Before there is
    such a candidate the dense model takes its place.

    Args:
        samples: Number of all samples.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.reference: Callable[[int], float] | None = None
        self._known: dict[str, dict[int, Trial]] = {}

    def add(self, trial: Trial) -> None:
        """Take note of a trial."""
        if trial.fitness is not None:
            self._known.setdefault(trial.tailoring.digest, {})[trial.samples] = trial

    def estimate(self, trial: Trial) -> Trial:
        """Return a trial with the scores that all samples would give, as far as is known."""
        if trial.fitness is None or trial.samples >= self.samples:
            return trial
        pairs = [
            (found[trial.samples], found[self.samples])
            for found in self._known.values()
            if trial.samples in found and self.samples in found
        ]
        if not pairs:
            if self.reference is None:
                return trial
            few, every = [self.reference(trial.samples)], [self.reference(self.samples)]
            return replace(trial, fitness=_carried(trial.fitness, few, every))
        few, every = ([pair[i].fitness or 0.0 for pair in pairs] for i in (0, 1))
        objectives = {
            name: _carried(score, [a.objectives[name] for a, _ in pairs], [b.objectives[name] for _, b in pairs])
            for name, score in trial.objectives.items()
        }
        return replace(trial, fitness=_carried(trial.fitness, few, every), objectives=objectives)


def _carried(score: float, few: Sequence[float], every: Sequence[float]) -> float:
    """Return what a score on few samples would be on all, given others' scores on few and on all."""
    if min(score, *few, *every) > 0:
        return score * fmean(every) / fmean(few)
    return score + fmean(every) - fmean(few)


def check_capabilities(
    optimizer: Optimizer, space: SearchSpace, *, batch_size: int, scheduler: bool, objectives: int
) -> None:
    """Refuse an optimizer that doesn't handle what a study asks of it.

    Args:
        optimizer: The optimizer.
        space: The search space, set up.
        batch_size: How many candidates are asked for before any of them is told.
        scheduler: Whether there is a scheduler.
        objectives: Number of objectives.

    Raises:
        RecipeError: Naming everything that it doesn't declare to handle.
    """
    distributions = space.distributions()
    defaults = {name: d.default for name, d in distributions.items()}
    needs = {
        "conditional": len(space.active(defaults)) < len(distributions),
        "subset": any(isinstance(d, Subset) for d in distributions.values()),
        "batch": batch_size > 1,
        "fidelity": scheduler,
        "multi_objective": objectives > 1,
    }
    mend = {
        "batch": "set study.batch_size: 1",
        "fidelity": "leave out the scheduler",
        "multi_objective": "wrap it in ParEGO",
    }
    name, supported = type(optimizer).__name__, optimizer.supports
    faults = [
        f"{name} does not declare to handle {CAPABILITIES[what]} ({what!r}), which this study needs: "
        + (f"{mend[what]}, or take another optimizer." if what in mend else "take another optimizer or space.")
        for what, needed in needs.items()
        if needed and what not in supported
    ]
    if faults:
        raise RecipeError(faults)
