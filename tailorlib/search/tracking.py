"""What a study tells the outside: Lightning's loggers (W&B, TensorBoard, CSV), and scripts that read ``--json``.

Every logger gets the same figures under the same names, one set per trial, with the trial's number as step.
Loggers that take more get more: the recipe as config, pictures, and on W&B a table of the trials and the model as
an artifact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from rich.markup import escape

from tailorlib.console import emit, say
from tailorlib.escaping import visible
from tailorlib.files import os_message, replace_file
from tailorlib.pareto import hypervolume
from tailorlib.report.pictures import layer_map_text
from tailorlib.search_space import FamilyLayout
from tailorlib.trial import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tailorlib.fitness import Measurement

_SHIELDED = ("log_metrics", "log_hyperparams", "log_graph", "log_image", "log_table", "save", "finalize")
WANDB_FILE = "wandb.json"
"""File of a run folder with the id of its W&B run, and how many trials that run has."""
TABLE_COLUMNS = (
    "trial",
    "state",
    "origin",
    "fitness",
    "samples",
    "seconds",
    "layers",
    "layer map",
    "tailoring",
    "reason",
)


def shield(logger: Any) -> None:
    """Let a logger fail without ending the search: what it writes is in the journal, too. It is told once.

    Args:
        logger: One of Lightning's loggers; its methods are replaced, as Lightning itself calls them.
    """
    lost: list[Exception] = []

    def shielded(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if lost:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as error:  # of a disk, a network or a library: none is worth the search
                lost.append(error)
                tell_lost(type(logger).__name__, error)

        return call

    for name in _SHIELDED:
        if hasattr(logger, name):
            setattr(logger, name, shielded(getattr(logger, name)))


@contextmanager
def secondary(what: str) -> Iterator[None]:
    """Go on if the block fails, which writes something that a study can do without; it is told."""
    try:
        yield
    except Exception as error:
        tell_lost(what, error)


def tell_lost(what: str, error: Exception) -> None:
    """Say that something is lost that a study can do without."""
    reason = os_message(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    say(
        f"[yellow]![/] {escape(what)} failed and writes nothing more: {escape(reason)} The search goes on: all "
        "its trials are in the journal."
    )


class Tracker:
    """Passes a study on to loggers and scripts, on rank 0.

    Args:
        loggers: The trainer's loggers.
        folder: The run folder.
    """

    def __init__(self, loggers: Sequence[Any], folder: Path) -> None:
        self.loggers, self.folder = list(loggers), folder
        self._logged: dict[int, int] = {}

    def begin(self, recipe: str) -> None:
        """Give the loggers the recipe, and find out which trials a continued W&B run has already."""
        config = yaml.safe_load(recipe) or {}
        for i, logger in enumerate(self.loggers):
            logger.log_hyperparams(config)
            if isinstance(logger, WandbLogger):
                identity, trials = tracked_run(self.folder)
                self._logged[i] = trials if identity == logger.experiment.id else 0
                self._remember(i)

    def trial(self, trial: Trial, trials: Sequence[Trial], best: Trial | None, retained: float | None) -> None:
        """Log a finished trial.

        Args:
            trial: The trial.
            trials: All trials so far, this one included.
            best: The best of them.
            retained: Fitness of the best in percent of the dense model's, if that is known.
        """
        figures = trial_figures(trial, best, retained)
        if trial.objectives:
            figures["hypervolume"] = hypervolume(trials)
        for i, logger in enumerate(self.loggers):
            if trial.number < self._logged.get(i, 0):  # the W&B run that goes on has it
                continue
            logger.log_metrics(figures, step=trial.number)
            logger.save()
            if i in self._logged:
                self._logged[i] = trial.number + 1
                self._remember(i)
        facts = {"best": None if best is None else best.number, "retained_percent": retained}
        emit("trial", {**trial.to_dict(), **facts})

    def validation(self, number: int, found: Measurement) -> None:
        """Log what validation found of a trial."""
        figures = {"validation/score": found.score, **{f"validation/{k}": v for k, v in found.metrics.items()}}
        for logger in self.loggers:
            logger.log_metrics({visible(name): value for name, value in figures.items()}, step=number)
            logger.save()
        emit("validation", {"trial": number, "score": found.score, "metrics": dict(found.metrics)})

    def finish(
        self, trials: Sequence[Trial], layout: FamilyLayout, pictures: Mapping[str, Callable[[], Figure]]
    ) -> None:
        """Log pictures and the table of trials.

        Args:
            trials: The study's trials.
            layout: The family's layout.
            pictures: Makes each picture, by name; called where a logger takes pictures.
        """
        step = trials[-1].number if trials else 0
        for logger in self.loggers:
            with secondary(f"The pictures of {type(logger).__name__}"):
                self._draw(logger, trials, layout, pictures, step)

    def _draw(
        self,
        logger: Any,
        trials: Sequence[Trial],
        layout: FamilyLayout,
        pictures: Mapping[str, Callable[[], Figure]],
        step: int,
    ) -> None:
        if isinstance(logger, WandbLogger):
            for name, make in pictures.items():
                logger.log_image(key=f"pictures/{name}", images=[make()], step=step)
            rows = [list(row) for row in table_rows(trials, layout)]
            logger.log_table(key="trials", columns=list(TABLE_COLUMNS), data=rows, step=step)
        elif isinstance(logger, TensorBoardLogger):
            for name, make in pictures.items():
                logger.experiment.add_figure(f"pictures/{name}", make(), global_step=step)

    def model(self, model: Path | None, facts: Mapping[str, Any]) -> None:
        """Log the exported model as a W&B artifact.

        The card, the tailoring and the recipe always go into it. The weights do with ``log_model: true`` of the
        logger; without, the artifact names the folder where they are.

        Args:
            model: Folder of the exported model; ``None`` if there is none.
            facts: Plain data that describes it.
        """
        for logger in self.loggers:
            if not isinstance(logger, WandbLogger):
                continue
            with secondary("The artifact on W&B"):
                self._log_model(logger, model, facts)

    def _log_model(self, logger: Any, model: Path | None, facts: Mapping[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(f"{logger.experiment.id}-model", type="model", metadata=dict(facts))
        for name in ("tailoring.yaml", "recipe.yaml", "benchmark.md"):
            if (self.folder / name).is_file():
                artifact.add_file(str(self.folder / name))
        if model is not None:
            _add_model(artifact, model, whole=bool(logger._log_model))
        logger.experiment.log_artifact(artifact)

    def _remember(self, i: int) -> None:
        data = {"id": self.loggers[i].experiment.id, "trials": self._logged[i]}
        with suppress(OSError):  # a full disk stops the study at its journal, which matters more
            replace_file(self.folder / WANDB_FILE, json.dumps(data).encode() + b"\n")


def trial_figures(trial: Trial, best: Trial | None, retained: float | None) -> dict[str, float]:
    """Return what loggers are told of a trial, by name.

    ``fitness``, ``objective/*`` and a task's own metrics; ``samples`` and ``fidelity``, their share of all;
    ``seconds``; ``layers``, the number kept; ``costs/*`` as in :class:`~tailorlib.search.evaluator.Outcome`;
    ``reused/layers`` and ``reused/merges``, hit rates of the caches in [0, 1]; ``device_memory_mib``, the peak so
    far on an accelerator; ``best_fitness`` and ``retained_percent`` of the incumbent.
    """
    figures = {"seconds": trial.seconds, "samples": trial.samples, "fidelity": trial.fidelity, **trial.metrics}
    figures |= {"layers": len(trial.tailoring.layers), "failed": float(trial.fitness is None)}
    figures |= {f"costs/{name}": value for name, value in trial.costs.items()}
    figures |= {f"objective/{name}": value for name, value in trial.objectives.items()}
    for name, made in (("layers", "layers_run"), ("merges", "merges")):
        again, new = trial.costs.get(f"{name}_reused", 0.0), trial.costs.get(made, 0.0)
        if again + new:
            figures[f"reused/{name}"] = again / (again + new)
    if trial.fitness is not None:
        figures["fitness"] = trial.fitness
    if best is not None and best.fitness is not None:
        figures["best_fitness"] = best.fitness
        figures["best_trial"] = best.number
    if retained is not None:
        figures["retained_percent"] = retained
    if torch.accelerator.is_available():
        figures["device_memory_mib"] = torch.accelerator.max_memory_allocated() / 2**20
    return {visible(name): value for name, value in figures.items()}


def table_rows(trials: Sequence[Trial], layout: FamilyLayout) -> Iterator[tuple[Any, ...]]:
    """Yield a row of :data:`TABLE_COLUMNS` for each trial."""
    for trial in trials:
        yield (
            trial.number,
            trial.state,
            trial.origin,
            trial.fitness,
            trial.samples,
            trial.seconds,
            len(trial.tailoring.layers),
            layer_map_text(trial.tailoring, layout).plain,
            trial.tailoring.to_yaml(),
            trial.reason or "",
        )


def tracked_run(folder: Path) -> tuple[str | None, int]:
    """Return the id of a study's W&B run, and how many trials that run has; ``(None, 0)`` if there is none."""
    try:
        data = json.loads((folder / WANDB_FILE).read_bytes())
        return str(data["id"]), int(data["trials"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, 0


def _add_model(artifact: Any, model: Path, *, whole: bool) -> None:
    if whole:
        artifact.add_dir(str(model), name="model")
        return
    for name in ("README.md", "config.json"):
        if (model / name).is_file():
            artifact.add_file(str(model / name), name=f"model/{name}")
    artifact.add_reference(model.resolve().as_uri(), name="weights", checksum=False)
