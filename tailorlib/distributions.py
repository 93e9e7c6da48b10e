"""Distributions: what one parameter of a search space can be.

A distribution is a frozen value. It samples, checks membership, mutates, and maps its values to and from the
unit cube, so that an optimizer can choose the encoding that suits it: values, mutations, or coordinates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tailorlib.exceptions import shown

Scalar = bool | int | float | str
ParamValue = Scalar | tuple[float, ...]
Params = Mapping[str, ParamValue]
"""A flat assignment ``name -> value`` drawn from a search space's distributions."""


def plain_value(value: object) -> object:
    """Return a parameter's value in Python's types: scalars of numpy and torch are numbers, lists are tuples."""
    if isinstance(value, np.ndarray | list | tuple) and np.ndim(value) > 0:
        return tuple(plain_value(item) for item in value)
    array: Any = value
    if isinstance(value, np.generic | np.ndarray) or type(value).__module__ == "torch":
        return array if getattr(array, "ndim", 1) else array.item()
    return value


class Distribution(ABC):
    """The set of values of one parameter, with a way to draw from it."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of unit-interval coordinates of the encoding."""

    @property
    @abstractmethod
    def cardinality(self) -> int | None:
        """Number of values; ``None`` for a continuous distribution."""

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> ParamValue:
        """Draw one value."""

    @abstractmethod
    def contains(self, value: object) -> bool:
        """Say whether ``value`` (of the right type) belongs to the distribution."""

    @property
    def rule(self) -> str:
        """What a value is, for messages."""
        return f"in {self!r}"

    @abstractmethod
    def mutate(self, value: ParamValue, rng: np.random.Generator) -> ParamValue:
        """Return a neighbour of ``value``; another value whenever there is one."""

    @abstractmethod
    def encode(self, value: ParamValue) -> tuple[float, ...]:
        """Map a value to ``width`` coordinates in [0, 1]."""

    @abstractmethod
    def decode(self, coordinates: Sequence[float]) -> ParamValue:
        """Map ``width`` coordinates in [0, 1] to a value; ``decode(encode(v)) == v``."""

    @property
    def default(self) -> ParamValue:
        """A fixed value in the middle of the distribution, for parameters that a given start leaves open."""
        return self.decode((0.5,) * self.width)


@dataclass(frozen=True)
class Float(Distribution):
    """A real number in [low, high], uniform or log-uniform.

    Raises:
        ValueError: If the bounds are not finite, out of order, or not positive on a log scale.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"Float needs finite bounds low <= high, got low={self.low}, high={self.high}.")
        if self.log and self.low <= 0:
            raise ValueError(f"Float(log=True) needs low > 0, got low={self.low}.")

    @property
    def width(self) -> int:
        """One coordinate."""
        return 1

    @property
    def cardinality(self) -> int | None:
        """One value if the bounds coincide, else continuous."""
        return 1 if self.low == self.high else None

    def sample(self, rng: np.random.Generator) -> float:
        """Draw (log-)uniformly."""
        return self.decode((rng.random(),))

    def contains(self, value: object) -> bool:
        """Say whether ``value`` is a real number within the bounds."""
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and self.low <= value <= self.high  # False for NaN
        )

    @property
    def rule(self) -> str:
        """What a value is, for messages."""
        return f"a number from {self.low} to {self.high}"

    def mutate(self, value: ParamValue, rng: np.random.Generator) -> float:
        """Take a Gaussian step of a fifth of the range, reflected at the bounds."""
        (x,) = self.encode(value)
        x = abs(x + 0.2 * rng.standard_normal()) % 2.0
        return self.decode((2.0 - x if x > 1.0 else x,))

    def encode(self, value: ParamValue) -> tuple[float, ...]:
        """Map to the position between the bounds (of the logarithm if ``log``)."""
        assert isinstance(value, int | float)
        if self.low == self.high:
            return (0.5,)
        low, high, x = self._scale(self.low), self._scale(self.high), self._scale(float(value))
        return ((x - low) / (high - low),)

    def decode(self, coordinates: Sequence[float]) -> float:
        """Map a position back, never outside the bounds."""
        low, high = self._scale(self.low), self._scale(self.high)
        x = low + float(coordinates[0]) * (high - low)
        return min(max(math.exp(x) if self.log else x, self.low), self.high)

    def _scale(self, x: float) -> float:
        return math.log(x) if self.log else x


@dataclass(frozen=True)
class Integer(Distribution):
    """A whole number in [low, high], both included.

    Raises:
        ValueError: If ``low > high``.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"Integer needs low <= high, got low={self.low}, high={self.high}.")

    @property
    def width(self) -> int:
        """One coordinate."""
        return 1

    @property
    def cardinality(self) -> int | None:
        """Number of whole numbers within the bounds."""
        return self.high - self.low + 1

    def sample(self, rng: np.random.Generator) -> int:
        """Draw uniformly."""
        return int(rng.integers(self.low, self.high + 1))

    def contains(self, value: object) -> bool:
        """Say whether ``value`` is a whole number within the bounds."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def rule(self) -> str:
        """What a value is, for messages."""
        return f"a whole number from {self.low} to {self.high}"

    def mutate(self, value: ParamValue, rng: np.random.Generator) -> int:
        """Step up or down, to the next whole number at least."""
        assert isinstance(value, int)
        if self.low == self.high:
            return value
        step = max(1, round(abs(rng.standard_normal()) * 0.2 * (self.high - self.low)))
        moved = value + step * (1 if rng.random() < 0.5 else -1)
        clipped = min(max(moved, self.low), self.high)
        return clipped if clipped != value else (value - 1 if value == self.high else value + 1)

    def encode(self, value: ParamValue) -> tuple[float, ...]:
        """Map to the middle of the value's cell."""
        assert isinstance(value, int)
        return ((value - self.low + 0.5) / (self.high - self.low + 1),)

    def decode(self, coordinates: Sequence[float]) -> int:
        """Map a position to the cell it lies in."""
        n = self.high - self.low + 1
        return self.low + min(int(float(coordinates[0]) * n), n - 1)


@dataclass(frozen=True)
class Categorical(Distribution):
    """One of several unordered choices.

    Raises:
        ValueError: If there is no choice, or two are equal.
    """

    choices: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.choices:
            raise ValueError("Categorical needs at least one choice, got none.")
        if len(set(map(repr, self.choices))) != len(self.choices):
            raise ValueError(f"Categorical needs distinct choices, got {self.choices}.")

    @property
    def width(self) -> int:
        """One coordinate."""
        return 1

    @property
    def cardinality(self) -> int | None:
        """Number of choices."""
        return len(self.choices)

    def index(self, value: object) -> int:
        """Return the position of a choice, telling ``1`` from ``True``.

        Raises:
            ValueError: If ``value`` is no choice.
        """
        for i, choice in enumerate(self.choices):
            if type(choice) is type(value) and choice == value:
                return i
        raise ValueError(f"Categorical has the choices {self.choices}, got {value!r}.")

    def sample(self, rng: np.random.Generator) -> Scalar:
        """Draw uniformly."""
        return self.choices[int(rng.integers(len(self.choices)))]

    def contains(self, value: object) -> bool:
        """Say whether ``value`` is one of the choices."""
        return any(type(c) is type(value) and c == value for c in self.choices)

    @property
    def rule(self) -> str:
        """What a value is, for messages."""
        return f"one of {shown(self.choices)}"

    def mutate(self, value: ParamValue, rng: np.random.Generator) -> Scalar:
        """Draw another choice."""
        here = self.index(value)
        if len(self.choices) == 1:
            return self.choices[0]
        step = int(rng.integers(1, len(self.choices)))
        return self.choices[(here + step) % len(self.choices)]

    def encode(self, value: ParamValue) -> tuple[float, ...]:
        """Map to the middle of the choice's cell."""
        return ((self.index(value) + 0.5) / len(self.choices),)

    def decode(self, coordinates: Sequence[float]) -> Scalar:
        """Map a position to the cell it lies in."""
        n = len(self.choices)
        return self.choices[min(int(float(coordinates[0]) * n), n - 1)]


@dataclass(frozen=True)
class Subset(Distribution):
    """``k`` of the numbers ``0 .. n-1``, without order: a strictly increasing tuple.

    One value instead of ``k`` integers: no permutation is a duplicate and no value needs forbidding.

    Args:
        n: How many numbers there are.
        k: How many of them are members, at most if ``least`` is given.
        least: How many are members at least; ``k`` by default, so that the size is exact.

    Raises:
        ValueError: If not ``0 <= least <= k <= n``.
    """

    n: int
    k: int
    least: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.k <= self.n:
            given = f"n={self.n}, k={self.k}" + (f", least={self.least}" if self.least is not None else "")
            raise ValueError(f"Subset needs 0 <= least <= k <= n, got {given}.")

    @property
    def low(self) -> int:
        """The least number of members."""
        return self.k if self.least is None else self.least

    @property
    def width(self) -> int:
        """One random key per element, and one coordinate for the size if it varies."""
        return self.n + (self.low < self.k)

    @property
    def cardinality(self) -> int | None:
        """The sum of the binomial coefficients (n over size)."""
        return sum(math.comb(self.n, size) for size in range(self.low, self.k + 1))

    def sample(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw a size uniformly, and then uniformly from all subsets of that size."""
        size = self.k if self.low == self.k else int(rng.integers(self.low, self.k + 1))
        return tuple(sorted(int(i) for i in rng.choice(self.n, size=size, replace=False)))

    def contains(self, value: object) -> bool:
        """Say whether ``value`` is a strictly increasing tuple of numbers in ``0 .. n-1``, of a right size."""
        return (
            isinstance(value, tuple)
            and self.low <= len(value) <= self.k
            and all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < self.n for i in value)
            and all(a < b for a, b in pairwise(value))
        )

    @property
    def rule(self) -> str:
        """What a value is, for messages."""
        size = f"{self.k}" if self.low == self.k else f"{self.low} to {self.k}"
        return f"{size} of the numbers 0 to {self.n - 1}, as an increasing tuple"

    def mutate(self, value: ParamValue, rng: np.random.Generator) -> tuple[int, ...]:
        """Swap min(U{1..3}, U{1..3}) members with non-members: the size stays exact.

        The step of EvoPress (arXiv 2410.14649, section 3). Where the size varies, every other step takes in or
        leaves out one member instead.
        """
        assert isinstance(value, tuple)
        outside = [i for i in range(self.n) if i not in value]
        if self.low < self.k and (rng.random() < 0.5 or not value or not outside):
            return self._resize(value, outside, rng)
        swaps = min(int(rng.integers(1, 4)), int(rng.integers(1, 4)), len(value), len(outside))
        leaving = rng.choice(len(value), size=swaps, replace=False) if swaps else ()
        entering = rng.choice(len(outside), size=swaps, replace=False) if swaps else ()
        kept = {int(i) for i in value} - {int(value[int(i)]) for i in leaving}
        return tuple(sorted(kept | {outside[int(i)] for i in entering}))

    def encode(self, value: ParamValue) -> tuple[float, ...]:
        """Map to random keys, 0.75 for members and 0.25 for the rest, and the middle of the size's cell."""
        assert isinstance(value, tuple)
        keys = tuple(0.75 if i in value else 0.25 for i in range(self.n))
        return (*keys, *self._sizes.encode(len(value))) if self.low < self.k else keys

    def decode(self, coordinates: Sequence[float]) -> tuple[int, ...]:
        """Take the largest keys as members; ties go to the smaller number."""
        order = sorted(range(self.n), key=lambda i: (-float(coordinates[i]), i))
        size = self.k if self.low == self.k else self._sizes.decode(coordinates[self.n :])
        return tuple(sorted(order[:size]))

    @property
    def _sizes(self) -> Integer:
        return Integer(self.low, self.k)

    def _resize(
        self, value: tuple[float, ...], outside: Sequence[int], rng: np.random.Generator
    ) -> tuple[int, ...]:
        members = [int(i) for i in value]
        grow = len(members) < self.k and (len(members) == self.low or rng.random() < 0.5)
        if grow:
            return tuple(sorted([*members, outside[int(rng.integers(len(outside)))]]))
        members.pop(int(rng.integers(len(members))))
        return tuple(members)
