# ruff: noqa: T201
"""Every evaluation ever made, in one file on disk that all comparisons share.

A model's result on a sample depends on nothing but the two, so it is computed once, whichever search asks for it.
The store keeps the results of a candidate's first samples, by family, fitness and candidate, and the candidate
itself. It is an SQLite file in WAL mode: any number of processes read and write it at once, and a process that is
killed loses the result that it was writing and nothing else.

Run as a script it says what a file holds. ::

    python tests/benchmarks/evaluations.py FILE
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the store itself needs nothing that takes seconds to load
    from tailorlib.evaluation.engine import Engine
    from tailorlib.fitness import Fitness, Measurement, SampleResult
    from tailorlib.models.family import ModelFamily
    from tailorlib.tailoring import Tailoring

SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    study INTEGER PRIMARY KEY, family TEXT NOT NULL, fitness TEXT NOT NULL, UNIQUE (family, fitness)
);
CREATE TABLE IF NOT EXISTS tailorings (tailoring TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (
    study INTEGER NOT NULL, tailoring TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
    content BLOB NOT NULL, PRIMARY KEY (study, tailoring, start)
) WITHOUT ROWID;
"""
PATIENCE = 120.0
"""Seconds that a process waits for others to have written."""
PLACES = ("path", "include_path")
"""Settings that say where data is; what it is tells their fingerprints."""


class Key(NamedTuple):
    """What results are kept by.

    Args:
        family: Fingerprint of all models; see :func:`family_key`.
        fitness: Fingerprint of the samples and of how they are scored; see :func:`fitness_key`.
        tailoring: Digest of the candidate.
    """

    family: str
    fitness: str
    tailoring: str


@dataclass
class Counts:
    """What this process asked of the store.

    Args:
        lookups: Number of times that a candidate was looked up.
        found: Number of those that had a result.
        added: Number of sample results that were added.
    """

    lookups: int = 0
    found: int = 0
    added: int = 0


class Evaluations:
    """The store.

    Args:
        path: The file; made if it isn't there.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.counts = path, Counts()
        self._connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        self._retried("PRAGMA journal_mode = WAL")
        self._connection.execute(
            "PRAGMA synchronous = NORMAL"
        )  # a killed process loses nothing, a power cut might
        with self._writing() as connection:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
        self._studies: dict[tuple[str, str], int] = {}

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def get(self, key: Key) -> list[SampleResult]:
        """Return the results of the first samples, as many as are known."""
        self.counts.lookups += 1
        found = self._results(self._study(key.family, key.fitness), key.tailoring)
        self.counts.found += bool(found)
        return found

    def extend(
        self, key: Key, start: int, results: Sequence[SampleResult], tailoring: Tailoring | None = None
    ) -> None:
        """Add results of further samples; those that another process has added meanwhile stay.

        Args:
            key: Of the candidate.
            start: The sample that the first result is of: at most as many as are known.
            results: Plain data, as JSON can hold it.
            tailoring: The candidate, for a surrogate to learn from.

        Raises:
            ValueError: If results before ``start`` are missing.
        """
        study = self._study(key.family, key.fitness)
        with self._writing() as connection:
            known = self._known(study, key.tailoring)
            if start > known:
                raise ValueError(
                    f"The results of a candidate have no gap: {known} are known, got some from {start} on."
                )
            new = list(results[known - start :])
            if new:
                row = (study, key.tailoring, known, known + len(new), _packed(new))
                connection.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?)", row)
            if tailoring is not None:
                pair = (key.tailoring, _packed(tailoring.to_dict()))
                connection.execute("INSERT OR IGNORE INTO tailorings VALUES (?, ?)", pair)
        self.counts.added += len(new)

    def studies(self) -> list[tuple[str, str, int, int]]:
        """Return family, fitness, number of candidates and number of sample results of each study."""
        rows = self._connection.execute(
            "SELECT family, fitness, COUNT(DISTINCT tailoring), SUM(stop - start) "
            "FROM studies NATURAL JOIN results GROUP BY study ORDER BY study"
        )
        return list(rows)

    def samples(self, family: str, fitness: str) -> int:
        """Return the largest number of samples of which a candidate's results are known."""
        query = "SELECT MAX(stop) FROM results WHERE study = ?"
        return int(self._connection.execute(query, (self._study(family, fitness),)).fetchone()[0] or 0)

    def candidates(
        self, family: str, fitness: str, samples: int
    ) -> Iterator[tuple[dict[str, Any], list[SampleResult]]]:
        """Yield each candidate of which ``samples`` results are known, as plain data, with these."""
        study = self._study(family, fitness)
        rows = self._connection.execute(
            "SELECT tailoring, content FROM tailorings WHERE tailoring IN (SELECT tailoring FROM results "
            "WHERE study = ? GROUP BY tailoring HAVING MAX(stop) >= ?) ORDER BY tailoring",
            (study, samples),
        ).fetchall()
        for digest, content in rows:
            yield _unpacked(content), self._results(study, digest)[:samples]

    def export(
        self, target: Path, family: str, fitness: str, samples: int, score: Callable[[list[SampleResult]], float]
    ) -> int:
        """Write candidates and their scores: compressed lines of JSON, the first of which says what they are.

        Args:
            target: The file, ``.jsonl.gz``. The same evaluations give the same bytes.
            family: Fingerprint of the family.
            fitness: Fingerprint of the fitness.
            samples: Number of samples at full fidelity; candidates with less are left out.
            score: Makes a score of their results, such as ``fitness.summarise(results).score``.

        Returns:
            The number of candidates.
        """
        lines = [{"family": family, "fitness": fitness, "samples": samples}]
        for tailoring, results in self.candidates(family, fitness, samples):
            lines.append({"tailoring": tailoring, "score": score(results)})
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
        return len(lines) - 1

    def _known(self, study: int, tailoring: str) -> int:
        query = "SELECT MAX(stop) FROM results WHERE study = ? AND tailoring = ?"
        return int(self._connection.execute(query, (study, tailoring)).fetchone()[0] or 0)

    def _results(self, study: int, tailoring: str) -> list[SampleResult]:
        query = "SELECT content FROM results WHERE study = ? AND tailoring = ? ORDER BY start"
        rows = self._connection.execute(query, (study, tailoring))
        return [result for (content,) in rows for result in _unpacked(content)]

    def _study(self, family: str, fitness: str) -> int:
        pair = (family, fitness)
        if pair not in self._studies:
            with self._writing() as connection:
                connection.execute("INSERT OR IGNORE INTO studies (family, fitness) VALUES (?, ?)", pair)
            query = "SELECT study FROM studies WHERE family = ? AND fitness = ?"
            self._studies[pair] = int(self._connection.execute(query, pair).fetchone()[0])
        return self._studies[pair]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock from the first read on: what is read is still true when it is written."""
        self._retried("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _retried(self, statement: str) -> None:
        """SQLite does not wait where two processes want to change the journal mode at once."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._connection.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


class Scorer:
    """Scores tailorings, each sample once for all comparisons that share a store.

    Args:
        family: The family, loaded.
        fitness: The fitness, set up with the engine.
        engine: Scores.
        store: The store.
    """

    def __init__(self, family: ModelFamily, fitness: Fitness, engine: Engine, store: Evaluations) -> None:
        self.family, self.fitness, self.engine, self.store = family, fitness, engine, store
        self.keys = (family_key(family), fitness_key(fitness, engine))

    def measure(self, tailoring: Tailoring, samples: int | None = None) -> Measurement:
        """Measure a tailoring on the first samples, all by default; what is known of it is not computed again."""
        return self.fitness.summarise(self.results(tailoring, samples))

    def results(self, tailoring: Tailoring, samples: int | None = None) -> list[SampleResult]:
        """Return its results on the first samples."""
        wanted = self.fitness.num_samples if samples is None else min(samples, self.fitness.num_samples)
        key = Key(*self.keys, tailoring.digest)
        known = self.store.get(key)
        if len(known) < wanted:
            model = self.family.stitch(tailoring)
            with self.engine.reusing(model, tailoring.prefixes):
                new = self.fitness.score_samples(model, range(len(known), wanted))
            self.store.extend(key, len(known), new, tailoring)
            known = [*known, *new]
        return known[:wanted]


def family_key(family: ModelFamily) -> str:
    """Return a fingerprint of a prepared family: its models' files and its data type.

    Args:
        family: The family, prepared.
    """
    from tailorlib.models.cache import sha256_of

    files = {
        name: {
            path.name: sha256_of(path)
            for path in sorted(source.folder.iterdir())
            if path.suffix in {".safetensors", ".json", ".gguf", ".model"}
        }
        for name, source in family.sources.items()
    }
    return _fingerprint([files, family.dtype, family.quantization])


def fitness_key(fitness: Fitness, engine: Engine) -> str:
    """Return a fingerprint of a fitness that is set up: its settings, its data, and the engine's settings.

    Batches are no part of it: how requests are packed changes a result by no more than rounding.
    """
    data = [sorted(piece.digests) for piece in fitness.fingerprints]
    return _fingerprint([_described(fitness), data, fitness.num_samples, engine.max_length])


def _described(value: Any) -> Any:
    """Return the public settings of a fitness or text as plain data."""
    from tailorlib.fitness import Fitness
    from tailorlib.text import TextSource

    if isinstance(value, Fitness | TextSource):
        own = {name: v for name, v in sorted(vars(value).items()) if not name.startswith("_")}
        hidden = getattr(value, "_settings", None)  # what a fitness hands on to lm-eval
        return [type(value).__name__, _described(own), _described(hidden)]
    if isinstance(value, Mapping):
        return {str(key): _described(v) for key, v in value.items() if key not in PLACES}
    if isinstance(value, list | tuple | set | frozenset):
        return [_described(v) for v in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    return value if isinstance(value, str | int | float | bool | None) else repr(type(value))


def _fingerprint(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _packed(content: Any) -> bytes:
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 6)


def _unpacked(content: bytes) -> Any:
    return json.loads(zlib.decompress(content))


def main() -> None:
    """Say what a file holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    if not path.is_file():
        parser.error(f"there is no file {path}")
    store = Evaluations(path)
    print(f"{'family':34s}{'fitness':34s}{'candidates':>12s}{'sample results':>16s}")
    for family, fitness, candidates, results in store.studies():
        print(f"{family:34s}{fitness:34s}{candidates:12d}{results:16d}")
    print(f"{path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
