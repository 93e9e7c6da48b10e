"""The samples of a combined fitness are those of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tailorlib_strategies.fitness import KLDivergence, Perplexity, WeightedMean

from tailorlib import Fitness, Measurement, TextSource
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import EvaluationError
from tailorlib.testing.contracts import check_fitness


class Given(TextSource):
    def documents(self) -> Sequence[str]:
        return ["The quick brown fox jumps over the lazy dog. " * 6, "Anna has 3 apples and buys 4 more. " * 4]


class Whole(Fitness):
    """Can't be measured in parts."""

    def _evaluate(self, model: Any) -> Measurement:
        return Measurement(0.25, metrics={"figure": 2.0}, chance={"figure": 0.5})


class Numbers(Fitness):
    """The mean of its samples' numbers, which it remembers."""

    def __init__(self, number: int, least: int = 1) -> None:
        self.number, self.least = number, least
        self.asked: list[int] = []

    @property
    def num_samples(self) -> int:
        return self.number

    @property
    def min_samples(self) -> int:
        return self.least

    def _score_samples(self, model: Any, samples: Sequence[int]) -> list[int]:
        self.asked += samples
        return list(samples)

    def _summarise(self, results: Sequence[int]) -> Measurement:
        assert list(results) == list(range(len(results)))  # the first ones, in order
        return Measurement(1 + sum(results) / len(results), metrics={"samples": float(len(results))})


def ready(parts: dict[str, Fitness], engine: Engine, **settings: Any) -> WeightedMean:
    fitness = WeightedMean(parts, **settings)
    fitness.setup(engine)
    return fitness


def test_parts_are_mixed_in_proportion(live: tuple[Any, Engine]) -> None:
    fitness = ready({"whole": Whole(), "few": Numbers(2), "many": Numbers(4)}, live[1])
    assert fitness.num_samples == 7
    assert fitness.min_samples == 3
    for samples, few, many in ((3, 1, 1), (4, 1, 2), (5, 2, 2), (7, 2, 4)):
        found = fitness.evaluate(live[0], samples)
        assert (found.metrics["few/samples"], found.metrics["many/samples"]) == (few, many)
        assert found.parts["whole"] == 0.25
        assert found.score == pytest.approx((0.25 + found.parts["few"] + found.parts["many"]) / 3)
    with pytest.raises(EvaluationError, match="WeightedMean is measured on at least 3 samples, got 2"):
        fitness.evaluate(live[0], 2)


def test_each_part_has_as_many_as_it_needs(live: tuple[Any, Engine]) -> None:
    fitness = ready({"a": Numbers(6, least=2), "b": Numbers(3)}, live[1])
    # a0 b0 a1 a2 b1 ...
    assert fitness.min_samples == 3
    nested = ready({"inner": WeightedMean({"a": Numbers(6, least=2), "b": Numbers(3)}), "c": Numbers(9)}, live[1])
    # (a0 c0) (b0 c1) (a1 ...
    assert nested.min_samples == 5
    assert nested.evaluate(live[0], 5).metrics["inner/a/samples"] == 2


def test_nothing_is_asked_twice(live: tuple[Any, Engine]) -> None:
    parts = {"a": Numbers(6), "b": Numbers(3)}
    fitness = ready(dict(parts), live[1])
    results = fitness.score_samples(live[0], range(4))
    results += fitness.score_samples(live[0], range(4, 9))
    assert {name: sorted(part.asked) for name, part in parts.items()} == {"a": [*range(6)], "b": [*range(3)]}
    assert fitness.summarise(results) == fitness.evaluate(live[0])


def test_real_parts_keep_the_contract(live: tuple[Any, Engine]) -> None:
    model, engine = live
    shape: dict[str, Any] = {"context_length": 24, "max_tokens": 80}
    parts = {"text": Perplexity(Given(), **shape), "kl": KLDivergence(Given(), **shape, seed=1), "whole": Whole()}
    check_fitness(WeightedMean(parts, weights={"kl": 2.0}), model, engine)


def test_shards_are_those_of_the_parts(live: tuple[Any, Engine]) -> None:
    fitness = ready({"one": Whole(), "other": Whole(), "a": Numbers(4), "b": Numbers(6)}, live[1])
    shards = fitness.shards(range(12), 2)
    assert sorted(i for shard in shards for i in shard) == list(range(12))
    names = [[fitness._samples[i][0] for i in shard] for shard in shards]
    for found in names:  # wholes go to different ones
        assert found.count("a") == 2
        assert found.count("b") == 3
        assert found.count("one") + found.count("other") == 1
    assert sorted(fitness.shards([3, 4], 5)) == [[3], [4]]


def test_a_part_that_needs_the_dense_model_gets_it(live: tuple[Any, Engine]) -> None:
    model, engine = live
    assert not WeightedMean({"text": Perplexity(Given())}).needs_dense
    fitness = WeightedMean({"inner": WeightedMean({"kl": KLDivergence(Given(), max_tokens=40)}), "text": Whole()})
    assert fitness.needs_dense
    fitness.setup(engine)
    fitness.observe_dense(model)
    found = fitness.evaluate(model)
    assert found.metrics["inner/kl/kl"] == pytest.approx(0, abs=1e-6)
    assert fitness.set_reference(found).score == pytest.approx(1)


def test_a_score_on_the_first_samples_is_relative_to_the_dense_models_on_the_same(
    live: tuple[Any, Engine],
) -> None:
    """Numbers(n) scores 1 + the mean of 0, 1, ... on the first samples: it grows with them, whatever the model."""
    fitness = ready({"a": Numbers(6), "inner": WeightedMean({"b": Numbers(3)})}, live[1], weights={"a": 3.0})
    dense = fitness.score_samples(live[0], range(9))
    whole = fitness.summarise(dense)
    assert fitness.set_reference(whole).score == pytest.approx(1)
    few = fitness.summarise(dense[:5])  # a0 b0 a1 a2 b1: 1 + 1 of 3.5, and 1 + 1/2 of 2
    assert few.score == pytest.approx((3 * 2 / 3.5 + 1.5 / 2) / 4)
    assert fitness.set_reference(whole, dense).score == pytest.approx(1)
    for samples in range(fitness.min_samples, 10):
        assert fitness.summarise(dense[:samples]).score == pytest.approx(1)
    worse = [place - 0.5 for place in dense]
    for part in (fitness.parts["a"], fitness.parts["inner"].parts["b"]):  # type: ignore[attr-defined]
        part._summarise = lambda results: Measurement(1 + sum(results) / len(results))  # type: ignore[method-assign]
    fitness.set_reference(whole, dense)
    assert fitness.summarise(worse[:5]).score == pytest.approx((3 * 1.5 / 2 + 1.0 / 1.5) / 4)


def test_where_the_dense_model_scores_nothing_on_few_samples_all_of_them_are_the_unit(
    live: tuple[Any, Engine],
) -> None:
    class Right(Numbers):
        def _summarise(self, results: Sequence[int]) -> Measurement:
            return Measurement(sum(results) / len(results))  # 0 on the first sample

    fitness = ready({"a": Right(4)}, live[1])
    dense = fitness.score_samples(live[0], range(4))
    fitness.set_reference(fitness.summarise(dense), dense)
    assert fitness.summarise([0]).score == 0
    assert fitness.summarise([3]).score == pytest.approx(3 / 1.5)
    assert fitness.summarise([0, 2]).score == pytest.approx(1 / 0.5)
