"""The verbs of the command line, as methods of a Lightning Trainer."""

from __future__ import annotations

import os
import signal
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tailorlib.console import emit, say, step
from tailorlib.endings import OVERTIME, EndedEarly, Stopped, no_exit, note, received, signal_name
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import JournalError, LostRankError, PluginError, RecipeError, TailorError, error_text
from tailorlib.export import CardInfo, export_model
from tailorlib.export.command import choose, export_verb, require_scored
from tailorlib.files import os_message, refuse_existing, write_text
from tailorlib.interchange import read_foreign
from tailorlib.journal import FILE_NAME, Journal, refuse_occupied
from tailorlib.models.family import ModelFamily
from tailorlib.models.terms import FOLDER, TermFiles, keep_terms
from tailorlib.plugin_errors import as_plugin_error
from tailorlib.plugins import REGISTRIES
from tailorlib.report.front import draw_front, front_table
from tailorlib.report.pictures import draw_study
from tailorlib.report.summary import study_summary
from tailorlib.report.table import BenchmarkRow, markdown_table, render_table, write_benchmark
from tailorlib.run_lock import archive
from tailorlib.search.benchmark import run_benchmark
from tailorlib.search.compensating import compensate, compensation_of, finalists_table, keep_found
from tailorlib.search.compensating import finalists as best_trials
from tailorlib.search.contents import study_contents
from tailorlib.search.module import SearchModule
from tailorlib.search.plan import plan_table
from tailorlib.search.progress import SearchProgress
from tailorlib.search.ranks import leaving_together
from tailorlib.search.sessions import recorded_dtype
from tailorlib.search.signals import listen
from tailorlib.search.study import Study
from tailorlib.search.tracking import secondary, shield
from tailorlib.search.trainer_options import option_faults, strategy_for
from tailorlib.search.watch import lost_message, somebody_gone, stop_watch
from tailorlib.trial import Trial

MANY_FAILURES = 0.1
"""Share of failed trials from which a study warns of them."""


class TailorTrainer(Trainer):
    """A Lightning Trainer that searches, evaluates, exports and plans.

    All arguments are the Trainer's own: devices, strategy, loggers, callbacks, profiler, ``max_time``. Those that
    a search has no use for keep the value that changes nothing.

    Raises:
        RecipeError: If one of those has another value.
    """

    def __init__(self, **kwargs: Any) -> None:
        callbacks = list(kwargs.pop("callbacks", None) or [])
        faults = option_faults(kwargs)
        if faults:
            raise RecipeError(faults)
        kwargs["strategy"] = strategy_for(kwargs)
        shown = kwargs.get("enable_progress_bar")
        if shown is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(SearchProgress())
        super().__init__(callbacks=callbacks, **kwargs)
        for logger in self.loggers:
            shield(logger)
        listen(self)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the journal is on disk already.

        SLURM's signal before a job is requeued makes Lightning save a checkpoint. The next job would load it, and
        skip as many batches as were done: a resumed study goes through all of them again, with recorded results.
        """

    def search(self, model: SearchModule, resume: str | None = None, accept_changes: bool = False) -> None:
        """Search for the fittest tailoring, compare it with baselines, and write the model.

        Args:
            model: The search.
            resume: A run folder to continue; without --config its own recipe is used.
            accept_changes: If the recipe, a model, a text, a task or a plugin of the resumed study has changed,
                start over from the candidates that were tried, and score those anew that the change touches.
        """
        _check_folder(model.study)
        model.accept_changes = accept_changes
        existing = model.study.settings.existing
        if existing == "resume" and (model.study.directory / FILE_NAME).exists():
            resume, model.resume = str(model.study.directory), True
        if resume is None and existing == "refuse":
            _refuse_occupied(model.study)
        model.prepare(self.strategy.root_device)
        if resume is None:
            _archive(model.study)
        try:
            if self.is_global_zero:
                model.open_record(self.strategy.root_device)
            self._search(model)
        except Stopped as stop:
            stop_watch()
            model.end_session(f"stopped by {signal_name(stop.number)}")
            self._tell_stopped(model, stop)
            raise
        except Exception as error:
            gone = somebody_gone() if self.world_size > 1 and isinstance(error, RuntimeError) else None
            stop_watch()
            model.end_session(f"{type(error).__name__}: {error_text(error)}")
            if gone is not None:  # who waited for it got an error of the connection
                raise LostRankError(lost_message(gone)) from error
            if (fault := as_plugin_error(error)) is not None:
                raise PluginError(f"{fault} {_how_to_resume(model, ' --accept-changes')}") from error
            if isinstance(error, OSError):
                raise TailorError(f"{os_message(error)} {_how_to_resume(model)}") from error
            raise
        finally:
            model.close()  # Lightning skips teardown when a trial ends the study

    def _search(self, model: SearchModule) -> None:
        self._fit(model)
        cut = None if model.finished else self._cut_short()
        if model.stopped:
            say(f"[yellow]![/] The search ended early: {escape(model.stopped)}.")
        if cut and not model.trials:
            model.end_session(f"stopped by {cut}")
            say(f"[yellow]![/] The search was stopped by {escape(cut)} before its first trial.")
            raise EndedEarly(OVERTIME)
        with leaving_together():
            if self.is_global_zero:
                self._conclude(model)
        sound = _tell_failures(model.trials)
        model.end_session(f"stopped by {cut}" if cut else model.stopped or "finished")
        if cut:
            say(f"[yellow]![/] The search is not finished: it was stopped by {escape(cut)}.")
            say(escape(_how_to_resume(model)))
            raise EndedEarly(OVERTIME)
        if not sound or model.too_few:
            raise EndedEarly(1)

    def _cut_short(self) -> str:
        """Return what ended the loop before the study was over, in a user's words."""
        timers = [c for c in self.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
        over = any((timer.time_remaining() or 1.0) <= 0 for timer in timers)
        return "max_time" if over else "a callback of the trainer"

    @rank_zero_only
    def _tell_stopped(self, model: SearchModule, stop: Stopped) -> None:
        emit("stopped", {"trials": len(model.trials), "directory": model.study.directory})
        total = model.study.settings.trials
        say(f"Stopped after {len(model.trials)} of {total} trials, by {signal_name(stop.number)}.")
        say(escape(_how_to_resume(model)))
        stop.told = True

    def evaluate(
        self, model: SearchModule, run: str | None = None, trial: int | None = None, tailoring: str | None = None
    ) -> None:
        """Score a tailoring with the recipe's benchmark: `tailor evaluate RUN`.

        Args:
            model: The search whose recipe is used.
            run: The run folder; its best trial is scored.
            trial: Number of another trial of the run.
            tailoring: A tailoring file, instead of a run.
        """
        study = model.study
        chosen = choose(run, trial, tailoring)
        if run is not None:  # in the data type of the search, whatever is fastest here and now
            study.family.dtype = recorded_dtype(Journal.read(Path(run))) or study.family.dtype
        engine = self._ready(study, run)
        keep_terms(study.family, Path(run) if run is not None else Path(str(tailoring)).parent)
        rows = run_benchmark(study, engine, chosen)
        say(render_table(rows))
        emit("benchmark", {"rows": [asdict(row) for row in rows]})
        if run is not None:
            write_benchmark(rows, Path(run) / "benchmark.json")

    def compensate(
        self,
        model: SearchModule,
        run: str | None = None,
        trial: int | None = None,
        tailoring: str | None = None,
        method: str | None = None,
        finalists: int = 1,
        output: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Mend what was found, layer by layer and without training: `tailor compensate RUN`.

        Writes OUTPUT/tailoring.yaml, its terms and a recipe, so that `tailor export OUTPUT` builds the model. The
        result is the best in validation, or else by the search's fitness, of all that were compared: as they were
        and compensated.

        Args:
            model: The search whose recipe is used: its data, and the text and teacher of its compensation.
            run: The run folder; its best trial is compensated.
            trial: Number of another trial of the run.
            tailoring: A tailoring file, instead of a run.
            method: Name of the compensation: Refit by default.
            finalists: Number of the run's best trials to compensate.
            output: Folder to write; RUN/compensated by default.
            overwrite: Replace what is there.
        """
        if output is None and run is None:
            raise RecipeError("A compensation needs a place to write to: give --output.")
        if finalists < 1:
            raise RecipeError(f"--finalists is at least 1, got {finalists}.")
        target = Path(output) if output is not None else Path(str(run)) / "compensated"
        for name in ("tailoring.yaml", "recipe.yaml"):
            refuse_existing(target / name, overwrite=overwrite)
        study, compensation = model.study, compensation_of(model.study, method)
        chosen = (
            best_trials(Path(run), finalists)
            if run is not None and trial is None and finalists > 1
            else [("the tailoring", choose(run, trial, tailoring))]
        )
        if run is not None:
            study.family.dtype = recorded_dtype(Journal.read(Path(run))) or study.family.dtype
        self._ready(study, run)
        beside = (Path(run) if run is not None else Path(str(tailoring)).parent) / FOLDER
        study.family.assembly.terms = TermFiles(None, cached=True, others=[beside])
        found = compensate(study, self.strategy.root_device, compensation, chosen)
        say(finalists_table(found))
        best = found[0]
        keep_found(best.tailoring, target, [beside])
        write_text(target / "tailoring.yaml", best.tailoring.to_yaml(), overwrite=overwrite)
        write_text(target / "recipe.yaml", model.recipe, overwrite=overwrite)
        emit("compensated", {"directory": target, "name": best.name, "fitness": best.fitness})
        say(f"[green]✓[/] The best is {escape(best.name)}. Build the model with:")
        say(f"  tailor export {escape(str(target))}")

    def export(self, model: ModelFamily, **kwargs: Any) -> None:
        """Write a tailoring as a Hugging Face model: `tailor export RUN --output DIR`.

        Args:
            model: The family that the recipe names.
            kwargs: See :func:`~tailorlib.export.command.export_verb`.
        """
        export_verb(model, self.strategy.root_device, **kwargs)

    def import_(
        self,
        model: None = None,
        source: str = "",
        output: str = "imported",
        base: str | None = None,
        candidates: list[str] | None = None,
        layers: int | None = None,
        legacy_base_index: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Read a mergekit configuration, or a genotype of the GPTailor paper's code: `tailor import FILE`.

        Writes OUTPUT/tailoring.yaml and OUTPUT/recipe.yaml, so that `tailor export OUTPUT` builds the model.

        Args:
            model: Not used.
            source: The file: YAML of mergekit, or JSON of a genotype.
            output: Folder to write.
            base: The base model; a genotype needs it, a mergekit configuration names its own.
            candidates: The candidates of a genotype, in its order.
            layers: Number of layers of the base; found in its config otherwise.
            legacy_base_index: Take task vectors as the paper's code does, against the base's layer of the output's
                number, instead of the source's.
            overwrite: Replace a folder that an earlier import wrote.
        """
        imported = read_foreign(
            Path(source), base=base, candidates=candidates, num_layers=layers, legacy_base_index=legacy_base_index
        )
        folder = Path(output)
        files = {"tailoring.yaml": imported.tailoring.to_yaml(), "recipe.yaml": imported.recipe()}
        for name in files:
            refuse_existing(folder / name, overwrite=overwrite)  # all of them, before the first is written
        for name, text in files.items():
            write_text(folder / name, text, overwrite=overwrite)
        for remark in imported.notes:
            say(f"[yellow]![/] {escape(remark)}")
        say(f"[green]✓[/] Read {escape(source)}; build the model with:")
        say(f"  tailor export {escape(output)}")

    def plan(self, model: SearchModule, calibrate: bool = True) -> None:
        """Say what a recipe would do: `tailor plan --config RECIPE`. No model is trained, converted or fetched.

        Args:
            model: The search to plan.
            calibrate: Measure how long a trial takes on this device. Without, models of any size can be planned
            here.
        """
        study = model.study
        study.prepare(self.strategy.root_device, build=False)
        table = plan_table(study, self.strategy.root_device, self.world_size, calibrate=calibrate)
        say(table)
        emit("plan", dict(zip(*(column.cells for column in table.columns), strict=True)))

    def plugins(self, model: SearchModule | None = None) -> None:
        """List the operations, optimizers and other plugins that recipes can name.

        Args:
            model: Not used.
        """
        table = Table("kind", "name", "what it is", title="Plugins", title_justify="left")
        for registry in REGISTRIES:
            for name, cls in registry.load_all().items():
                about = (cls.__doc__ or "").strip().split("\n")[0]
                table.add_row(registry.kind.__name__, Text(name), Text(about))
            table.add_section()
        say(table)
        for registry in REGISTRIES:
            emit("plugins", {"of": registry.kind.__name__, "names": sorted(registry.load_all())})

    def _ready(self, study: Study, run: str | None) -> Engine:
        engine = study.prepare(self.strategy.root_device)
        if run is not None:
            require_scored(Path(run), study_contents(study))
        with step("Model family loaded"):
            study.family.load(self.strategy.root_device)
        study.observe_dense()
        dense = study.fitness.evaluate(study.family.stitch(study.dense))
        study.fitness.set_reference(dense)
        return engine

    def _fit(self, model: SearchModule) -> None:
        """Run Lightning's loop, which ends with ``SystemExit`` on a signal."""
        try:
            with no_exit():
                try:
                    self.fit(model)
                except SIGTERMException:  # of this process, or of another rank
                    note(signal.SIGTERM)
                    raise
        except SystemExit as stop:
            raise Stopped(received() or signal.SIGTERM) from stop

    def _conclude(self, model: SearchModule) -> None:
        study, best = model.study, model.result
        dense = model.dense.score if model.dense else None
        seconds = sum(t.seconds for t in model.trials)
        say(study_summary(model.trials, dense, seconds, layout=study.family.layout, best=best))
        if best is None:
            raise JournalError(f"No trial of the study in {str(study.directory)!r} completed; nothing to export.")
        write_text(study.directory / "tailoring.yaml", best.tailoring.to_yaml())
        with secondary("The picture study.png"):
            draw_study(
                model.trials,
                study.family.layout,
                study.directory / "study.png",
                dense_fitness=dense,
                title=study.directory.name,
                best=best,
            )
        if study.objectives:
            say(front_table(model.trials))
            with secondary("The picture front.png"):
                draw_front(model.trials, study.directory / "front.png", title=study.directory.name)
        model.track_pictures()
        rows = self._benchmark(model, best)
        if study.settings.export:
            with step(f"Model written to {study.directory / 'model'}"):
                card = CardInfo(
                    title=study.directory.name,
                    scores=markdown_table(rows) if rows else {},
                    recipe=model.recipe,
                )
                export_model(study.family, best.tailoring, study.directory / "model", card=card, overwrite=True)
        facts = {
            "trial": best.number,
            "fitness": best.fitness,
            "dense_fitness": dense,
            "retained_percent": None if best.fitness is None else model.retained(best.fitness),
            "parameters": study.family.num_parameters(best.tailoring),
            "dense_parameters": study.family.num_parameters(study.dense),
            "benchmark": [asdict(row) for row in rows],
        }
        model.tracker.model(study.directory / "model" if study.settings.export else None, facts)
        failed = sum(t.fitness is None for t in model.trials)
        facts |= {"failed_trials": failed, "reliable": 2 * failed <= len(model.trials) and not model.too_few}
        emit("result", {**facts, "trials": len(model.trials), "seconds": seconds, "directory": study.directory})
        for logger in self.loggers:
            logger.finalize("success")

    def _benchmark(self, model: SearchModule, best: Trial) -> list[BenchmarkRow]:
        study = model.study
        if study.benchmark.fitness is None:
            return []
        seconds = statistics.median(t.seconds for t in model.trials)
        note = f"the best of {len(model.trials)} trials of {seconds:.1f} seconds each (median)"
        rows = run_benchmark(study, model.engine, best.tailoring, found_note=note)
        say(render_table(rows))
        with secondary("The table in benchmark.json and benchmark.md"):
            write_benchmark(rows, study.directory / "benchmark.json")
            write_text(study.directory / "benchmark.md", markdown_table(rows) + "\n")
        return rows


def _how_to_resume(model: SearchModule, option: str = "") -> str:
    folder = model.study.directory
    if not (folder / FILE_NAME).exists():
        return "Nothing is on disk yet: start it again."
    return f"All finished trials are on disk. Go on with:\n  tailor search --resume {folder}{option}"


setattr(TailorTrainer, "import", TailorTrainer.import_)  # a verb that Python has reserved


def _check_folder(study: Study) -> None:
    """Find out before the models are loaded whether the run folder can be written.

    Raises:
        RecipeError: If not.
    """
    target = study.directory.absolute()
    try:
        there = next(path for path in (target, *target.parents) if path.exists())
    except OSError as error:
        raise RecipeError(f"study.directory: {os_message(error, target, 'written')}") from error
    if not there.is_dir():
        raise RecipeError(f"study.directory is a folder; {str(there)!r} is a file. Name another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(f"study.directory can't be written: no permission for {str(there)!r}. Name another.")


def _tell_failures(trials: Sequence[Trial]) -> bool:
    """Warn if many trials failed; say whether the result rests on half of them at least."""
    reasons = Counter(str(t.reason) for t in trials if t.fitness is None)
    failed = reasons.total()
    sound = 2 * failed <= len(trials)
    if failed and failed >= MANY_FAILURES * len(trials):
        reason, number = reasons.most_common(1)[0]
        what = "many trials failed" if sound else "the result rests on less than half of the trials"
        say(
            f"[{'yellow' if sound else 'red'}]![/] {failed} of {len(trials)} trials failed: {what}. Of these "
            f"{number}: {escape(reason[:500])}"
        )
    return sound


@rank_zero_only
def _refuse_occupied(study: Study) -> None:
    if (study.directory / FILE_NAME).exists():
        refuse_occupied(study.directory)


@rank_zero_only
def _archive(study: Study) -> None:
    if (study.directory / FILE_NAME).exists():
        say(f"[green]✓[/] The earlier study was moved to {escape(str(archive(study.directory)))}")
