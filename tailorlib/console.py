"""Where the library speaks: to the person at the terminal, and to scripts.

By default there is only the person. ``--quiet`` leaves errors alone, ``--json`` writes facts to the standard
output, one JSON object per line, and all that is for people to the standard error.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import IO, Any, TextIO, cast

from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console, ConsoleOptions, RenderableType
from rich.errors import LiveError
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from tailorlib.escaping import visible
from tailorlib.switches import spelled_out

_lost: OSError | None = None
"""Why nobody gets the output any more, or ``None``."""


class _Tolerant:
    """A stream that may fail: a closed pipe or terminal, a full disk. No search ends for want of readers."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._noting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noting():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        global _lost
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not getattr(self._stream, "closed", False):
                raise
            # whoever closed the stream, a plugin perhaps, wants no more of it
            _lost = _lost or (error if isinstance(error, OSError) else None)
            with suppress(OSError, ValueError):  # what is buffered would fail again when Python ends
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


class SafeConsole(Console):
    """A console on which no string can steer the terminal, and whose stream may fail.

    What can't be seen is shown by its number. Only rich itself writes control sequences: for colours, and to move
    the cursor.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object into segments of visible text."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text), style)

    @property
    def file(self) -> IO[str]:
        """The stream."""
        return cast("IO[str]", _Tolerant(super().file))

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


def lost_output() -> OSError | None:
    """Return why a part of the output was lost, or ``None``; a reader that had enough is no loss."""
    return None if isinstance(_lost, BrokenPipeError) else _lost


console: Console = SafeConsole(highlight=False)
if not console.is_terminal:
    console.width = 140  # a log file has no edge to wrap at


def is_first_rank() -> bool:
    """Say whether this process speaks for all: rank 0, as Lightning set it, or any without Lightning."""
    return getattr(rank_zero_only, "rank", 0) == 0


FLAGS = ("--quiet", "--json")
"""Taken off any command line before its verb sees it."""
_facts: TextIO | None = None
"""Where facts for scripts go; ``None`` if no script listens."""


@contextmanager
def speaking(args: Sequence[str]) -> Iterator[list[str]]:
    """Choose who is spoken to, and yield the arguments of a command line, spelled out, less the flags that say so.

    ``--quiet`` says nothing but errors to people. ``--json`` writes JSON lines for scripts to the standard output;
    all else that anything prints goes to the standard error.
    """
    global _facts, _lost
    _lost = None
    before = _facts, console.quiet, console.stderr
    with ExitStack() as redirected:
        if "--json" in args:
            _facts, console.stderr = sys.stdout, True
            redirected.enter_context(redirect_stdout(sys.stderr))
        console.quiet = "--quiet" in args
        redirected.enter_context(_visible_warnings())
        try:
            yield spelled_out([a for a in args if a not in FLAGS])
        finally:
            _facts, console.quiet, console.stderr = before


@contextmanager
def _visible_warnings() -> Iterator[None]:
    """Let what is logged and warned of show what can't be seen: it may quote a model's config."""
    record, formatted = logging.getLogRecordFactory(), warnings.formatwarning

    class Visible(logging.LogRecord):
        def getMessage(self) -> str:  # noqa: N802 (logging's name)
            return visible(super().getMessage())

    def formatwarning(*args: Any, **kwargs: Any) -> str:
        return visible(formatted(*args, **kwargs))

    logging.setLogRecordFactory(Visible)
    warnings.formatwarning = formatwarning
    try:
        yield
    finally:
        logging.setLogRecordFactory(record)
        warnings.formatwarning = formatted


def machine() -> bool:
    """Say whether scripts listen."""
    return _facts is not None


def emit(kind: str, data: Mapping[str, Any]) -> None:
    """Tell scripts something, on rank 0: a JSON object in a line of its own. Numbers that are not finite are null.

    Args:
        kind: What it is about: ``trial``, ``result``, ...; it stands under the key ``"kind"``.
        data: Plain data.
    """
    if _facts is not None and is_first_rank():
        line = json.dumps({"kind": kind, **_finite(data)}, allow_nan=False, default=str)
        facts = _Tolerant(_facts)
        facts.write(line + "\n")
        facts.flush()


def tell_error(error: Exception, message: str) -> None:
    """Say what a user has to mend, on the standard error; scripts are told, too."""
    emit("error", {"error": type(error).__name__, "message": message})
    SafeConsole(stderr=True, highlight=False, soft_wrap=True).print("[red]tailor: error:[/] ", end="")
    SafeConsole(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


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
    if console.quiet:
        os.environ.setdefault("WANDB_SILENT", "true")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*configure_optimizers` returned `None`.*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show a spinner while something takes its time, and say when it is done."""
    if is_first_rank() and console.is_terminal:
        with console.status(f"{escape(what)} ..."):
            yield
    else:
        yield
    say(f"[green]✓[/] {escape(what)}")


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, and yield what advances it by one."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal and is_first_rank() and not console.quiet
    progress = Progress(*columns, console=console, disable=not shown, transient=True)
    task = progress.add_task(description, total=total)
    # rich before 14.1 shows one display at a time, and a spinner may be turning: then it is only that
    with suppress(LiveError):
        progress.start()
    try:
        yield lambda: progress.advance(task)
    finally:
        progress.stop()
