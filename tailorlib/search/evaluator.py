"""Evaluating a batch of candidates on any number of ranks: what is shared out, kept, and lost with nobody."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.states import Work
from tailorlib.exceptions import EvaluationError, TailorError
from tailorlib.fitness import Measurement, SampleResult
from tailorlib.search.pending import Pending
from tailorlib.search.ranks import gathered
from tailorlib.search.study import Study
from tailorlib.tailoring import Tailoring


@dataclass(frozen=True)
class Part:
    """One candidate's results on one shard of the samples, or why there are none.

    Args:
        digest: The candidate.
        shard: Number of the shard.
        results: One for each sample of the shard, or the reason why there are none.
        rank: Which process worked on it.
        seconds: Wall time of stitching and scoring.
        work: Layers that ran and that didn't have to.
        merges: Layers that were merged, and merged layers that were there already.
        held: Bytes of hidden states and of merged layers in the caches, afterwards.
    """

    digest: str
    shard: int
    results: list[SampleResult] | str
    rank: int = 0
    seconds: float = 0.0
    work: Work = field(default_factory=Work)
    merges: tuple[int, int] = (0, 0)
    held: tuple[int, int] = (0, 0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Part:
        """Rebuild a part from :meth:`to_dict`."""
        pairs = {name: tuple(data[name]) for name in ("merges", "held")}
        return cls(**{**data, "work": Work(**data["work"]), **pairs})


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate.

    Args:
        measurement: What the fitness found, or the reason why nothing.
        seconds: Wall time: that of the rank which worked on it longest.
        costs: What it took, by name: ``tokens``; ``layers_run`` and ``layers_reused`` of each token's way through
            the model; ``merges`` made and ``merges_reused``; ``prefix_cache_mib`` and ``merge_cache_mib`` held by
            the rank that holds most.
    """

    measurement: Measurement | str
    seconds: float
    costs: Mapping[str, float]


class Evaluator:
    """Stitches candidates and scores them, together with the other ranks.

    A batch of C candidates over S shards of the samples is C x S pieces of work. They lie in the order of the
    shards, and in each shard in the order of the candidates' prefixes: neighbours have much in common. Every rank
    takes a stretch of about equal length. Shards depend on the recipe alone, so any number of ranks gives the same
    numbers.

    Args:
        study: A prepared study.
        engine: Its engine.
        rank: Number of this process.
        ranks: Number of processes.
        folder: Where pieces are kept as they are done; ``None`` to keep none.
    """

    def __init__(
        self, study: Study, engine: Engine, *, rank: int = 0, ranks: int = 1, folder: Path | None = None
    ) -> None:
        self.study, self.engine, self.rank, self.ranks = study, engine, rank, ranks
        fitness = study.fitness
        self._shards = fitness.shards(range(fitness.num_samples), min(study.settings.shards, fitness.num_samples))
        self._pending = Pending(folder, rank)

    def recover(self, parts: Sequence[Part]) -> None:
        """Take over what was done of a batch that was interrupted; the same on all ranks."""
        self._pending.known = {(part.digest, part.shard): part for part in parts}

    def evaluate(self, tailorings: Sequence[Tailoring], best: Tailoring | None = None) -> list[Outcome]:
        """Score candidates; every rank calls it with the same ones, and gets all outcomes.

        Args:
            tailorings: The candidates, all different.
            best: The fittest candidate so far: later ones are likely to share its lower layers.
        """
        order = sorted(tailorings, key=lambda tailoring: tailoring.prefixes)
        pieces = [(tailoring, shard) for shard in range(len(self._shards)) for tailoring in order]
        missing = [piece for piece in pieces if (piece[0].digest, piece[1]) not in self._pending.known]
        start, stop = (len(missing) * r // self.ranks for r in (self.rank, self.rank + 1))
        keep = len(pieces) > 1  # a single piece is a trial at once
        done = []
        for part in self._work(missing[start:stop], best):
            done.append(part)
            if keep:
                self._pending.add(part)
        parts = {**self._pending.known, **{(p.digest, p.shard): p for part in gathered(done) for p in part}}
        return [self._outcome([parts[t.digest, s] for s in range(len(self._shards))]) for t in tailorings]

    def settle(self) -> None:
        """Forget pieces: the trials that they belong to are in the journal."""
        self._pending.clear()

    def measure(self, tailoring: Tailoring) -> Measurement:
        """Score one candidate, on all ranks together.

        Raises:
            EvaluationError: If it can't be scored.
        """
        (outcome,) = self.evaluate([tailoring])
        self.settle()
        if isinstance(outcome.measurement, str):
            raise EvaluationError(outcome.measurement)
        return outcome.measurement

    def _work(self, pieces: Sequence[tuple[Tailoring, int]], best: Tailoring | None) -> Iterator[Part]:
        expected = best.prefixes if best is not None else ()
        for i, (tailoring, shard) in enumerate(pieces):
            later = [other for other, its_shard in pieces[i + 1 :] if its_shard == shard]
            needed = {_shared(tailoring, other) for other in later}
            self.engine.states.protect({*expected, *needed, *_branches(later)})
            yield self._score(tailoring, shard, needed)

    def _score(self, tailoring: Tailoring, shard: int, needed: set[str]) -> Part:
        start, work, stitcher = time.perf_counter(), self.engine.work, self.study.family.stitcher
        before = stitcher.counts
        results: list[SampleResult] | str
        try:
            model = self.study.family.stitch(tailoring)
            with self.engine.reusing(model, tailoring.prefixes, needed):
                results = self.study.fitness.score_samples(model, self._shards[shard])
        except Exception as error:  # one bad candidate must not end a study of hours: it is kept with its reason
            results = str(error) if isinstance(error, TailorError) else f"{type(error).__name__}: {error}"
            results += f" (rank {self.rank})" if self.ranks > 1 else ""
        after = stitcher.counts
        return Part(
            digest=tailoring.digest,
            shard=shard,
            results=results,
            rank=self.rank,
            seconds=time.perf_counter() - start,
            work=self.engine.work - work,
            merges=(after.merged_misses - before.merged_misses, after.merged_hits - before.merged_hits),
            held=(self.engine.states.nbytes, stitcher.merged.nbytes),
        )

    def _outcome(self, parts: Sequence[Part]) -> Outcome:
        start = time.perf_counter()
        measurement = self._measurement(parts)
        by_rank: dict[int, float] = {}
        for part in parts:
            by_rank[part.rank] = by_rank.get(part.rank, 0.0) + part.seconds
        work = sum((part.work for part in parts), Work())
        costs = {"tokens": float(work.tokens)}
        if work.tokens:
            costs |= {"layers_run": work.run / work.tokens, "layers_reused": work.reused / work.tokens}
        costs |= {"merges": sum(p.merges[0] for p in parts), "merges_reused": sum(p.merges[1] for p in parts)}
        for name, most in zip(("prefix", "merge"), zip(*(part.held for part in parts), strict=True), strict=True):
            costs[f"{name}_cache_mib"] = max(most) / 2**20
        return Outcome(measurement, max(by_rank.values()) + time.perf_counter() - start, costs)

    def _measurement(self, parts: Sequence[Part]) -> Measurement | str:
        results: dict[int, SampleResult] = {}
        for part in parts:
            if isinstance(part.results, str):
                return part.results
            results |= zip(self._shards[part.shard], part.results, strict=True)
        try:
            return self.study.fitness.summarise([results[i] for i in sorted(results)])
        except Exception as error:  # metrics are a task's own code
            return str(error) if isinstance(error, TailorError) else f"{type(error).__name__}: {error}"


def _shared(a: Tailoring, b: Tailoring) -> str:
    """Return the name of the longest prefix that two candidates share, or of nothing."""
    shared = ""
    for x, y in zip(a.prefixes, b.prefixes, strict=False):
        if x != y:
            break
        shared = x
    return shared


def _branches(tailorings: Sequence[Tailoring]) -> set[str]:
    """Return the prefixes that neighbours among candidates share."""
    return {_shared(a, b) for a, b in itertools.pairwise(tailorings)}
