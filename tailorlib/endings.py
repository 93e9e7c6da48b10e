"""How a command ends: on a signal, on a mistake of the user, on a failure of the operating system.

Exit statuses: 0 for success, 2 for a mistake of the user, 1 for a result that failed, 128 plus the number of the
signal that ended the command, 124 (as of the command ``timeout``) for a limit of time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

NAMES = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP (its terminal was closed)"}
"""The signals that end a command, where the platform has them, in a user's words."""
OVERTIME = 124
"""Exit status of a search that a limit of time ended."""
REPEAT_SECONDS = 2.0
"""A signal that comes again within this time is the same one: a shell and a launcher may both have sent it."""


class Stopped(KeyboardInterrupt):
    """A signal ends the command.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.told = False
        """Whether the user was told."""


class EndedEarly(Exception):  # noqa: N818 - no error
    """A command ended before its work was done, and said so.

    Args:
        status: The exit status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _State:
    """The signals of this process."""

    process = 0
    raising = False
    received: int | None = None
    moment = 0.0


_last_words: list[Callable[[], None]] = []


def before_exit(call: Callable[[], None]) -> None:
    """Call something when this command is asked to end: whoever asked may kill it soon."""
    _last_words.append(call)


def last_words() -> None:
    """Call what is to be done before the process ends, in whatever way."""
    for call in _last_words:
        call()


def received() -> int | None:
    """Return the signal that asked this command to end, or ``None``."""
    return _State.received


def handle_signals() -> dict[int, Any]:
    """Let signals end the process, at once and with a message, until :func:`listening` makes exceptions of them.

    Signals that are ignored, as in a shell's background, or that others handle stay as they are.

    Returns:
        The handlers from before, of the signals that are handled now.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    default = (signal.SIG_DFL, signal.default_int_handler)
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    _State.process = os.getpid()
    return {n: signal.signal(n, _handle) for n in numbers if signal.getsignal(n) in default}


@contextmanager
def listening() -> Iterator[None]:
    """Raise :class:`Stopped` in the block when a signal comes; a second one ends the process."""
    before, raising = handle_signals(), _State.raising
    _State.received, _State.raising = None, True
    try:
        yield
    finally:
        _State.raising = raising
        _last_words.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def is_ours(number: int) -> bool:
    """Say whether this module handles a signal."""
    return signal.getsignal(number) is _handle


def note(number: int) -> None:
    """Remember that a signal came, for those who handle it themselves."""
    if _State.received is None:
        _State.received, _State.moment = number, time.monotonic()
        last_words()


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.process:  # a child that a plugin forked: it ends as it would have without us
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    first = _State.received is None
    note(number)
    if _State.raising and first:
        raise Stopped(number)
    if not _State.raising or time.monotonic() - _State.moment > REPEAT_SECONDS:
        tell_stopped(number)
        os._exit(128 + number)


def tell_stopped(number: int) -> None:
    """Say that a signal ended the command, on the standard error of the first rank."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if set(ranks) == {"0"}:
        with suppress(OSError):  # a terminal that was closed
            os.write(2, f"tailor: stopped by {signal_name(number)}.\n".encode())


def signal_name(number: int) -> str:
    """Return a signal in a user's words."""
    name = signal.Signals(number).name
    return NAMES.get(name, name)


def run_to_end(run: Callable[[], int], describe: Callable[[Exception], str] = str) -> int:
    """Run a command, and turn every way in which it can end into a message and an exit status.

    Args:
        run: The command; returns its exit status.
        describe: Returns the message of an error of the parser.

    Returns:
        The exit status.
    """
    from jsonargparse import ArgumentError

    from tailorlib.console import tell_error
    from tailorlib.exceptions import PluginError, TailorError
    from tailorlib.files import os_message
    from tailorlib.plugin_errors import as_plugin_error

    try:
        with listening():
            return run()
    except EndedEarly as ended:
        return ended.status
    except Stopped as stop:
        if not stop.told:
            tell_stopped(stop.number)
        return 128 + stop.number
    except TailorError as error:
        tell_error(error, str(error))
        return error.status
    except (ArgumentError, OSError) as error:
        fault = as_plugin_error(error)
        message = describe(error) if isinstance(error, ArgumentError) else os_message(error)
        tell_error(fault or error, str(fault) if fault else message)
        return 2
    except Exception as error:
        fault = as_plugin_error(error)
        if fault is None:
            raise
        tell_error(fault, str(fault))
        return fault.status
    except BaseException as error:
        number = received()
        if number is not None:  # a library's own way of ending on a signal
            tell_stopped(number)
            return 128 + number
        if _of_parser(error):
            raise
        told = PluginError(exit_message(error))
        tell_error(told, str(told))
        return told.status


@contextmanager
def no_exit() -> Iterator[None]:
    """Make an error of a plugin's code that exits: a search is not over because a part of it calls ``sys.exit``.

    Raises:
        PluginError: If the block raises ``SystemExit``, ``KeyboardInterrupt`` or another exception that is no
            :class:`Exception`, and no signal came.
    """
    from tailorlib.exceptions import PluginError

    try:
        yield
    except (Stopped, Exception):
        raise
    except BaseException as error:
        if received() is not None:
            raise
        raise PluginError(exit_message(error)) from error


def exit_message(error: BaseException) -> str:
    """Return what to say of code that ends the process, where nothing but the command may."""
    origin = error
    while isinstance(origin.__context__, SystemExit | KeyboardInterrupt):  # Lightning makes one of the other
        origin = origin.__context__
    frames = traceback.extract_tb(origin.__traceback__)
    where = f", in line {frames[-1].lineno} of {frames[-1].filename!r}" if frames else ""
    return (
        f"A plugin returns or raises an error; it does not end the program, as {type(origin).__name__}"
        f"({', '.join(map(repr, origin.args))}) does{where}. Raise another exception there."
    )


def _of_parser(error: BaseException) -> bool:
    """Say whether the parser ended the command, after --help or --print_config."""
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(frames[-1].filename) if frames else Path(sys.executable)
    return isinstance(error, SystemExit) and (file.name == "argparse.py" or "jsonargparse" in file.parts)
