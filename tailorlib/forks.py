"""What a plugin may do to its process: fork it, or change its folder.

Workers get default signal handlers, none goes on with its parent's work, and the folder is the old one afterwards.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OURS = ("tailorlib", "lightning")


@contextmanager
def staying() -> Iterator[None]:
    """End a process that was forked inside the block where it would leave it: its parent goes on alone.

    Otherwise there would be two searches in one run folder, or two commands at one terminal. The working folder is
    that of before at the end of the block: the paths of a recipe count from there.
    """
    owner, status, folder = os.getpid(), 1, _working_folder()
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.code, int) or stop.code is None:
            status = stop.code or 0
        raise
    finally:
        if os.getpid() != owner:
            if status == 1:
                sys.stderr.write(
                    "tailor: a process that a plugin forked came back from the plugin and was ended. End it "
                    "there, with os._exit().\n"
                )
                sys.stderr.flush()
            os._exit(status)  # nothing that is registered for the end of the parent is to happen here
        if folder is not None and _working_folder() != folder:
            with suppress(OSError):
                os.chdir(folder)


def _working_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it is gone
        return None


def _restore_signals() -> None:
    """Give a forked process the handlers that a new one has: it must end when its parent ends it."""
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and str(getattr(handler, "__module__", "")).startswith(OURS):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_signals)
