"""Results on samples of candidates that may go on to more samples: kept, so that nothing is scored twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tailorlib.fitness import SampleResult
from tailorlib.records import sound_lines
from tailorlib.search.kept import KeptLines

FILE_NAME = "samples.jsonl"


class SampleStore:
    """The results on the first samples of each candidate, in memory and in the run folder.

    Args:
        folder: The run folder; ``None`` to write nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._lines = None if folder is None else KeptLines(folder / FILE_NAME)
        self.known: dict[str, list[SampleResult]] = {}
        """Results by candidate, of its first samples."""
        self.kept: set[str] = set()
        """Candidates whose results are kept when they are done."""

    def get(self, digest: str) -> list[SampleResult]:
        """Return what is known of a candidate."""
        return self.known.get(digest, [])

    def extend(self, digest: str, results: list[SampleResult]) -> None:
        """Add the results on the next samples: when this returns, they are on disk."""
        start = len(self.get(digest))
        self.known[digest] = [*self.get(digest), *results]
        if self._lines is not None:
            self._lines.append({"digest": digest, "start": start, "results": results})

    def drop(self, digest: str) -> None:
        """Forget a candidate that is done."""
        self.known.pop(digest, None)


def read_samples(folder: Path) -> dict[str, list[Any]]:
    """Return what a run kept; altered lines, and what would follow on them, are left out and scored again."""
    known: dict[str, list[Any]] = {}
    for data in sound_lines(folder / FILE_NAME):
        digest, start, results = data.get("digest"), data.get("start"), data.get("results")
        if isinstance(digest, str) and isinstance(results, list) and start == len(known.get(digest, [])):
            known[digest] = [*known.get(digest, []), *results]
    return known


def drop_samples(folder: Path) -> None:
    """Forget what a run kept."""
    (folder / FILE_NAME).unlink(missing_ok=True)
