"""The contract checks catch what they promise to catch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tailorlib_strategies.operations import LayerRemoval
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import Fitness, Measurement, MergeOperation, Optimizer
from tailorlib.exceptions import PluginError
from tailorlib.testing.contracts import LAYOUT, check_fitness, check_merge_operation, check_optimizer


class Good(MergeOperation):
    def merge(self, tensors, *, base, params, generators):
        return sum(tensors) / len(tensors)


class Modifies(Good):
    def merge(self, tensors, *, base, params, generators):
        return tensors[0].zero_()


class ModifiesBase(Good):
    needs_base = True

    def merge(self, tensors, *, base, params, generators):
        return base.add_(1.0)


class GlobalNoise(Good):
    def merge(self, tensors, *, base, params, generators):
        return tensors[0] + torch.rand(tensors[0].shape)


class Secret(Good):
    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def merge(self, tensors, *, base, params, generators):
        return self.factor * tensors[0]


class DividesByZero(Good):
    def merge(self, tensors, *, base, params, generators):
        return tensors[0] / tensors[0].norm()


class Words(Fitness):
    """Scores nothing of the model: a weighted mean of some numbers, one a sample."""

    num_samples = 5

    def _score_samples(self, model, samples):
        return [float(i) for i in samples]

    def _summarise(self, results):
        return Measurement(sum(k * result for k, result in enumerate(results, start=1)) / len(results))


class CountsCalls(Words):
    calls = 0

    def _score_samples(self, model, samples):
        self.calls += 1
        return [float(i + self.calls) for i in samples]


class DependsOnOthers(Words):
    def _score_samples(self, model, samples):
        return [i / len(samples) for i in samples]


class Ignores(Words):
    def _score_samples(self, model, samples):
        return sorted(super()._score_samples(model, samples))


class KeepsTensors(Words):
    def _score_samples(self, model, samples):
        return [torch.zeros(2) for _ in samples]


class Drops(Words):
    def shards(self, samples, number):
        return [list(samples[i::number])[:2] for i in range(number)]


class LeavesEmpty(Words):
    def shards(self, samples, number):
        return [list(samples[i::number]) for i in range(number)]


class GlobalScore(Words):
    def _summarise(self, results):
        torch.rand(1)
        return super()._summarise(results)


class GlobalSearch(Optimizer):
    def _ask(self):
        removed = tuple(sorted(np.random.permutation(6)[:2].tolist()))  # noqa: NPY002
        return {**self.space.complete({}), "removed": removed}


class SystemSearch(Optimizer):
    def _ask(self):
        return self.space.sample(np.random.default_rng())


def test_a_sound_operation_passes() -> None:
    check_merge_operation(Good())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Modifies, "modif"),
        (ModifiesBase, "modified"),
        (lambda: Secret(2.0), "Declare in distributions"),
        (DividesByZero, "NaN or Inf"),
    ],
)
def test_a_broken_operation_is_caught(make: Callable[[], MergeOperation], message: str) -> None:
    with pytest.raises((AssertionError, PluginError), match=message):
        check_merge_operation(make())


def test_a_sound_fitness_passes() -> None:
    check_fitness(Words(), None, None)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (CountsCalls, "two evaluations of one model differ: score"),
        (DependsOnOthers, r"continued after \d samples it differs: score"),
        (Ignores, "the order in which samples are scored counts"),
        (KeepsTensors, "plain data"),
        (Drops, "1 shards have each sample once"),
        (LeavesEmpty, "at most 6 shards, none of them empty"),
    ],
)
def test_a_broken_fitness_is_caught(broken: type[Fitness], message: str) -> None:
    with pytest.raises((AssertionError, PluginError), match=message):
        check_fitness(broken(), None, None)


@pytest.fixture
def restore_randomness():
    with torch.random.fork_rng(devices=[]):
        state = np.random.get_state()  # noqa: NPY002
        yield
        np.random.set_state(state)  # noqa: NPY002


@pytest.mark.usefixtures("restore_randomness")
def test_global_noise_is_caught() -> None:
    with pytest.raises(AssertionError, match="global random numbers of torch"):
        check_merge_operation(GlobalNoise())


@pytest.mark.usefixtures("restore_randomness")
def test_a_fitness_with_global_noise_is_caught() -> None:
    with pytest.raises(AssertionError, match="GlobalScore draws from the global random numbers of torch"):
        check_fitness(GlobalScore(), None, None)


@pytest.mark.usefixtures("restore_randomness")
@pytest.mark.parametrize(("make", "message"), [(GlobalSearch, "of numpy"), (SystemSearch, "one seed")])
def test_a_broken_optimizer_is_caught(make: Callable[[], Optimizer], message: str) -> None:
    space = PruningSpace(LayerRemoval(count=2))
    space.setup(LAYOUT)
    with pytest.raises(AssertionError, match=message):
        check_optimizer(make, space)
