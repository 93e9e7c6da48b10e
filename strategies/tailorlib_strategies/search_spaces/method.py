"""Method: one merge operation among those that a search chooses from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tailorlib import Distribution, MergeOperation, Params
from tailorlib.distributions import ParamValue
from tailorlib_strategies.search_spaces.hyperparameters import Hyperparameters

WEIGHTS = "weights"


class Method(Hyperparameters):
    """A merge operation's hyperparameters and, if they are searched, the weights of its sources.

    A weight is the parameter ``{Operation}.weight.{candidate}``. Weights that are one number are no parameters.
    A plan whose weights are all 1 names none.

    Args:
        merge: The operation.
    """

    def __init__(self, merge: MergeOperation) -> None:
        super().__init__(merge)
        self.merge = merge
        fixed = merge.weights is None or merge.weights.cardinality == 1
        self._weight = None if fixed else merge.weights
        self._fixed_weight = merge.weights.default if fixed and merge.weights is not None else 1.0

    @property
    def limits(self) -> str:
        """How many sources it takes, in words."""
        low, high = self.merge.min_sources, self.merge.max_sources
        numbers = f"{low} or more" if high is None else f"exactly {low}" if low == high else f"{low} to {high}"
        return f"{self.operation} merges {numbers}"

    def admits(self, n: int) -> bool:
        """Say whether it takes ``n`` sources."""
        return self.merge.min_sources <= n <= (self.merge.max_sources or n)

    def weights(self, candidates: Iterable[str]) -> Iterator[tuple[str, Distribution]]:
        """Yield the weights of candidates, as parameters."""
        if self._weight is not None:
            for candidate in candidates:
                yield f"{self.operation}.weight.{candidate}", self._weight

    def active_of(self, candidates: Iterable[str], params: Params, prefix: str) -> dict[str, ParamValue]:
        """Return what matters of an assignment when these candidates are merged."""
        names = [f"{prefix}{name}" for name, _ in self.weights(candidates)]
        return self.active(params, prefix) | {name: params[name] for name in names}

    def decode_of(
        self, candidates: Sequence[str], params: Params, prefix: str
    ) -> tuple[tuple[str, ParamValue], ...]:
        """Return the params of a plan that merges these candidates."""
        values = self.decode(params, prefix)
        weights = tuple(self._weight_of(candidate, params, prefix) for candidate in candidates)
        return values if all(weight == 1 for weight in weights) else (*values, (WEIGHTS, weights))

    def encode_of(
        self, models: Sequence[str], values: Mapping[str, ParamValue]
    ) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters of a plan's params, without a prefix, and what is wrong with them."""
        named, wrong = self.encode({name: value for name, value in values.items() if name != WEIGHTS})
        weights = values.get(WEIGHTS, (1.0,) * len(models))
        if not isinstance(weights, tuple) or len(weights) != len(models):
            return named, [*wrong, f"{self.operation} takes one weight per source, got {weights}"]
        given = dict(zip(models, weights, strict=True))
        if self._weight is None:
            fixed = self._fixed_weight
            wrong += [
                f"{self.operation}.weight.{m}={w!r} is not {fixed!r}" for m, w in given.items() if w != fixed
            ]
            return named, wrong
        wrong += [
            f"{self.operation}.weight.{model}={weight!r} is not in {self._weight}"
            for model, weight in given.items()
            if not self._weight.contains(weight)
        ]
        return named | {f"{self.operation}.weight.{model}": weight for model, weight in given.items()}, wrong

    def count_of(self, n: int) -> int:
        """Return the number of ways to merge ``n`` sources, each continuous number counted as one value."""
        weights = 1 if self._weight is None else self._weight.cardinality or 1
        return int(self.count() * weights**n)

    def continuous_of(self, n: int) -> int:
        """Return how many continuous numbers it takes to merge ``n`` sources."""
        return self.continuous() + (n if self._weight is not None and self._weight.cardinality is None else 0)

    def _weight_of(self, candidate: str, params: Params, prefix: str) -> float:
        value = self._fixed_weight
        if self._weight is not None:
            value = params[f"{prefix}{self.operation}.weight.{candidate}"]
        assert isinstance(value, int | float)
        return value
