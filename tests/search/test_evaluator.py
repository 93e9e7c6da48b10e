"""Batches of candidates: shared out, in an order that saves layers, with nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorlib.search.evaluator import Evaluator, Part, Piece
from tailorlib.search.pending import drop_pending, read_pending
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring

CPU = torch.device("cpu")
TEXT = "The quick brown fox jumps over the lazy dog. Anna has 3 apples and buys 4 more. " * 12
Make = Callable[..., Evaluator]


def candidates(evaluator: Evaluator, count: int = 6) -> list[Tailoring]:
    space, rng = evaluator.study.space, numpy_generator("evaluator")
    found = {t.digest: t for t in (space.decode(space.sample(rng)) for _ in range(2 * count))}
    return list(found.values())[:count]


def scores(evaluator: Evaluator, tailorings: Sequence[Tailoring]) -> list[float]:
    return [outcome.measurement.score for outcome in evaluator.evaluate(tailorings)]  # type: ignore[union-attr]


def by_hand(evaluator: Evaluator, tailorings: Sequence[Tailoring]) -> list[float]:
    study = evaluator.study
    return [study.fitness.evaluate(study.family.stitch(t)).score for t in tailorings]


def test_a_batch_scores_as_each_candidate_alone(make: Make) -> None:
    evaluator = make()
    batch = candidates(evaluator)
    assert scores(evaluator, batch) == by_hand(make(prefix_cache_mib=0), batch)


def pieces(evaluator: Evaluator, batch: list[Tailoring], shard: int) -> list[Piece]:
    return [Piece(tailoring, (0, evaluator.fitness.num_samples), shard) for tailoring in batch]


def test_shards_change_the_last_digits_at_most(make: Make) -> None:
    evaluator = make(shards=4)
    assert len(evaluator.shards((0, evaluator.fitness.num_samples))) == 4
    batch = candidates(evaluator)
    assert scores(evaluator, batch) == pytest.approx(by_hand(make(), batch), rel=1e-6)


@pytest.mark.parametrize("shards", [1, 3])
def test_ranks_share_the_work_and_each_piece_is_done_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    evaluators = [make(rank, 2, shards=shards) for rank in range(2)]
    batch = candidates(evaluators[0], 5)
    alone = scores(make(shards=shards), batch)
    done: list[list[Part]] = []
    for evaluator in evaluators:  # what the ranks would do side by side
        with monkeypatch.context() as patch:
            patch.setattr("tailorlib.search.evaluator.gathered", lambda parts: done.append(parts) or [parts])
            with pytest.raises(KeyError):
                evaluator.evaluate(batch)
    pieces = [(part.digest, part.shard) for parts in done for part in parts]
    assert len(pieces) == len(set(pieces)) == 5 * shards
    assert abs(len(done[0]) - len(done[1])) <= 1
    monkeypatch.setattr("tailorlib.search.evaluator.gathered", lambda _: done)
    assert scores(make(0, 2, shards=shards), batch) == alone


def test_a_batch_runs_shared_layers_once(make: Make) -> None:
    """Whatever the stride, a batch computes each node of its tree of prefixes once."""
    evaluator = make()
    selected = [LayerPlan((LayerSource(BASE, i),)) for i in range(6)]
    batch = [Tailoring((*selected[:k], LayerPlan((LayerSource("a", k),)))) for k in (5, 1, 3, 4)]
    evaluator.engine._footprint = 10**12  # nothing is kept on mere suspicion
    outcomes = evaluator.evaluate(batch)
    nodes = {name for tailoring in batch for name in tailoring.prefixes[1:]}
    assert sum(o.costs["layers_run"] for o in outcomes) == len(nodes)
    assert sum(o.costs["layers_run"] + o.costs["layers_reused"] for o in outcomes) == sum(
        len(t.layers) for t in batch
    )


def test_the_best_candidates_states_outlast_the_others(make: Make) -> None:
    evaluator = make(prefix_cache_mib=1)
    batch = candidates(evaluator, 8)
    best = batch[0]
    (first,) = evaluator.evaluate([best])
    states = evaluator.engine.states
    kept = states.near.nbytes
    assert first.costs["layers_reused"] == 0 and kept
    states.near.budget = 2 * kept
    for other in batch[1:]:
        evaluator.evaluate([other], best)
    changed = Tailoring((*best.layers[:-1], LayerPlan((LayerSource("b", 5),))))
    (again,) = evaluator.evaluate([changed], best)
    assert again.costs["layers_run"] == 1


def test_what_was_done_of_an_interrupted_batch_is_not_done_again(make: Make, tmp_path: Path) -> None:
    expected = scores(make(shards=2), batch := candidates(make(), 4))
    interrupted = make(folder=tmp_path, shards=2)
    work = interrupted._score
    done: list[Part] = []

    def score(*args: Any) -> Part:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(work(*args))
        return done[-1]

    interrupted._score = score  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        interrupted.evaluate(batch)
    file = tmp_path / "pending.0.jsonl"
    with file.open("a", encoding="utf-8") as torn:
        torn.write('{"digest": "')
    (tmp_path / "pending.7.jsonl").write_text("")  # of a run with more ranks
    parts = list(read_pending(tmp_path))
    assert parts == done
    resumed = make(folder=tmp_path, shards=2)
    resumed.recover(parts)
    again: list[Part] = []
    resume_work = resumed._score
    resumed._score = lambda *args: again.append(resume_work(*args)) or again[-1]  # type: ignore[method-assign,func-returns-value]
    assert scores(resumed, batch) == expected
    assert len(again) == 3
    resumed.settle()
    drop_pending(tmp_path, 1)
    assert not list(tmp_path.glob("pending.*"))


def test_candidates_at_which_a_process_died_come_last_and_one_at_a_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = candidates(make(), 4)
    alone = scores(make(), batch)
    dead, doubtful = batch[0].digest, batch[1].digest
    done: list[list[list[Part]]] = [[], []]
    counts = {f"search {dead}": 2, f"search {doubtful}": 1}

    def keep(into: list[list[Part]], own: list[Part]) -> list[list[Part]]:
        into.append(own)
        return [own]

    for rank in range(2):  # what the ranks would do side by side
        evaluator = make(rank, 2)
        evaluator._deaths.counts = counts
        with monkeypatch.context() as patch:
            patch.setattr("tailorlib.search.evaluator.gathered", partial(keep, done[rank]))
            with pytest.raises(KeyError):
                evaluator.evaluate(batch)
    assert [[len(parts) for parts in own] for own in done] == [[1, 1], [1, 0]]
    assert [part.digest for part in done[0][1]] == [doubtful]
    rounds = iter(zip(*done, strict=True))
    monkeypatch.setattr("tailorlib.search.evaluator.gathered", lambda _: next(rounds))
    evaluator = make(0, 2)
    evaluator._deaths.counts = counts
    failed, *others = evaluator.evaluate(batch)
    assert str(failed.measurement).startswith("The process that scored it was killed 2 times")
    assert [outcome.measurement.score for outcome in others] == alone[1:]  # type: ignore[union-attr]


def test_one_candidate_on_one_shard_leaves_no_file(make: Make, tmp_path: Path) -> None:
    evaluator = make(folder=tmp_path)
    evaluator.evaluate(candidates(evaluator, 1))
    assert not list(tmp_path.glob("pending.*"))


def test_a_rank_that_fails_fails_the_candidate_with_its_reason(make: Make) -> None:
    evaluator = make(1, 2, shards=2)
    batch = candidates(evaluator, 2)
    stitch = evaluator.study.family.stitch

    def fail(tailoring: Tailoring) -> Any:
        if tailoring == batch[0]:
            raise RuntimeError("the device is gone")
        return stitch(tailoring)

    evaluator.study.family.stitch = fail  # type: ignore[method-assign]
    (part,) = [p for p in evaluator._work(pieces(evaluator, batch, 0), None) if isinstance(p.results, str)]
    assert part.digest == batch[0].digest
    assert part.results.startswith("RuntimeError: the device is gone (test_evaluator.py, line ")
    assert part.results.endswith(" (rank 1)")
    whole = make(shards=2)
    good = list(whole._work([*pieces(whole, batch, 0), *pieces(whole, batch, 1)], None))
    whole.recover([part, *(p for p in good if p.key != part.key)])
    failed, fine = whole.evaluate(batch)
    assert failed.measurement == part.results
    assert not isinstance(fine.measurement, str)


def test_parts_survive_json(make: Make) -> None:
    evaluator = make(shards=2)
    for part in evaluator._work(pieces(evaluator, candidates(evaluator, 2), 1), None):
        assert Part.from_dict(json.loads(json.dumps(part.to_dict()))) == part
