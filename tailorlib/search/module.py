"""The search as a LightningModule: a training step asks for candidates, evaluates them and tells the results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from tailorlib.console import emit, say, step
from tailorlib.contents import Contents
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import EvaluationError, JournalError, PluginError, RecipeError
from tailorlib.fitness import Measurement, SampleResult
from tailorlib.forks import staying
from tailorlib.journal import FILE_NAME, Journal
from tailorlib.journal_header import JournalHeader
from tailorlib.models.precision import compute_dtype, dtype_name
from tailorlib.models.reference import compare_models
from tailorlib.models.shared import SharedFolder
from tailorlib.models.terms import keep_terms
from tailorlib.pareto import knee, study_result
from tailorlib.plugin_sources import plugin_copies
from tailorlib.report.figures import front_figure, history_figure, importance_figure, layer_map_figure
from tailorlib.search.campaign import Job
from tailorlib.search.contents import study_contents
from tailorlib.search.deaths import Deaths, count_deaths, drop_deaths
from tailorlib.search.evaluator import Evaluator, Outcome, Part
from tailorlib.search.pending import drop_pending, read_pending
from tailorlib.search.proposer import MAX_REPEATS, Proposal, Replay
from tailorlib.search.ranks import share_weights
from tailorlib.search.sample_store import drop_samples, read_samples
from tailorlib.search.sessions import changed_versions, environment, moment, recorded_dtype, session_facts
from tailorlib.search.starting_over import Earlier, earlier_work
from tailorlib.search.study import Study
from tailorlib.search.tracking import Tracker
from tailorlib.search.validator import Validator
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial, as_recorded, incumbent

CONSTANT = 20
"""So many candidates of one score are no coincidence."""


class SearchModule(LightningModule):
    """Searches for the fittest tailoring.

    One training step is one batch of trials. Every rank runs the same optimizer on the same results, so all
    ranks know every proposal without asking anyone; they share the work on a batch
    (:class:`~tailorlib.search.evaluator.Evaluator`), and rank 0 keeps the journal.

    Args:
        study: What to search.
        identity: The recipe's sections that decide the trials, as plain data; a resumed study must have the same.
        recipe: Text of the resolved recipe, kept in the run folder.
        resume: Continue the study in the run folder instead of starting one.
        accept_changes: Where a resumed study's recipe or content is another one than it began with, start over
            from its candidates instead of refusing.
    """

    def __init__(
        self,
        study: Study,
        identity: Mapping[str, Any],
        *,
        recipe: str = "",
        resume: bool = False,
        accept_changes: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.study, self.identity, self.recipe, self.resume = study, identity, recipe, resume
        self.accept_changes = accept_changes
        self.trials: list[Trial] = []
        self.dense: Measurement | None = None
        self.stopped: str | None = None
        """Why the search ended before its last trial, or ``None``."""
        self.too_few = False
        """Whether the optimizer had nothing new to propose before half of the trials, and half of the space."""
        self.validations: dict[int, Measurement] = {}
        """What validation found, by the number of the trial that was the best then."""
        self.resumed_at = 0
        """Number of the first trial that this process makes; the ones before were on record."""
        self._recorded: dict[int, Measurement] = {}
        self._contents: Contents | None = None
        self._starts_over = False
        self._earlier = Earlier()
        self._dense_scores: dict[int, float] = {}
        self._engine: Engine | None = None
        self._journal: Journal | None = None
        self._shared: SharedFolder | None = None
        self._tracker = Tracker([], study.directory)

    @property
    def engine(self) -> Engine:
        """The evaluation engine, after :meth:`prepare`."""
        if self._engine is None:
            raise PluginError("The search's engine is used before prepare(device).")
        return self._engine

    def prepare(self, device: torch.device) -> None:
        """Find every fault of the recipe that shows without weights; nothing is written before.

        Raises:
            RecipeError: With all faults that were found.
        """
        compensation = self.study.compensation
        if compensation is not None and not compensation.per_candidate:
            raise RecipeError(
                f"compensation: {compensation.label} takes minutes a candidate. Search with Bridge, or without; "
                "then: tailor compensate RUN."
            )
        if self._engine is None:
            self._engine = self.study.prepare(device)

    def open_record(self, device: torch.device) -> None:
        """Find out what the study is made of, and open the record of one that is resumed; once, on rank 0.

        It comes before Lightning's loop, whose loggers begin their files anew: what is refused stays as it is.

        Raises:
            JournalError: If the record is damaged, in use, or of another recipe or content.
        """
        if self._contents is None:
            self._contents = self._identified()
            self._journal = self._reopen(self._contents, device) if self.resume else None

    @property
    def incumbent(self) -> Trial | None:
        """The best trial so far; with several objectives the one of the best balance."""
        return knee(self.trials) if self.study.objectives else incumbent(self.trials)

    @property
    def result(self) -> Trial | None:
        """The trial that the study ends with: the best in validation, if there is one, else the incumbent."""
        return study_result(self.trials, {n: m.score for n, m in self.validations.items()})

    @property
    def tracker(self) -> Tracker:
        """Loggers and scripts; rank 0 has them, once the search began."""
        return self._tracker

    @property
    def spent(self) -> float:
        """What was spent, in evaluations on all samples."""
        return self._campaign.spent if hasattr(self, "_campaign") else 0.0

    @property
    def finished(self) -> bool:
        """Whether the study came to its end, by its budget or by a rule of its own."""
        return self.stopped is not None or (hasattr(self, "_campaign") and self._campaign.over)

    def retained(self, fitness: float) -> float | None:
        """Return a fitness in percent of the dense base model's, if that is a meaningful ratio."""
        return 100 * fitness / self.dense.score if self.dense and self.dense.score > 0 else None

    # -- Lightning hooks ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Prepare the family, the data and the journal; measure the dense model; collect the warm starts."""
        study, device = self.study, self.trainer.strategy.root_device
        self.prepare(device)
        if self.global_rank == 0:
            self.open_record(device)
        self._load_family(device)
        recorded = self._open_journal()
        self._tracker = Tracker(self.loggers if self.global_rank == 0 else [], study.directory)
        self._tracker.begin(self.recipe)
        world, folder = self.trainer.world_size, study.directory
        self._deaths = Deaths(folder, self.global_rank, study.settings.max_deaths)
        self._evaluator = Evaluator(
            study, self.engine, rank=self.global_rank, ranks=world, folder=folder, deaths=self._deaths
        )
        parts, samples, self._deaths.counts = self._recover_work(world)
        self._evaluator.recover(parts, samples)
        self._measure_dense()
        self._compensate(device)
        with staying():
            self._campaign = study.campaign(self._warm_starts())
        if study.scheduler is not None:
            self._campaign.observe_dense(self._dense_on)
        self._validate = Validator(study, self.engine, rank=self.global_rank, ranks=world, deaths=self._deaths)
        self._replay = Replay(recorded)
        self.resumed_at = 1 + max((trial.number for trial in recorded), default=-1)
        if recorded:
            say(f"[green]✓[/] Resumed after {len(recorded)} recorded trials")

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def train_dataloader(self) -> DataLoader[int]:
        """Return a loader that only counts batches.

        Candidates are asked for in the step itself: Lightning prefetches, and would ask before the last tell.
        """
        settings = self.study.settings
        batches = math.ceil(settings.trials / settings.batch_size)
        if self.study.scheduler is not None:  # how many there will be only shows
            batches = (settings.trials + 1) * self.study.fitness.num_samples
        private = torch.Generator()  # a loader draws a seed for its workers, even without any
        return DataLoader(range(batches), batch_size=None, generator=private)  # type: ignore[arg-type]

    @staying()  # an optimizer or a logger may fork, too
    def training_step(self, batch: int, batch_idx: int) -> None:
        """Evaluate one batch of candidates and tell the optimizer."""
        first, campaign = len(self.trials), self._campaign
        with staying():  # what follows needs the folder that a plugin may have left
            jobs = campaign.jobs(self.study.settings.batch_size)
        recorded = [self._known(first + i, job) for i, job in enumerate(jobs)]
        new = [job for job, trial in zip(jobs, recorded, strict=True) if trial is None]
        best = self.incumbent
        tailorings, samples = [j.proposal.tailoring for j in new], [j.samples for j in new]
        done = iter(self._evaluator.evaluate(tailorings, None if best is None else best.tailoring, samples))
        finished = [
            trial if trial is not None else self._trial(first + i, jobs[i].proposal, next(done))
            for i, trial in enumerate(recorded)
        ]
        for trial in finished:
            self._finish(trial)
        if new:  # steps that only repeat recorded trials come before what an interruption left
            self._evaluator.settle()
        with staying():
            campaign.tell(finished)
        if not finished and not campaign.over:
            self._stop(self._nothing_new())
        self._check_failures()
        self._check_constant()
        self._after_batch()

    def track_pictures(self) -> None:
        """Give the loggers pictures of the study, and the table of its trials."""
        trials, layout = self.trials, self.study.family.layout
        dense = None if self.dense is None else self.dense.score
        pictures = {
            "history": partial(history_figure, trials, layout, dense_fitness=dense),
            "layer_map": partial(layer_map_figure, trials, layout, trial=self.result),
            "importance": partial(importance_figure, trials, layout),
        }
        if self.study.objectives:
            pictures["front"] = partial(front_figure, trials, layout)
        self._tracker.finish(trials, layout, pictures)

    def end_session(self, how: str) -> None:
        """Record how this process's work on the study ends, on rank 0."""
        if self._journal is not None and self._journal.sessions and "ended" not in self._journal.sessions[-1]:
            with suppress(JournalError):  # a full disk: the trials say all that matters
                self._journal.end_session(how, moment())

    def close(self) -> None:
        """Close the journal and what the processes share; once is enough, twice does no harm."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    # -- One trial ------------------------------------------------------------------------------------------------

    def _known(self, number: int, job: Job) -> Trial | None:
        """Return the recorded trial of that number, or what an earlier record says of the candidate."""
        recorded = self._replay.lookup(number, job.proposal)
        kept = self._earlier.kept.get((job.proposal.tailoring.digest, job.samples))
        if recorded is not None or kept is None:
            return recorded
        return replace(kept, number=number, params=job.proposal.params, origin=job.proposal.origin, costs={})

    def _trial(self, number: int, proposal: Proposal, outcome: Outcome) -> Trial:
        found = outcome.measurement
        reason = found if isinstance(found, str) else None
        measured = None if isinstance(found, str) else found
        trial = Trial(
            number=number,
            params=proposal.params,
            tailoring=proposal.tailoring,
            state="complete" if measured is not None else "failed",
            fitness=None if measured is None else measured.score,
            metrics={} if measured is None else {**measured.metrics, **_parts(measured)},
            seconds=outcome.seconds,
            costs=outcome.costs,
            origin=proposal.origin,
            reason=reason,
            objectives=outcome.objectives,
            samples=outcome.samples,
            fidelity=outcome.samples / self.study.fitness.num_samples,
        )
        return as_recorded(trial)

    def _finish(self, trial: Trial) -> None:
        if self._journal is not None and self._journal.lacks(trial.number):
            self._journal.append(trial)
        self.trials.append(trial)
        best = self.incumbent
        retained = None if best is None or best.fitness is None else self.retained(best.fitness)
        self._tracker.trial(trial, self.trials, best, retained)

    def _after_batch(self) -> None:
        """Validate, and end when the budget or the patience does."""
        over = self._campaign.over
        due = self._validate.due(self.incumbent, len(self.trials), last=over or self.stopped is not None)
        found = None if due is None else self._validate(due, self._recorded.get(due.number))
        if due is not None and found is not None:
            self.validations[due.number] = found
            if self._journal is not None and due.number not in self._recorded:
                self._journal.add_validation(due.number, found)
            self._tracker.validation(due.number, found)
        if self._validate.patience_lost(self.validations):
            self._stop(f"{self.study.validation.patience} validations in a row found no better score")
        elif over:
            self.trainer.should_stop = True

    def _check_constant(self) -> None:
        """Stop when nothing that candidates do makes a difference."""
        complete = [t for t in self.trials if t.fitness is not None]
        if len({t.tailoring.digest for t in complete}) < CONSTANT:
            return
        scores = {"fitness": {t.fitness for t in complete}}
        scores |= {o.name: {t.objectives.get(o.name) for t in complete} for o in self.study.objectives}
        for name, values in scores.items():
            if len(values) == 1:
                raise EvaluationError(
                    f"A search needs scores that differ; {name} is {values.pop()} for each of {CONSTANT} "
                    "candidates. Take more samples, a smoother signal, or another objective. The trials are in "
                    f"{str(self.study.directory)!r}."
                )

    def _check_failures(self) -> None:
        last = self.trials[-self.study.settings.max_failures :]
        if len(last) == self.study.settings.max_failures and all(t.state == "failed" for t in last):
            reasons = sorted({str(t.reason) for t in last})
            raise EvaluationError(
                f"A study stops after study.max_failures={len(last)} failed trials in a row; their reasons: "
                f"{'; '.join(reasons[:3])}. Nothing is lost: mend the cause and resume with --resume "
                f"{self.study.directory}."
            )

    def _nothing_new(self) -> str:
        """Say why no candidate is left, and note whether too few were tried for that to be a good end."""
        tried, size = len({t.tailoring.digest for t in self.trials}), self.study.space.size()
        if not size.continuous and tried >= size.discrete:
            return f"all {tried} candidates of the search space were tried"
        self.too_few = max(tried / size.discrete, self.spent / self.study.settings.trials) < 0.5
        return (
            f"{type(self.study.optimizer).__name__} proposes nothing new after {len(self.trials)} trials: only "
            f"candidates that were tried, {MAX_REPEATS} times in a row"
        )

    def _stop(self, why: str) -> None:
        self.stopped = why
        self.trainer.should_stop = True

    # -- Setup ----------------------------------------------------------------------------------------------------

    def _identified(self) -> Contents:
        with step("Models, data and plugins identified by their content"):
            return study_contents(self.study)

    def _reopen(self, contents: Contents, device: torch.device) -> Journal:
        journal = Journal.open(self.study.directory)
        if journal.recovered is not None:
            say(
                f"[yellow]![/] The last line of {FILE_NAME} was torn ({len(journal.recovered)} characters); it "
                "was cut off, and its trial is run again."
            )
        differences = journal.header.differences(self.identity, contents)
        if differences and not self.accept_changes:
            journal.close()
            raise JournalError(
                "A study resumes with the recipe and the content that it began with; since then "
                f"{'; '.join(differences)}. Undo the change; or start over from the candidates that were tried, "
                "and score those anew that it touches, with --accept-changes; or begin a new study in another "
                "folder (study.directory)."
            )
        self._starts_over = bool(differences)
        changed = changed_versions(journal, device)
        if changed:
            say(
                f"[yellow]![/] The study ran with others before: {'; '.join(changed)}. Recorded trials are "
                "taken as they are; new ones can differ from what the old versions would have found."
            )
        return journal

    def _load_family(self, device: torch.device) -> None:
        """Load the family in one data type on all ranks: the one that a resumed study began with."""
        family, chosen = self.study.family, self.study.family.dtype
        if self.global_rank == 0:
            recorded = recorded_dtype(self._journal) if self._journal is not None else None
            chosen = recorded or dtype_name(compute_dtype(chosen, device))
        family.dtype = self.trainer.strategy.broadcast(chosen)
        with step(f"Model family loaded, computing in {family.dtype}"):
            compare_models(family, everything=family.compare == "all")
            self._shared = share_weights(family, self.trainer, device)
            family.load(device)

    def _open_journal(self) -> list[Trial]:
        trials: list[Trial] = []
        if self.global_rank == 0:
            beside = {"recipe.yaml": self.recipe, **plugin_copies()}
            if self._journal is None:
                self._journal = Journal.create(self.study.directory, self._header(), beside)
            elif self._starts_over:
                _drop_unfinished(self.study.directory)  # first: none of it may count for the new record
                self._journal = self._journal.start_over(self._header(), beside)
            self._earlier = earlier_work(self.study.directory, self._journal.header)
            if self._starts_over:
                number, touched = len(self._earlier.trials), self._earlier.touched
                say(f"[green]✓[/] Starts over from {number} candidates; {touched} of them are scored anew")
            trials, self.dense = list(self._journal.trials), self._journal.dense
            self._recorded = dict(self._journal.validations)
            self._journal.begin_session(session_facts(self.trainer.world_size, self.trainer.strategy.root_device))
        shared = (trials, self.dense, self._recorded, self._earlier)
        trials, self.dense, self._recorded, self._earlier = self.trainer.strategy.broadcast(shared)
        return trials

    def _header(self) -> JournalHeader:
        family = self.study.family
        return JournalHeader(
            self.identity,
            {**environment(), "compute_dtype": family.dtype},
            family.layout,
            family.num_parameters(self.study.dense),
            family.layer_parameters(),
            self._contents,
        )

    def _recover_work(self, ranks: int) -> tuple[list[Part], dict[str, list[SampleResult]], dict[str, int]]:
        """Return what an interrupted run left: pieces of its last batch, results on samples, and deaths."""
        parts: list[Part] = []
        samples: dict[str, list[SampleResult]] = {}
        deaths: dict[str, int] = {}
        if self.global_rank == 0:
            folder, goes_on = self.study.directory, self.resume and not self._starts_over
            if goes_on:
                parts, samples = list(read_pending(folder)), read_samples(folder)
                deaths = count_deaths(folder)
                drop_pending(folder, ranks)
            else:
                _drop_unfinished(folder)
        return self.trainer.strategy.broadcast((parts, samples, deaths))

    def _measure_dense(self) -> None:
        self.study.observe_dense()
        digest, samples = self.study.dense.digest, self._evaluator.samples
        parts = self.study.scheduler is not None
        if parts:
            samples.kept.add(digest)
        known = not parts or len(samples.get(digest)) == self.study.fitness.num_samples
        if self.dense is None or not known:  # the file of an earlier run may be gone
            with step("Dense base model measured"):
                found = self._measured_dense()
            if self.dense is None and self._journal is not None:
                self._journal.set_dense(found)
            self.dense = self.dense or found
        self.dense = self.study.fitness.set_reference(self.dense, samples.get(digest) if parts else None)
        emit("dense", {"score": self.dense.score, "metrics": dict(self.dense.metrics)})

    def _compensate(self, device: torch.device) -> None:
        """Gather what candidates are compensated with; the run keeps the terms of those that it makes."""
        keep_terms(self.study.family, self.study.directory, cached=True)
        if self.study.compensation is not None:
            with staying():
                self.study.compensate(device, lambda tailoring: self._evaluator.measure(tailoring).score)
            emit("compensation", dict(self.study.compensation.facts()))

    def _measured_dense(self) -> Measurement:
        try:
            return self._evaluator.measure(self.study.dense)
        except EvaluationError as error:
            raise EvaluationError(
                f"Candidates are compared with the dense base, which can't be scored itself: {error} Mend "
                "that first: candidates would fare no better."
            ) from error

    def _dense_on(self, samples: int) -> float:
        """Return the dense model's score on some first samples."""
        if samples not in self._dense_scores:
            results = self._evaluator.samples.get(self.study.dense.digest)[:samples]
            self._dense_scores[samples] = self.study.fitness.summarise(results).score
        return self._dense_scores[samples]

    def _warm_starts(self) -> list[tuple[str, Tailoring]]:
        context = self.study.context(self.engine)
        tried = [(trial.origin, context.in_space([trial.tailoring])) for trial in self._earlier.trials]
        starts = [(origin, tailoring) for origin, found in tried for tailoring in found]
        if len(starts) < len(tried):
            say(f"[yellow]![/] {len(tried) - len(starts)} earlier candidates lie outside the search space now")
        for start in self.study.warm_starts:
            with step(f"Warm start {start.label}"):
                starts += [(start.label, t) for t in start.starts(context)]
        return starts


def _drop_unfinished(folder: Path) -> None:
    """Forget what an earlier search in a folder had begun and not finished."""
    drop_deaths(folder)
    drop_samples(folder)
    drop_pending(folder, 0)


def _parts(measurement: Measurement) -> dict[str, float]:
    return {f"{name}/score": score for name, score in measurement.parts.items()}
