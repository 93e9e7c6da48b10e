"""The order of samples, and requests that are scored a few samples at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from evaluation_oracles import one_by_one
from hypothesis import given
from hypothesis import strategies as st

from tailorlib.evaluation.engine import CompiledRequests, Engine, Scores
from tailorlib.evaluation.packing import Request
from tailorlib.evaluation.samples import SampledRequests, cut, interleaved, joined, shards

CPU = torch.device("cpu")


class CountingEngine(Engine):
    """Knows which requests it has laid out, and which it has scored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compiled: list[int] = []
        self.scored: list[Request] = []

    def compile(self, requests: Sequence[Request]) -> CompiledRequests:
        self.compiled.append(len(requests))
        return super().compile(requests)

    def score(self, model: Any, compiled: CompiledRequests) -> Scores:
        self.scored += compiled.requests
        return super().score(model, compiled)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_every_prefix_has_the_same_share_of_each_list(counts: list[int]) -> None:
    order = interleaved(counts)
    assert sorted(order) == [(number, i) for number, count in enumerate(counts) for i in range(count)]
    taken = [0] * len(counts)
    for number, index in order:
        assert index == taken[number]  # each list in its own order
        taken[number] += 1
        share = Fraction(index, counts[number])
        assert all(0 <= n - share * count <= 1 for n, count in zip(taken, counts, strict=True))
    some = sum(count > 0 for count in counts)
    assert [index for _, index in order[:some]] == [0] * some


def test_lists_are_mixed_in_proportion() -> None:
    assert interleaved([2, 4]) == [(0, 0), (1, 0), (1, 1), (0, 1), (1, 2), (1, 3)]
    assert interleaved([]) == []


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(1, 8))
def test_stretches_are_contiguous_and_about_equal(costs: list[int], number: int) -> None:
    parts = cut(costs, number)
    assert [i for part in parts for i in part] == list(range(len(costs)))
    assert all(parts)
    assert len(parts) == min(number, len(costs))
    mean = sum(costs) / max(1, len(parts))
    assert all(sum(costs[i] for i in part) <= mean + 2 * max(costs) for part in parts)


def test_equal_costs_are_cut_evenly() -> None:
    assert [len(part) for part in cut([3] * 12, 4)] == [3, 3, 3, 3]
    assert [len(part) for part in cut([3] * 13, 4)] in ([3, 3, 3, 4], [3, 3, 4, 3], [3, 4, 3, 3], [4, 3, 3, 3])
    assert cut([], 3) == []


def test_lists_of_parts_are_joined_one_after_another() -> None:
    assert joined([[[0], [2]], [[1], [3]]], 2) == [[0, 1], [2, 3]]
    assert joined([[[5]], [[1]], [[3], [4], [0]]], 3) == [[4, 5], [0, 1], [3]]
    assert joined([[[5]], []], 3) == [[5]]


def few_shot(engine: Engine, subjects: int, questions: int) -> list[list[Request]]:
    """Return samples of two choices each; the questions of a subject begin with the same long text."""
    rng = torch.Generator().manual_seed(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, len(engine.tokenizer), (n,), generator=rng).tolist())

    found = []
    for _ in range(subjects):
        examples = tokens(60)
        for _ in range(questions):
            context = examples + tokens(6)
            found.append([Request(context, tokens(2)), Request(context, tokens(3))])
    order = torch.randperm(len(found), generator=rng).tolist()
    return [found[i] for i in order]


def test_shards_keep_shared_prefixes_together(tiny: Callable[..., Any]) -> None:
    engine = Engine(tiny()[1], CPU, 256)
    requests = few_shot(engine, subjects=4, questions=5)
    samples = [3 * i for i in range(20)]  # numbers, not places
    parts = shards(requests, samples, 4)
    assert sorted(i for part in parts for i in part) == samples
    assert all(part == sorted(part) for part in parts)
    of = dict(zip(samples, requests, strict=True))
    beginnings = [{of[i][0].context[:60] for i in part} for part in parts]
    assert all(len(found) == 1 for found in beginnings)
    whole = SampledRequests(engine, requests)
    apart = sum(whole.compiled([samples.index(i) for i in part]).tokens for part in parts)
    assert apart <= whole.tokens + 4  # no example runs twice


def test_shards_are_of_about_equal_size(tiny: Callable[..., Any]) -> None:
    engine = Engine(tiny()[1], CPU, 256)
    whole = SampledRequests(engine, few_shot(engine, subjects=2, questions=10))
    for number in (2, 3, 7):
        sizes = [whole.compiled(part).tokens for part in whole.shards(range(20), number)]
        assert len(sizes) == number
        assert max(sizes) - min(sizes) <= 60 + 2 * 11  # a beginning, and a question at either end
    assert [len(part) for part in whole.shards(range(20), 50)] == [1] * 20
    assert whole.shards([], 3) == []
    assert SampledRequests(engine, [[], []]).shards([0, 1], 2) == [[0], [1]]


def test_answers_are_those_of_each_request_alone(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    engine = CountingEngine(tokenizer, CPU, 256)
    requests = few_shot(engine, subjects=2, questions=4)
    requests[3] = []  # nothing to score
    whole = SampledRequests(engine, requests)
    for samples in ([0, 1, 2], [5, 3, 0], list(range(8))):
        for sample, answers in zip(samples, whole.score(model, samples), strict=True):
            if not requests[sample]:
                assert answers == []
                continue
            alone = one_by_one(model, requests[sample])
            assert [value for value, _ in answers] == pytest.approx(alone.log_likelihood.tolist(), abs=1e-4)
            assert [greedy for _, greedy in answers] == alone.greedy.tolist()
    before = len(engine.scored)
    assert whole.score(model, [3]) == [[]]
    assert whole.score(model, []) == []
    assert len(engine.scored) == before


def test_a_set_of_samples_is_laid_out_once_in_whatever_order(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    engine = CountingEngine(tokenizer, CPU, 256)
    whole = SampledRequests(engine, few_shot(engine, subjects=2, questions=4))
    forth, back = whole.score(model, [0, 1, 4]), whole.score(model, [4, 1, 0])
    assert forth == back[::-1]  # to the last bit
    assert engine.compiled == [6]
    whole.score(model, [0, 1])
    assert engine.compiled == [6, 4]
