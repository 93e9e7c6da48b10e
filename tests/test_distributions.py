from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorlib import Categorical, Distribution, Float, Integer, Subset

DISTRIBUTIONS: tuple[Distribution, ...] = (
    Float(-1.0, 2.5),
    Float(1e-4, 10.0, log=True),
    Float(0.3, 0.3),
    Float(0.3, 0.3, log=True),
    Integer(-3, 4),
    Integer(7, 7),
    Categorical(("a", "b", "c")),
    Categorical((1, True, "1", 1.0)),
    Categorical(("only",)),
    Subset(8, 3),
    Subset(5, 0),
    Subset(5, 5),
)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_values_survive_the_unit_cube_and_mutation(distribution: Distribution, seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = distribution.sample(rng)
    assert distribution.contains(value)
    coordinates = distribution.encode(value)
    assert len(coordinates) == distribution.width
    assert all(0 <= c <= 1 for c in coordinates)
    decoded = distribution.decode(coordinates)
    assert decoded == (pytest.approx(value, rel=1e-12) if isinstance(distribution, Float) else value)
    assert type(decoded) is type(value)
    mutant = distribution.mutate(value, rng)
    assert distribution.contains(mutant)
    if distribution.cardinality != 1:
        assert repr(mutant) != repr(value), "a mutation moves"


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_point_of_the_unit_cube_is_a_value(distribution: Distribution, data: st.DataObject) -> None:
    coordinates = [data.draw(st.floats(0, 1)) for _ in range(distribution.width)]
    assert distribution.contains(distribution.decode(coordinates))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_the_default_is_a_fixed_value(distribution: Distribution) -> None:
    assert distribution.contains(distribution.default)
    assert distribution.default == distribution.default


@pytest.mark.parametrize(
    "distribution", [d for d in DISTRIBUTIONS if d.cardinality is not None and d.cardinality < 60], ids=repr
)
def test_sampling_reaches_exactly_as_many_values_as_there_are(distribution: Distribution) -> None:
    rng = np.random.default_rng(0)
    assert len({repr(distribution.sample(rng)) for _ in range(1500)}) == distribution.cardinality


def test_a_subset_is_drawn_uniformly() -> None:
    rng = np.random.default_rng(0)
    draws = [Subset(5, 2).sample(rng) for _ in range(4000)]
    counts = [draws.count(v) for v in set(draws)]
    assert len(counts) == 10
    assert max(abs(c - 400) for c in counts) < 5 * math.sqrt(400)


def test_a_log_float_is_uniform_in_the_exponent() -> None:
    rng = np.random.default_rng(0)
    draws = np.log10([Float(0.01, 100.0, log=True).sample(rng) for _ in range(2000)])
    assert np.mean(draws < 0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("distribution", "stranger"),
    [
        (Float(0.0, 1.0), 1.1),
        (Float(0.0, 1.0), math.nan),
        (Float(0.0, 1.0), True),
        (Float(0.0, 1.0), "0.5"),
        (Integer(0, 3), 1.0),
        (Integer(0, 3), True),
        (Integer(0, 3), 4),
        (Categorical((0, 1)), True),
        (Categorical((0, 1)), 1.0),
        (Categorical(("a",)), "b"),
        (Subset(4, 2), (1, 0)),
        (Subset(4, 2), (1, 1)),
        (Subset(4, 2), (1, 4)),
        (Subset(4, 2), (1,)),
        (Subset(4, 2), [0, 1]),
        (Subset(4, 2), (False, True)),
    ],
)
def test_strangers_are_not_contained(distribution: Distribution, stranger: Any) -> None:
    assert not distribution.contains(stranger)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Float(1.0, 0.0),
        lambda: Float(0.0, math.inf),
        lambda: Float(math.nan, 1.0),
        lambda: Float(0.0, 1.0, log=True),
        lambda: Integer(2, 1),
        lambda: Categorical(()),
        lambda: Categorical(("a", "a")),
        lambda: Subset(2, 3),
        lambda: Subset(2, -1),
    ],
)
def test_impossible_distributions_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="got"):
        make()
