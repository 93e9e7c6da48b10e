"""Evaluating a batch of candidates on any number of ranks: what is shared out, kept, and lost with nobody."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tailorlib.endings import before_exit, no_exit
from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.states import Work
from tailorlib.exceptions import EvaluationError, TailorError, error_text, where_raised
from tailorlib.fitness import Fitness, Measurement, SampleResult
from tailorlib.forks import staying
from tailorlib.objective import Candidate
from tailorlib.plain_data import number, safe_text
from tailorlib.plugin_errors import missing_super
from tailorlib.search.deaths import Deaths
from tailorlib.search.pending import Pending
from tailorlib.search.ranks import gathered
from tailorlib.search.sample_store import SampleStore
from tailorlib.search.study import Study
from tailorlib.search.time_limit import TrialTimeoutError, time_limit
from tailorlib.tailoring import Tailoring
from tailorlib.trial import MAX_REASON

Key = tuple[str, tuple[int, int], int]
"""A candidate's digest, a span of samples, and a shard of it."""


@dataclass(frozen=True)
class Piece:
    """One candidate to score on one shard of a span of samples."""

    tailoring: Tailoring
    span: tuple[int, int]
    shard: int

    @property
    def key(self) -> Key:
        """What its result is known by."""
        return self.tailoring.digest, self.span, self.shard


@dataclass(frozen=True)
class Part:
    """One candidate's results on one shard of the samples, or why there are none.

    Args:
        digest: The candidate.
        span: First of the samples that are shared out, and the one after the last.
        shard: Number of the shard.
        results: One for each sample of the shard, or the reason why there are none.
        rank: Which process worked on it.
        seconds: Wall time of stitching and scoring.
        work: Layers that ran and that didn't have to.
        merges: Layers that were merged, and merged layers that were there already.
        held: Bytes of hidden states and of merged layers in the caches, afterwards.
    """

    digest: str
    span: tuple[int, int]
    shard: int
    results: list[SampleResult] | str
    rank: int = 0
    seconds: float = 0.0
    work: Work = field(default_factory=Work)
    merges: tuple[int, int] = (0, 0)
    held: tuple[int, int] = (0, 0)

    @property
    def key(self) -> Key:
        """What it is the result of."""
        return self.digest, self.span, self.shard

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Part:
        """Rebuild a part from :meth:`to_dict`."""
        pairs = {name: tuple(data[name]) for name in ("merges", "held", "span")}
        return cls(**{**data, "work": Work(**data["work"]), **pairs})


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate.

    Args:
        measurement: What the fitness found, or the reason why nothing.
        seconds: Wall time: that of the rank which worked on it longest.
        samples: Number of first samples that it was scored on.
        costs: What it took, by name: ``samples`` that were scored now; ``tokens``; ``layers_run`` and
            ``layers_reused`` of each token's way through the model; ``merges`` made and ``merges_reused``;
            ``prefix_cache_mib`` and ``merge_cache_mib`` held by the rank that holds most.
        objectives: Its scores, where the study has objectives.
    """

    measurement: Measurement | str
    seconds: float
    samples: int
    costs: Mapping[str, float]
    objectives: Mapping[str, float] = field(default_factory=dict)


class Evaluator:
    """Stitches candidates and scores them, together with the other ranks.

    A batch of C candidates over S shards of the samples is C x S pieces of work. They lie in the order of the
    shards, and in each shard in the order of the candidates' prefixes: neighbours have much in common. Every rank
    takes a stretch of about equal length. Shards depend on the recipe alone, so any number of ranks gives the same
    numbers. A candidate that was scored on some samples is scored on the others only.

    Args:
        study: A prepared study.
        engine: Its engine.
        rank: Number of this process.
        ranks: Number of processes.
        folder: Where results are kept as they are done; ``None`` to keep none.
        fitness: What to score by; the study's by default.
        deaths: Knows which candidates killed their process; by default there are none.
    """

    def __init__(
        self,
        study: Study,
        engine: Engine,
        *,
        rank: int = 0,
        ranks: int = 1,
        folder: Path | None = None,
        fitness: Fitness | None = None,
        deaths: Deaths | None = None,
    ) -> None:
        self.study, self.engine, self.rank, self.ranks = study, engine, rank, ranks
        self.fitness = study.fitness if fitness is None else fitness
        self._data = "search" if fitness is None else "validation"
        self._deaths = Deaths() if deaths is None else deaths
        self._shards: dict[tuple[int, int], list[list[int]]] = {}
        self._pending = Pending(folder, rank)
        self.samples = SampleStore(folder if rank == 0 else None)
        """Results of candidates that may go on."""
        before_exit(self._deaths.excuse)

    def recover(self, parts: Sequence[Part], samples: Mapping[str, list[SampleResult]] | None = None) -> None:
        """Take over what an interrupted run left; the same on all ranks.

        Args:
            parts: What was done of its last batch.
            samples: Results on the first samples, by candidate.
        """
        self._pending.known = {part.key: part for part in parts}
        self.samples.known = dict(samples or {})

    def evaluate(
        self,
        tailorings: Sequence[Tailoring],
        best: Tailoring | None = None,
        samples: Sequence[int] | None = None,
    ) -> list[Outcome]:
        """Score candidates; every rank calls it with the same ones, and gets all outcomes.

        Args:
            tailorings: The candidates, all different.
            best: The fittest candidate so far: later ones are likely to share its lower layers.
            samples: Number of first samples to score each on; all by default.
        """
        every = self.fitness.num_samples
        stops = {t.digest: n for t, n in zip(tailorings, samples or [every] * len(tailorings), strict=True)}
        known = {digest: self.samples.get(digest)[:stop] for digest, stop in stops.items()}
        order = sorted(tailorings, key=lambda tailoring: tailoring.prefixes)
        spans = {digest: (len(known[digest]), stop) for digest, stop in stops.items()}
        most = max((len(self.shards(span)) for span in spans.values()), default=0)
        pieces = [
            Piece(tailoring, spans[tailoring.digest], shard)
            for shard in range(most)
            for tailoring in order
            if shard < len(self.shards(spans[tailoring.digest]))
        ]
        parts = {**self._pending.known, **self._parts(pieces, best)}
        outcomes = []
        for digest, span in ((t.digest, spans[t.digest]) for t in tailorings):
            own = [parts[digest, span, shard] for shard in range(len(self.shards(span)))]
            outcomes.append(self._outcome(digest, span[1], known[digest], own))
        return self._judged(tailorings, outcomes)

    def _parts(self, pieces: Sequence[Piece], best: Tailoring | None) -> dict[Key, Part]:
        """Share out the pieces that nobody has done.

        Those of candidates at which a process died come last, one at a time: if one dies again, it is clear which.
        """
        missing = [piece for piece in pieces if piece.key not in self._pending.known]
        found = {piece.key: Part(*piece.key, why) for piece in missing if (why := self._deadly(piece))}
        missing = [piece for piece in missing if piece.key not in found]
        doubtful = [piece for piece in missing if self._deaths.counts.get(self._name(piece))]
        sure = [piece for piece in missing if piece not in doubtful]
        start, stop = (len(sure) * r // self.ranks for r in (self.rank, self.rank + 1))
        for share in (sure[start:stop], doubtful if self.rank == 0 else []) if doubtful else (sure[start:stop],):
            done = []
            for part in self._work(share, best):
                done.append(part)
                if len(pieces) > 1:  # a single piece is a trial at once
                    self._pending.add(part)
            found |= {part.key: part for parts in gathered(done) for part in parts}
        return found

    def _name(self, piece: Piece) -> str:
        """Return what deaths at a piece are counted by: the candidate, and the data that it is scored on."""
        return f"{self._data} {piece.tailoring.digest}"

    def _deadly(self, piece: Piece) -> str | None:
        return self._deaths.reason(self._name(piece))

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

    def shards(self, span: tuple[int, int]) -> list[list[int]]:
        """Return the samples of a span, shared out as the recipe says."""
        if span not in self._shards:
            number = min(self.study.settings.shards, span[1] - span[0])
            self._shards[span] = self.fitness.shards(range(*span), number) if number > 0 else []
        return self._shards[span]

    def _work(self, pieces: Sequence[Piece], best: Tailoring | None) -> Iterator[Part]:
        expected = best.prefixes if best is not None else ()
        for i, piece in enumerate(pieces):
            later = [p.tailoring for p in pieces[i + 1 :] if (p.span, p.shard) == (piece.span, piece.shard)]
            needed = {_shared(piece.tailoring, other) for other in later}
            self.engine.states.protect({*expected, *needed, *_branches(later)})
            yield self._score(piece, needed)

    def _score(self, piece: Piece, needed: set[str]) -> Part:
        start, work, stitcher = time.perf_counter(), self.engine.work, self.study.family.stitcher
        before = stitcher.counts
        results: list[SampleResult] | str
        try:
            with (
                no_exit(),
                self._deaths.watch(self._name(piece)),
                time_limit(self.study.settings.trial_seconds, partial(self._hung, piece)),
                staying(),
            ):
                model = self.study.family.stitch(piece.tailoring)
                with self.engine.reusing(model, piece.tailoring.prefixes, needed):
                    results = self.fitness.score_samples(model, self.shards(piece.span)[piece.shard])
        except Exception as error:  # one bad candidate must not end a study of hours: it is kept with its reason
            results = safe_text(_reason(error), MAX_REASON)
            results += f" (rank {self.rank})" if self.ranks > 1 else ""
        after = stitcher.counts
        return Part(
            digest=piece.tailoring.digest,
            span=piece.span,
            shard=piece.shard,
            results=results,
            rank=self.rank,
            seconds=time.perf_counter() - start,
            work=self.engine.work - work,
            merges=(after.merged_misses - before.merged_misses, after.merged_hits - before.merged_hits),
            held=(self.engine.states.nbytes, stitcher.merged.nbytes),
        )

    def _hung(self, piece: Piece, reason: str) -> None:
        """Leave a failure for the process that takes over."""
        self._pending.add(Part(*piece.key, reason, self.rank))
        self._deaths.excuse()

    def _outcome(self, digest: str, stop: int, known: list[SampleResult], parts: Sequence[Part]) -> Outcome:
        start = time.perf_counter()
        measurement = self._measurement(digest, known, parts)
        by_rank: dict[int, float] = {}
        for part in parts:
            by_rank[part.rank] = by_rank.get(part.rank, 0.0) + part.seconds
        work = sum((part.work for part in parts), Work())
        costs = {"samples": float(stop - len(known)), "tokens": float(work.tokens)}
        if work.tokens:
            costs |= {"layers_run": work.run / work.tokens, "layers_reused": work.reused / work.tokens}
        costs |= {"merges": sum(p.merges[0] for p in parts), "merges_reused": sum(p.merges[1] for p in parts)}
        for place, name in enumerate(("prefix", "merge")):
            costs[f"{name}_cache_mib"] = max((part.held[place] for part in parts), default=0) / 2**20
        seconds = max(by_rank.values(), default=0.0) + time.perf_counter() - start
        return Outcome(measurement, seconds, stop, costs)

    def _measurement(self, digest: str, known: list[SampleResult], parts: Sequence[Part]) -> Measurement | str:
        found: dict[int, SampleResult] = {}
        for part in parts:
            if isinstance(part.results, str):
                self.samples.drop(digest)
                return part.results
            found |= zip(self.shards(part.span)[part.shard], part.results, strict=True)
        new = [found[i] for i in sorted(found)]
        results = [*known, *new]
        if len(results) == self.fitness.num_samples and digest not in self.samples.kept:
            self.samples.drop(digest)
        elif new:
            self.samples.extend(digest, new)
        try:
            with no_exit():
                return self.fitness.summarise(results)
        except Exception as error:  # metrics are a task's own code
            return _reason(error)

    def _judged(self, tailorings: Sequence[Tailoring], outcomes: list[Outcome]) -> list[Outcome]:
        """Add the scores of the study's objectives, as the first rank finds them."""
        if not self.study.objectives or self.fitness is not self.study.fitness:
            return outcomes
        if self.rank == 0:
            outcomes = [self._objectives(t, o) for t, o in zip(tailorings, outcomes, strict=True)]
        judged: list[Outcome] = gathered(outcomes)[0]
        return judged

    def _objectives(self, tailoring: Tailoring, outcome: Outcome) -> Outcome:
        if isinstance(outcome.measurement, str):
            return outcome
        candidate = Candidate(tailoring, outcome.measurement, self.study.family, self.engine)
        scores: dict[str, float] = {}
        for objective in self.study.objectives:
            try:
                with no_exit(), self._deaths.watch(f"{self._data} {tailoring.digest}"), staying():
                    score = objective.score(candidate)
                scores[objective.name] = number(score, f"The objective {objective.name}")
            except Exception as error:
                return replace(outcome, measurement=_reason(error))
            if not math.isfinite(scores[objective.name]):
                reason = f"The objective {objective.name} is a finite number, got {scores[objective.name]}."
                return replace(outcome, measurement=reason)
        return replace(outcome, objectives=scores)


def _reason(error: Exception) -> str:
    text = error_text(error)
    if isinstance(error, TailorError | TrialTimeoutError):
        return text
    return f"{type(error).__name__}: {text}{safe_text(where_raised(error))}{missing_super(error)}"


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
