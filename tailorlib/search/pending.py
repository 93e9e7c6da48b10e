"""Pieces of a batch that are done before its trials are: kept on disk, so that an interruption loses none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailorlib.search.evaluator import Key, Part

PREFIX = "pending"


class Pending:
    """One rank's file of pieces, JSON lines, emptied when their trials are in the journal.

    Args:
        folder: The run folder; ``None`` to write nothing.
        rank: Number of this process.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._path = None if folder is None else folder / f"{PREFIX}.{rank}.jsonl"
        self.known: dict[Key, Part] = {}
        """Pieces of an interrupted batch, by candidate, samples and shard."""

    def add(self, part: Part) -> None:
        """Keep a piece: when this returns, it is on disk."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(part.to_dict()) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def clear(self) -> None:
        """Forget all pieces."""
        self.known = {}
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def read_pending(folder: Path) -> Iterator[Part]:
    """Yield the pieces that all ranks of an interrupted run left; what is torn is left out, and done again."""
    from tailorlib.search.evaluator import Part

    for path in sorted(folder.glob(f"{PREFIX}.*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield Part.from_dict(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue


def drop_pending(folder: Path, ranks: int) -> None:
    """Remove what ranks of that number and above left; the ones below look after themselves."""
    for path in folder.glob(f"{PREFIX}.*.jsonl"):
        number = path.name.removeprefix(f"{PREFIX}.").removesuffix(".jsonl")
        if number.isdecimal() and int(number) >= ranks:
            path.unlink(missing_ok=True)
