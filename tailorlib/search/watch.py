"""Processes of a search look after each other: when one is gone, the others end within a minute.

Processes of one machine look at each other's entries in the system's table of processes. Those of other machines
count up a number in the store through which they connected; looks are counted, not seconds, so that a search which
was suspended goes on.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tailorlib import endings

SECONDS = 1.0
"""From one look to the next."""
LOOKS = 45
"""So many looks without a sign of life of another machine's process are its end."""
GRACE = 2.0
"""Seconds in which a process can still end by itself, since it got the same error, say."""


@dataclass(frozen=True)
class Member:
    """A process of a search.

    Args:
        rank: Its number.
        host: Its machine.
        process: Its number there.
        began: When the system started it, in the system's count; tells it from a later one of the same number.
    """

    rank: int
    host: str
    process: int
    began: str

    @classmethod
    def here(cls, rank: int) -> Member:
        """Return this process."""
        return cls(rank, platform.node(), os.getpid(), _began(os.getpid()) or "")

    @property
    def alive(self) -> bool:
        """Whether it is there; known on its own machine only."""
        return _began(self.process) == self.began


class Watch(threading.Thread):
    """Ends this process when another one of the search is gone.

    Args:
        members: All processes; empty as long as they don't know each other.
        rank: Number of this one.
        store: Where signs of life are exchanged, for processes on several machines.
        end: Called with the reason; it ends the process by default.
    """

    def __init__(
        self,
        members: list[Member],
        rank: int,
        store: Any | None = None,
        end: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(daemon=True, name="watch over the other processes")
        own = platform.node()
        self._near = [m for m in members if m.host == own and m.process != os.getpid()]
        self._far = [m for m in members if m.host != own]
        self._rank, self._store, self._end = rank, store, end or _end
        self._parent = os.getppid()
        self._signs: dict[int, tuple[bytes, int]] = {}
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Look no more: this process ends by itself, or needs the others no longer."""
        self._stopped.set()

    def run(self) -> None:
        """Look, until somebody is gone."""
        looks = 0
        while not self._stopped.wait(SECONDS):
            looks += 1
            gone = self.gone(looks)
            if gone is not None:
                if not self._stopped.wait(GRACE):
                    self._end(gone)
                return

    def gone(self, looks: int = 0) -> str | None:
        """Return who is gone, in a user's words, or ``None``."""
        for member in self._near:
            if not member.alive:
                return f"Process {member.process} (rank {member.rank})"
        if self._rank and os.getppid() != self._parent:
            return "The process that started this one"
        return self._far_gone(looks) if self._far and self._store is not None else None

    def _far_gone(self, looks: int) -> str | None:
        store: Any = self._store
        try:
            store.set(f"tailorlib/alive/{self._rank}", str(looks))
            for member in self._far:
                key = f"tailorlib/alive/{member.rank}"
                sign = store.get(key) if store.check([key]) else b""
                last, missed = self._signs.get(member.rank, (b"", 0))
                self._signs[member.rank] = sign, 0 if sign != last else missed + 1
                if self._signs[member.rank][1] > LOOKS:
                    return f"Process {member.process} (rank {member.rank}) on {member.host}"
        except Exception:  # the store is on the first process's machine
            return "The first process (rank 0), or the connection to it,"
        return None


_watches: list[Watch] = []


def begin_watch(members: list[Member], rank: int, store: Any | None = None) -> None:
    """Look after other processes from now on, in place of those from before."""
    stop_watch()
    _watches.append(Watch(members, rank, store))
    _watches[-1].start()


def stop_watch() -> None:
    """Look after nobody any more."""
    while _watches:
        _watches.pop().stop()


def somebody_gone() -> str | None:
    """Return who is gone, in a user's words, or ``None``; an end that caused an error shows a moment later."""
    for _ in range(20):
        for watch in _watches:
            if (gone := watch.gone()) is not None:
                return gone
        time.sleep(0.1)
    return None


def clone_of(store: Any) -> Any:
    """Return a connection of its own to a store: another thread's may wait in it for an hour."""
    copy = store.clone()
    copy.set_timeout(timedelta(seconds=20))
    return copy


def lost_message(gone: str) -> str:
    """Return what to say when a process of the search is gone."""
    return (
        f"{gone} of this search is gone: killed, for its memory perhaps, or its machine went down. All finished "
        "trials are on disk: start the search again with --resume, or with study.existing: resume."
    )


def _end(gone: str) -> None:
    with suppress(Exception):
        endings.last_words()
        sys.stderr.write(f"tailor: {lost_message(gone)}\n")
        sys.stderr.flush()
    os._exit(1)


def _began(process: int) -> str | None:
    """Return when the system started a process; ``None`` if there is none, or only its remains."""
    try:
        told = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return ""
    fields = told.rpartition(")")[2].split()  # behind the name, which can have anything in it
    return None if fields[0] in "ZX" else fields[19]
