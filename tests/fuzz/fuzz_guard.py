"""A guard around one reading: no hang, no flood of memory, nothing written or started outside a folder."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGING = frozenset(
    {
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "os.chown",
    }
)
_FORBIDDEN = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "socket.connect"}
    | {"socket.bind", "pickle.find_class", "ctypes.dlopen", "os.kill"}
)


class EscapeError(BaseException):
    """What a reader must not do."""


class HangError(BaseException):
    """A reading took too long."""


class Guard:
    """Watches readings through Python's audit hooks, a timer and the process's largest size.

    Args:
        folder: Where files may be written.
        seconds: Processor time of one reading.
        mib: How much one reading may add to the largest size of the process.
    """

    def __init__(self, folder: Path, seconds: float = 10.0, mib: int = 256) -> None:
        self.folder, self.seconds, self.mib = os.path.realpath(folder), seconds, mib
        self._watching = False
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._hang)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Watch what happens within."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if grown > self.mib:
            raise EscapeError(f"the process grew by {grown} MiB")

    def _hang(self, *_: object) -> None:
        raise HangError(f"more than {self.seconds} s of processor time")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in _FORBIDDEN:
            raise EscapeError(f"{event} {arguments!r:.200}")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in _CHANGING) and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path != os.devnull and not (path + os.sep).startswith(self.folder + os.sep):
                raise EscapeError(f"{event} of {path!r}")
