"""MergeChoice: which models make one layer (or part of one), by which operation, with which hyperparameters.

The piece {c, m, h} of the GPTailor paper's search space (arXiv 2506.20480), which several spaces place many times,
each time under another prefix of its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jsonargparse.typing import lazy_instance

from tailorlib import Categorical, Distribution, LayerPlan, MergeOperation, Params
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import PluginError, RecipeError
from tailorlib.tailoring import BASE, SELECT, Owner
from tailorlib_strategies.operations.selection import LayerSelection
from tailorlib_strategies.search_spaces.mix import Mix

SELECTION: LayerSelection = lazy_instance(LayerSelection)
"""The default of a space's ``selection``."""
WEIGHTS = "weights"
Plan = TypeVar("Plan", LayerPlan, Owner)


@dataclass(frozen=True)
class _Method:
    """An operation, with the names of its parameters worked out once."""

    operation: MergeOperation
    hyperparameters: Mapping[str, Distribution]
    weight: Distribution | None = None
    """The weight of each source where it is searched."""
    fixed_weight: ParamValue = 1.0
    """The weight of each source where it isn't."""

    @classmethod
    def of(cls, op: MergeOperation) -> _Method:
        searched = op.weights is not None and op.weights.cardinality != 1
        fixed = 1.0 if op.weights is None or searched else op.weights.default
        return cls(op, dict(op.distributions()), op.weights if searched else None, fixed)

    @property
    def name(self) -> str:
        return self.operation.name

    def admits(self, n: int) -> bool:
        return self.operation.min_sources <= n <= (self.operation.max_sources or n)

    def parameters(self, candidates: Iterable[str]) -> Iterator[tuple[str, Distribution]]:
        """Yield the parameters that matter when these candidates are merged."""
        for name, distribution in self.hyperparameters.items():
            yield f"{self.name}.{name}", distribution
        if self.weight is not None:
            for candidate in candidates:
                yield f"{self.name}.weight.{candidate}", self.weight

    def cardinalities(self, n: int) -> list[int | None]:
        """Return the number of values of each parameter that matters with ``n`` sources."""
        weights = [] if self.weight is None else [self.weight.cardinality] * n
        return [d.cardinality for d in self.hyperparameters.values()] + weights


class MergeChoice:
    """One choice of models and merge; its parameters are named without the prefix of the place it is used at.

    A bit per candidate: none means the base's, one selects, two or more merge by ``operation`` with
    ``{Operation}.{hyperparameter}`` and, for weighted operations, ``{Operation}.weight.{candidate}``. Without
    merges one choice ``source``.

    Args:
        setting: What messages call the list of merges, such as ``"PruningSpace.merges"``.
        candidates: Names of the candidates, in recipe order.
        selection: Whether one candidate alone can be taken.
        merges: The operations to choose from.

    Raises:
        RecipeError: If a number of candidates has no operation, or an operation no number of candidates.
    """

    def __init__(
        self, setting: str, candidates: Sequence[str], selection: bool, merges: Sequence[MergeOperation]
    ) -> None:
        self.setting, self.candidates, self.selection = setting, tuple(candidates), selection
        self.models = (BASE, *self.candidates)
        self.merging = bool(merges) and len(self.candidates) >= 2
        self._methods = {op.name: _Method.of(op) for op in merges}
        # per number of sources the methods that admit it, and the name of the parameter that chooses one
        numbers = range(2, len(self.candidates) + 1) if self.merging else ()
        self._admitted = {n: self._admitting(n) for n in numbers}
        self._refuse_unused()
        first = {self._names(n): n for n in reversed(numbers)}
        self._switch = {
            n: "operation" if len(first) == 1 else f"operation.{first[self._names(n)]}" for n in numbers
        }
        self._distributions = dict(self.parameters())

    @property
    def operations(self) -> tuple[MergeOperation, ...]:
        """The operations that can be chosen; none with fewer than two candidates."""
        return tuple(method.operation for method in self._methods.values()) if self.merging else ()

    def parameters(self) -> Iterator[tuple[str, Distribution]]:
        """Yield every parameter, in a fixed order."""
        if not self.merging:
            if self.candidates and self.selection:
                yield "source", Categorical(self.models)
            return
        for candidate in self.candidates:
            yield candidate, Categorical((0, 1))
        for n in sorted({name: n for n, name in reversed(self._switch.items())}.values()):
            if len(self._admitted[n]) > 1:
                yield self._switch[n], Categorical(self._names(n))
        for method in self._methods.values():
            yield from method.parameters(self.candidates)

    def active(self, params: Params, prefix: str) -> dict[str, ParamValue]:
        """Return what matters of an assignment, given the prefix of the place."""
        if not self.merging:
            return {f"{prefix}{name}": params[f"{prefix}{name}"] for name in self._distributions}
        chosen = self._chosen(params, prefix)
        active: dict[str, ParamValue] = {f"{prefix}{c}": int(c in chosen) for c in self.candidates}
        if len(chosen) >= 2:
            method = self._method(params, prefix, len(chosen))
            if len(self._admitted[len(chosen)]) > 1:
                active[prefix + self._switch[len(chosen)]] = method.name
            active |= {f"{prefix}{name}": params[f"{prefix}{name}"] for name, _ in method.parameters(chosen)}
        return active

    def decode(self, params: Params, prefix: str) -> Mix:
        """Return what an assignment means, given the prefix of the place."""
        chosen = self._chosen(params, prefix)
        if len(chosen) < 2:
            return Mix(chosen or (BASE,))
        method = self._method(params, prefix, len(chosen))
        values = [(name, params[f"{prefix}{method.name}.{name}"]) for name in method.hyperparameters]
        weights = tuple(self._weight(method, params, prefix, c) for c in chosen)
        if any(weight != 1 for weight in weights):
            values.append((WEIGHTS, weights))
        return Mix(chosen, method.name, tuple(values), method.operation.needs_base)

    def encode(
        self, plan: Plan, prefix: str, build: Callable[[Mix], Plan]
    ) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters of a plan, and what is wrong with it.

        Args:
            plan: The plan of a layer (without parts and scales) or of a part outside the layers.
            prefix: The prefix of the place.
            build: Returns the plan of a mix at that place.

        Returns:
            Parameters with their prefix, and the ways in which the plan can't be had: none if it can.
        """
        mix = Mix.of(plan)
        unknown = [model for model in mix.models if model not in self.models]
        if unknown:
            return {}, [f"{', '.join(unknown)} is no model of the family ({', '.join(self.models)})"]
        if mix.operation != SELECT and not (self.merging and mix.operation in self._methods):
            among = ", ".join(self._methods if self.merging else ()) or "none"
            return {}, [f"{mix.operation} is not among {self.setting} ({among})"]
        named, wrong = self._named(mix)
        for name, value in named.items():
            distribution = self._distributions.get(name)
            if distribution is None or not distribution.contains(value):
                wrong.append(f"{name}={value!r} is not in {distribution or 'the space'}")
        if not wrong:
            reached = build(self.decode(named, ""))
            if reached != plan:
                wrong.append(f"{_text(plan)} can't be had; the nearest is {_text(reached)}")
        return {f"{prefix}{name}": value for name, value in named.items()}, wrong

    def count(self) -> int:
        """Return the number of mixes, each continuous hyperparameter counted as one value."""
        K = len(self.candidates)  # noqa: N806
        merged = (
            math.comb(K, n) * math.prod(c for c in method.cardinalities(n) if c is not None)
            for n, methods in self._admitted.items()
            for method in methods
        )
        return 1 + (K if self.selection else 0) + sum(merged)

    def continuous(self) -> int:
        """Return the largest number of continuous parameters that are active at once."""
        numbers = (m.cardinalities(n).count(None) for n, methods in self._admitted.items() for m in methods)
        return max(numbers, default=0)

    def _admitting(self, n: int) -> tuple[_Method, ...]:
        methods = tuple(method for method in self._methods.values() if method.admits(n))
        if not methods:
            raise RecipeError(
                f"{self.setting} has an operation for every number of candidates, got none that merges {n}: "
                f"{', '.join(map(_limits, self._methods.values()))}. Add one that takes any number, such as "
                "TaskArithmetic, or leave out candidates."
            )
        return methods

    def _refuse_unused(self) -> None:
        used = {method.name for methods in self._admitted.values() for method in methods}
        unused = [method for method in self._methods.values() if method.name not in used]
        if self.merging and unused:
            raise RecipeError(
                f"{self.setting} has operations that merge 2 to {len(self.candidates)} candidates, got "
                f"{', '.join(map(_limits, unused))}. Take it out."
            )

    def _names(self, n: int) -> tuple[str, ...]:
        return tuple(method.name for method in self._admitted[n])

    def _chosen(self, params: Params, prefix: str) -> tuple[str, ...]:
        """Return the candidates that contribute; none means the base."""
        if not self.merging:
            source = str(params[f"{prefix}source"]) if self._distributions else BASE
            return () if source == BASE else (source,)
        chosen = tuple(c for c in self.candidates if params[prefix + c] == 1)
        return () if len(chosen) == 1 and not self.selection else chosen

    def _method(self, params: Params, prefix: str, n: int) -> _Method:
        methods = self._admitted[n]
        if len(methods) == 1:
            return methods[0]
        name = params[prefix + self._switch[n]]
        for method in methods:
            if method.name == name:
                return method
        raise PluginError(f"{prefix}{self._switch[n]} is one of {list(self._names(n))}, got {name!r}.")

    def _weight(self, method: _Method, params: Params, prefix: str, candidate: str) -> float:
        value = method.fixed_weight
        if method.weight is not None:
            value = params[f"{prefix}{method.name}.weight.{candidate}"]
        assert isinstance(value, int | float)
        return value

    def _named(self, mix: Mix) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters that a mix spells out, unchecked, and which are missing."""
        if not self.merging:
            return {name: mix.models[0] for name in self._distributions}, []
        named: dict[str, ParamValue] = {c: int(c in mix.models) for c in self.candidates}
        if mix.operation == SELECT:
            return named, []
        method, n = self._methods[mix.operation], len(mix.models)
        if not method.admits(n):
            return named, [f"{_limits(method)}, got {n}"]
        if len(self._admitted.get(n, ())) > 1:
            named[self._switch[n]] = method.name
        values = dict(mix.params)
        weights = values.pop(WEIGHTS, (1.0,) * n)
        named |= {f"{method.name}.{name}": value for name, value in values.items()}
        if method.weight is not None:
            if not isinstance(weights, tuple) or len(weights) != n:
                return named, [f"{method.name} takes one weight per source, got {weights}"]
            named |= {f"{method.name}.weight.{c}": w for c, w in zip(mix.models, weights, strict=True)}
        missing = [f"{method.name}.{name} is missing" for name in method.hyperparameters if name not in values]
        return named, missing


def named_once(setting: str, merges: Iterable[MergeOperation] | None) -> tuple[MergeOperation, ...]:
    """Return a recipe's merges.

    Raises:
        RecipeError: If it names one twice.
    """
    listed = tuple(merges or ())
    names = [op.name for op in listed]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(
            f"{setting} names each operation once, got {', '.join(twice)} again. Widen the ranges of one entry "
            "instead."
        )
    return listed


def _limits(method: _Method) -> str:
    low, high = method.operation.min_sources, method.operation.max_sources
    return f"{method.name} merges {low} or more" if high is None else f"{method.name} merges {low} to {high}"


def _text(plan: LayerPlan | Owner) -> str:
    return plan if isinstance(plan, str) else str(plan.to_dict())
