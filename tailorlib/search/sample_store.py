"""Results on samples of candidates that may go on to more samples: kept, so that nothing is scored twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tailorlib.fitness import SampleResult

FILE_NAME = "samples.jsonl"


class SampleStore:
    """The results on the first samples of each candidate, in memory and in the run folder.

    Args:
        folder: The run folder; ``None`` to write nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE_NAME
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
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"digest": digest, "start": start, "results": results}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def drop(self, digest: str) -> None:
        """Forget a candidate that is done."""
        self.known.pop(digest, None)


def read_samples(folder: Path) -> dict[str, list[Any]]:
    """Return what a run kept; a torn line, and what would follow on it, is left out and scored again."""
    known: dict[str, list[Any]] = {}
    path = folder / FILE_NAME
    if not path.is_file():
        return known
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            data = json.loads(line)
            digest, start, results = str(data["digest"]), int(data["start"]), list(data["results"])
        except (ValueError, TypeError, KeyError):
            continue
        if start == len(known.get(digest, [])):
            known[digest] = [*known.get(digest, []), *results]
    return known
