"""Candidates that end the process which scores them: marks on disk, so that none is met for ever."""

from __future__ import annotations

import os
import platform
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

from tailorlib.exceptions import JournalError
from tailorlib.plain_data import plain
from tailorlib.records import RecordError, decode, encode, sound_lines
from tailorlib.search.kept import KeptLines

PREFIX, FILE_NAME = "begun", "deaths.jsonl"
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Deaths:
    """Marks what a process begins, and knows what earlier ones began and never ended.

    A mark lies in the run folder while a candidate is scored. A process that ends in order (an exception, a
    Ctrl-C, a signal) takes its mark away; one that is killed leaves it. The mark is not flushed to the disk: what
    a process has written outlasts it, and a machine that fails is no candidate's doing.

    Args:
        folder: The run folder; ``None`` to mark nothing.
        rank: Number of this process.
        most: So many deaths make a candidate a failed one.
    """

    def __init__(self, folder: Path | None = None, rank: int = 0, most: int = 2) -> None:
        self._path = None if folder is None else folder / f"{PREFIX}.{rank}.json"
        self._most, self._excused = most, False
        self.counts: Mapping[str, int] = {}
        """Deaths by what was begun; the same on all ranks."""
        _LIVE.add(self)

    @contextmanager
    def watch(self, name: str) -> Iterator[None]:
        """Keep a mark while the block runs."""
        if self._path is None or self._excused:
            yield
            return
        mark = {"name": name, "id": secrets.token_hex(8), **_machine()}
        with suppress(OSError):  # a full disk stops the search at its journal
            self._path.write_bytes(encode(plain(mark, "A mark"), 1))
        self._check_excused()
        try:
            yield
        finally:
            self._remove()

    def excuse(self) -> None:
        """Take the mark away, and make none any more: somebody asked this process to end, and may kill it soon."""
        self._excused = True
        self._remove()

    def reason(self, name: str) -> str | None:
        """Return why something is not begun again, or ``None`` if it is."""
        died = self.counts.get(name, 0)
        if died < self._most:
            return None
        return (
            f"The process that scored it was killed {died} times while it did (study.max_deaths={self._most}): by "
            "the system for its memory, by a crash in a library, or from outside."
        )

    def _check_excused(self) -> None:
        """Take the mark away if a signal came while it was made."""
        if self._excused:
            self._remove()

    def _remove(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


_LIVE: WeakSet[Deaths] = WeakSet()


def excuse_all() -> None:
    """Excuse this process: what is in hand is not to blame if it is killed now. Signal handlers may call it."""
    for deaths in list(_LIVE):
        deaths.excuse()


def count_deaths(folder: Path) -> dict[str, int]:
    """Return how often processes died at what they had begun; marks become lines of a file that stays.

    Raises:
        JournalError: If the disk doesn't take it.
    """
    lines = list(sound_lines(folder / FILE_NAME))
    known, kept = {str(line.get("id")) for line in lines}, KeptLines(folder / FILE_NAME)
    for path in sorted(folder.glob(f"{PREFIX}.*.json")):
        mark = _read_mark(path)
        if mark is not None and not _restarted(mark) and mark["id"] not in known:
            kept.append({"name": mark["name"], "id": mark["id"]})
            lines.append(mark)
        path.unlink(missing_ok=True)
    return dict(Counter(str(line.get("name")) for line in lines))


def drop_deaths(folder: Path) -> None:
    """Forget what an earlier study in a folder began."""
    for path in (folder / FILE_NAME, *folder.glob(f"{PREFIX}.*.json")):
        path.unlink(missing_ok=True)


def _read_mark(path: Path) -> dict[str, Any] | None:
    with suppress(RecordError, OSError, JournalError):
        return decode(path.read_bytes())[1]
    return None


def _machine() -> dict[str, str]:
    boot = ""
    with suppress(OSError):
        boot = BOOT.read_text(encoding="ascii").strip()
    return {"host": platform.node(), "boot": boot, "process": str(os.getpid())}


def _restarted(mark: Mapping[str, Any]) -> bool:
    """Say whether the machine itself went down, and its processes with it."""
    now = plain(_machine(), "A mark")
    return bool(mark.get("host") == now["host"] and mark.get("boot") != now["boot"])
