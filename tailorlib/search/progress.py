"""What a person sees while a search runs: trial, best and last fitness, retained %, speed, time left."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tailorlib.console import console, say
from tailorlib.search.module import SearchModule
from tailorlib.trial import Trial


class SearchProgress(ProgressBar):
    """A progress bar on a terminal; a line per trial elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None
        self._shown = 0
        self._began, self._new = time.monotonic(), 0

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._began = time.monotonic()
        if not (self._enabled and console.is_terminal and isinstance(pl_module, SearchModule)):
            return
        self._bar = Progress(
            TextColumn("[bold]searching[/]"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self._task = self._bar.add_task("search", total=pl_module.study.settings.trials, figures="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the trials of the batch."""
        if not (self._enabled and isinstance(pl_module, SearchModule)):
            return
        for trial in pl_module.trials[self._shown :]:
            self._show(trial, pl_module)
        self._shown = len(pl_module.trials)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, trial: Trial, module: SearchModule) -> None:
        best, retained = module.incumbent, None
        figures = "failed" if trial.fitness is None else f"last {trial.fitness:.4f}"
        if best is not None and best.fitness is not None:
            retained = module.retained(best.fitness)
            figures += f"  best [green]{best.fitness:.4f}[/] (trial {best.number})"
        if retained is not None:
            figures += f"  retained {retained:.1f} %"
        if trial.reused_layers:
            figures += f"  reused {trial.reused_layers:.0%} of layers"
        self._new += trial.number >= module.resumed_at
        if self._new:
            figures += f"  {60 * self._new / (time.monotonic() - self._began):.1f} trials/min"
        if self._bar is not None:
            done = trial.number + 1 if module.study.scheduler is None else module.spent
            self._bar.update(self._task, completed=round(done, 1), figures=figures)
            return
        total = module.study.settings.trials
        reason = f"  {trial.reason}" if trial.reason else ""
        place = f"{trial.number + 1}/{total}"
        if module.study.scheduler is not None:
            place = f"{trial.number + 1} (spent {module.spent:.1f}/{total})"
            figures += f"  on {trial.fidelity:.0%} of the samples"
        say(f"trial {place}  {figures}  {trial.seconds:.1f} s  {escape(trial.origin + reason)}")
