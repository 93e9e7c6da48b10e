"""The lock of a run folder: one process at a time works in it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tailorlib.exceptions import JournalError

LOCK, HOLDER = ".lock", ".holder"


class RunLock:
    """A lock that this process holds on a run folder.

    The operating system drops it with the process that holds it, so a dead holder blocks nobody.

    Args:
        directory: The run folder.

    Raises:
        JournalError: If another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._path, self._pid = directory / LOCK, os.getpid()
        self._lock = FileLock(self._path)
        try:
            self._lock.acquire(timeout=1)  # somebody who only asks who is here is gone by then
        except Timeout as error:
            raise JournalError(
                f"One process at a time works in {str(directory)!r}; {_holder_of(directory)} holds it. Wait until "
                "it ends, or stop it: all that it finished is on disk."
            ) from error
        self._held = self._identity()
        with suppress(OSError):  # only a name for the message above; a full disk shows where it matters
            name = f"process {os.getpid()} on {platform.node()}"
            (directory / HOLDER).write_text(name, encoding="utf-8", errors="backslashreplace")

    @property
    def valid(self) -> bool:
        """Whether the lock still keeps others out: its file is the one that was locked."""
        return self._held is None or self._identity() == self._held

    def release(self) -> None:
        """Let other processes work in the folder; a forked process has no part in the lock."""
        if os.getpid() == self._pid:
            self._lock.release()

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def holder(directory: Path) -> str | None:
    """Return which process works in a run folder now, or ``None``."""
    if not (directory / LOCK).exists():
        return None
    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return _holder_of(directory)
    lock.release()
    return None


def archive(directory: Path) -> Path:
    """Rename a run folder to ``NAME.1`` (``.2``, ...) and return where it went.

    Raises:
        JournalError: If a process is working in it.
    """
    RunLock(directory).release()
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    return directory.rename(target)


def _holder_of(directory: Path) -> str:
    try:
        return (directory / HOLDER).read_text(encoding="utf-8") or "an unknown process"
    except (OSError, UnicodeDecodeError):
        return "an unknown process"
