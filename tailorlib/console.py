"""Where the library speaks to the person at the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console, RenderableType
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 140  # a log file has no edge to wrap at


def is_first_rank() -> bool:
    """Say whether this process speaks for all: rank 0, as Lightning set it, or any without Lightning."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(*what: RenderableType) -> None:
    """Print to the terminal, on rank 0 only."""
    if is_first_rank():
        console.print(*what, soft_wrap=all(isinstance(w, str) for w in what))


def quieten() -> None:
    """Mute the chatter of the libraries below: what a user can't act on."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.fabric",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("lm_eval", "lm-eval", "datasets", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*configure_optimizers` returned `None`.*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show a spinner while something takes its time, and say when it is done."""
    if is_first_rank() and console.is_terminal:
        with console.status(f"{what} ..."):
            yield
    else:
        yield
    say(f"[green]✓[/] {what}")


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, and yield what advances it by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = console.is_terminal and is_first_rank()
    progress = Progress(*columns, console=console, disable=not shown, transient=True)
    task = progress.add_task(description, total=total)
    # rich before 14.1 shows one display at a time, and a spinner may be turning: then it is only that
    with suppress(LiveError):
        progress.start()
    try:
        yield lambda: progress.advance(task)
    finally:
        progress.stop()
