"""Pieces of a batch that are done before its trials are: kept on disk, so that an interruption loses none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tailorlib.records import RecordError, sound_lines
from tailorlib.search.kept import KeptLines

if TYPE_CHECKING:
    from tailorlib.search.evaluator import Key, Part

PREFIX = "pending"


class Pending:
    """One rank's file of pieces, emptied when their trials are in the journal.

    Args:
        folder: The run folder; ``None`` to write nothing.
        rank: Number of this process.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._lines = None if folder is None else KeptLines(folder / f"{PREFIX}.{rank}.jsonl")
        self.known: dict[Key, Part] = {}
        """Pieces of an interrupted batch, by candidate, samples and shard."""

    def add(self, part: Part) -> None:
        """Keep a piece: when this returns, it is on disk."""
        if self._lines is not None:
            self._lines.append(part.to_dict())

    def clear(self) -> None:
        """Forget all pieces."""
        self.known = {}
        if self._lines is not None:
            self._lines.clear()


def read_pending(folder: Path) -> Iterator[Part]:
    """Yield the pieces that all ranks of an interrupted run left; what was altered is left out, and done again."""
    from tailorlib.search.evaluator import Part

    for path in sorted(folder.glob(f"{PREFIX}.*.jsonl")):
        for data in sound_lines(path):
            with suppress(ValueError, TypeError, KeyError, AttributeError, RecordError):
                yield Part.from_dict(data)


def drop_pending(folder: Path, ranks: int) -> None:
    """Remove what ranks of that number and above left; the ones below look after themselves."""
    for path in folder.glob(f"{PREFIX}.*.jsonl"):
        number = path.name.removeprefix(f"{PREFIX}.").removesuffix(".jsonl")
        if number.isdecimal() and int(number) >= ranks:
            path.unlink(missing_ok=True)
