"""A time limit for a piece of work that may hang: first an exception in it, then the end of the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 60.0
"""Seconds between the exception and the end of the process."""
LEAST = 0.05
"""Seconds to the alarm at least: one that came while the block is being entered would find nobody to handle it."""
EXIT_CODE = 124
"""What a process ends with that nothing else could stop: that of the command ``timeout``."""


class TrialTimeoutError(Exception):
    """A candidate took longer than ``study.trial_seconds``."""


@contextmanager
def time_limit(
    seconds: float | None, on_hang: Callable[[str], None], *, grace: float | None = None
) -> Iterator[None]:
    """Limit the time of a block.

    When the time is over, :class:`TrialTimeoutError` is raised in the block, and again each second: code that
    catches every exception doesn't stop it for long. Python can't interrupt a call of a library that never
    returns, such as a kernel that waits for a device. For such a block the process ends with :data:`EXIT_CODE`
    after ``grace`` seconds more; it has to be started again.

    Args:
        seconds: The limit; ``None`` for none.
        on_hang: Called from another thread with the reason, right before the process ends: it writes down why.
        grace: Seconds that the block has to end after the exception; :data:`GRACE` by default.

    Raises:
        TrialTimeoutError: When the time is over.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can be interrupted
        return
    reason = f"The candidate took longer than study.trial_seconds={seconds:g}."
    ended, over = threading.Event(), threading.Event()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if not ended.is_set():
            over.set()
            raise TrialTimeoutError(reason)

    def give_up() -> None:
        if not ended.wait(seconds + (GRACE if grace is None else grace)):
            why = f"{reason} It could not be interrupted, so its process was ended."
            on_hang(why)
            sys.stderr.write(f"tailor: {why} Resume the study: the candidate counts as failed.\n")
            sys.stderr.flush()
            os._exit(EXIT_CODE)

    began, former, delay, interval = time.monotonic(), signal.signal(signal.SIGALRM, interrupt), 0.0, 0.0
    try:
        threading.Thread(target=give_up, daemon=True, name="time limit").start()
        delay, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, LEAST), 1.0)
        yield
    except Exception as error:
        if over.is_set():  # a library may have made an error of its own of the exception
            raise TrialTimeoutError(reason) from error
        raise
    finally:
        ended.set()
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, former)
        if delay:  # somebody else's alarm was set
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, delay - (time.monotonic() - began)), interval)
