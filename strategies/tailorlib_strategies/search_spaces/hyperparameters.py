"""Hyperparameters of one operation, as parameters of a search space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tailorlib import Distribution, Operation, Params
from tailorlib.distributions import ParamValue


class Hyperparameters:
    """What a search draws for one operation: ``{Operation}.{hyperparameter}``.

    A hyperparameter with a single value is fixed: it stands in every plan, and is no parameter.

    Args:
        operation: The operation.
    """

    def __init__(self, operation: Operation) -> None:
        self.operation, drawn = operation.name, operation.distributions()
        self._searched = {name: d for name, d in drawn.items() if d.cardinality != 1}
        self._fixed = {name: d.default for name, d in drawn.items() if d.cardinality == 1}

    def parameters(self) -> Iterator[tuple[str, Distribution]]:
        """Yield every parameter, in a fixed order."""
        for name, distribution in self._searched.items():
            yield f"{self.operation}.{name}", distribution

    def active(self, params: Params, prefix: str) -> dict[str, ParamValue]:
        """Return what matters of an assignment, given the prefix of the place."""
        names = [f"{prefix}{self.operation}.{name}" for name in self._searched]
        return {name: params[name] for name in names}

    def decode(self, params: Params, prefix: str) -> tuple[tuple[str, ParamValue], ...]:
        """Return all hyperparameters, for a plan."""
        searched = ((name, params[f"{prefix}{self.operation}.{name}"]) for name in self._searched)
        return (*searched, *self._fixed.items())

    def encode(self, values: Mapping[str, ParamValue]) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters of a plan's hyperparameters, without a prefix, and what is wrong with them."""
        wrong = [
            f"{self.operation}.{name} is missing" for name in (*self._searched, *self._fixed) if name not in values
        ]
        for name, value in values.items():
            what = f"{self.operation}.{name}={value!r}"
            if name not in self._searched and name not in self._fixed:
                wrong.append(f"{what} is no hyperparameter of the space")
            elif name in self._searched and not self._searched[name].contains(value):
                wrong.append(f"{what} is not in {self._searched[name]}")
            elif name in self._fixed and value != self._fixed[name]:
                wrong.append(f"{what} is not {self._fixed[name]!r}")
        known = {name: value for name, value in values.items() if name in self._searched}
        return {f"{self.operation}.{name}": value for name, value in known.items()}, wrong

    def count(self) -> int:
        """Return the number of combinations, each continuous hyperparameter counted as one value."""
        return math.prod(d.cardinality or 1 for d in self._searched.values())

    def continuous(self) -> int:
        """Return the number of continuous hyperparameters."""
        return sum(d.cardinality is None for d in self._searched.values())
