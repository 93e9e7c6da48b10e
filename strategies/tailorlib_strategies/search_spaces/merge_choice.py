"""MergeChoice: which models make one layer (or part of one), by which operation, with which hyperparameters.

The piece {c, m, h} of the GPTailor paper's search space (arXiv 2506.20480), which several spaces place many times,
each time under another prefix of its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from jsonargparse.typing import lazy_instance

from tailorlib import Categorical, Distribution, LayerPlan, MergeOperation, Params
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import PluginError, RecipeError
from tailorlib.tailoring import BASE, SELECT, Owner
from tailorlib_strategies.operations.selection import LayerSelection
from tailorlib_strategies.search_spaces.method import Method
from tailorlib_strategies.search_spaces.mix import Mix, plain

SELECTION: LayerSelection = lazy_instance(LayerSelection)
"""The default of a space's ``selection``."""
Plan = TypeVar("Plan", LayerPlan, Owner)
_Matter = tuple[dict[str, ParamValue], tuple[str, ...]]


class MergeChoice:
    """One choice of models and merge; its parameters are named without the prefix of the place it is used at.

    A bit per candidate: none means the base's, one selects, two or more merge by ``operation`` with
    ``{Operation}.{hyperparameter}`` and, for weighted operations, ``{Operation}.weight.{candidate}``. Operations
    that take exactly one source compete with selection, by ``operation.1``. Where nothing can be merged there is
    one choice ``source`` instead.

    Args:
        setting: What messages call the list of merges, such as ``"PruningSpace.merges"``.
        candidates: Names of the candidates, in recipe order.
        selection: Whether one candidate can be taken as it is.
        merges: The operations to choose from.

    Raises:
        RecipeError: If a number of candidates has no operation, or an operation no number of candidates.
    """

    def __init__(
        self, setting: str, candidates: Sequence[str], selection: bool, merges: Sequence[MergeOperation]
    ) -> None:
        self.setting, self.candidates, self.selection = setting, tuple(candidates), selection
        self.models = (BASE, *self.candidates)
        self._methods = {op.name: Method(op) for op in merges}
        K = len(self.candidates)  # noqa: N806
        alone = [method for method in self._methods.values() if method.merge.max_sources == 1]
        self.merging = bool(merges) and (K >= 2 or (K == 1 and bool(alone)))
        # per number of candidates the methods that admit it (None for selection), and the parameter that chooses
        self._admitted: dict[int, tuple[Method | None, ...]] = {}
        if self.merging:
            self._admitted[1] = (*([None] if selection else []), *alone)
            self._admitted |= {n: self._admitting(n) for n in range(2, K + 1)}
            self._refuse_unused()
        numbers = range(2, K + 1) if self.merging else ()
        first = {self._names(n): n for n in reversed(numbers)}
        self._switch = {
            n: f"operation.{first[self._names(n)]}" if len(first) > 1 else "operation" for n in numbers
        }
        self._switch[1] = "operation.1"
        self._distributions = dict(self.parameters())
        self._bits: dict[str, tuple[str, ...]] = {}
        self._matter: dict[tuple[str, tuple[bool, ...], ParamValue | None], _Matter] = {}

    @property
    def operations(self) -> tuple[MergeOperation, ...]:
        """The operations that can be chosen; none where there is nothing to merge."""
        return tuple(method.merge for method in self._methods.values()) if self.merging else ()

    def parameters(self) -> Iterator[tuple[str, Distribution]]:
        """Yield every parameter, in a fixed order."""
        if not self.merging:
            if self.candidates and self.selection:
                yield "source", Categorical(self.models)
            return
        for candidate in self.candidates:
            yield candidate, Categorical((0, 1))
        switches = {self._switch[n]: Categorical(self._names(n)) for n in self._admitted if self._names(n)}
        yield from ((name, choice) for name, choice in switches.items() if len(choice.choices) > 1)
        for method in self._methods.values():
            yield from method.parameters()
            yield from method.weights(self.candidates)

    def active(self, params: Params, prefix: str) -> dict[str, ParamValue]:
        """Return what matters of an assignment, given the prefix of the place."""
        if not self.merging:
            return {f"{prefix}{name}": params[f"{prefix}{name}"] for name in self._distributions}
        names = self._bits.get(prefix)
        if names is None:
            names = self._bits[prefix] = tuple(prefix + candidate for candidate in self.candidates)
        bits = tuple([params[name] == 1 for name in names])
        n = sum(bits)
        switch = params[prefix + self._switch[n]] if len(self._admitted.get(n, ())) > 1 else None
        known = self._matter.get((prefix, bits, switch))
        if known is None:  # optimizers ask thousands of times a proposal, and few answers are different
            known = self._matter[prefix, bits, switch] = self._what_matters(params, prefix)
        values, rest = known
        return {**values, **{name: params[name] for name in rest}}

    def _what_matters(self, params: Params, prefix: str) -> _Matter:
        """Return the active bits and switch of a place, and the names of what else is active there."""
        chosen = self._chosen(params, prefix)
        values: dict[str, ParamValue] = {f"{prefix}{c}": int(c in chosen) for c in self.candidates}
        if not chosen:
            return values, ()
        method = self._method(params, prefix, len(chosen))
        if len(self._admitted[len(chosen)]) > 1:
            values[prefix + self._switch[len(chosen)]] = SELECT if method is None else method.operation
        return values, () if method is None else tuple(method.active_of(chosen, params, prefix))

    def decode(self, params: Params, prefix: str) -> Mix:
        """Return what an assignment means, given the prefix of the place."""
        chosen = self._chosen(params, prefix)
        method = self._method(params, prefix, len(chosen)) if chosen and self.merging else None
        if method is None:
            return Mix(chosen or (BASE,))
        return Mix(chosen, method.operation, method.decode_of(chosen, params, prefix), method.merge.needs_base)

    def encode_layer(self, plan: LayerPlan, i: int, prefix: str) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters of layer ``i``'s plan, and what is wrong with it.

        Args:
            plan: The plan; its parts and residual scales are ignored.
            i: The layer.
            prefix: The prefix of the place.

        Returns:
            Parameters with their prefix, and the ways in which the plan can't be had: none if it can.
        """
        return self._encode(plain(plan), prefix, lambda mix: mix.layer(i))

    def encode_part(self, plan: Owner, prefix: str) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters of a part outside the layers, as :meth:`encode_layer` does."""
        return self._encode(plan, prefix, lambda mix: mix.part())

    def count(self) -> int:
        """Return the number of mixes, each continuous hyperparameter counted as one value."""
        K = len(self.candidates)  # noqa: N806
        if not self.merging:
            return 1 + (K if self.selection else 0)
        return 1 + sum(
            math.comb(K, n) * (1 if method is None else method.count_of(n))
            for n, methods in self._admitted.items()
            for method in methods
        )

    def continuous(self) -> int:
        """Return the largest number of continuous parameters that are active at once."""
        pairs = ((n, method) for n, methods in self._admitted.items() for method in methods)
        return max((method.continuous_of(n) for n, method in pairs if method is not None), default=0)

    def _admitting(self, n: int) -> tuple[Method, ...]:
        methods = tuple(method for method in self._methods.values() if method.admits(n))
        if not methods:
            raise RecipeError(
                f"{self.setting} has an operation for every number of candidates, got none that merges {n}: "
                f"{', '.join(method.limits for method in self._methods.values())}. Add one that takes any number, "
                "such as TaskArithmetic, or leave out candidates."
            )
        return methods

    def _refuse_unused(self) -> None:
        used = {method for methods in self._admitted.values() for method in methods}
        unused = [method for method in self._methods.values() if method not in used]
        if unused and len(self.candidates) >= 2:  # with a single candidate a recipe may well list its merges
            raise RecipeError(
                f"{self.setting} has operations for up to {len(self.candidates)} candidates, got "
                f"{', '.join(method.limits for method in unused)}. Take out what is never used."
            )

    def _names(self, n: int) -> tuple[str, ...]:
        return tuple(SELECT if method is None else method.operation for method in self._admitted[n])

    def _chosen(self, params: Params, prefix: str) -> tuple[str, ...]:
        """Return the candidates that contribute; none means the base."""
        if not self.merging:
            source = str(params[f"{prefix}source"]) if self._distributions else BASE
            return () if source == BASE else (source,)
        chosen = tuple(c for c in self.candidates if params[prefix + c] == 1)
        return () if len(chosen) == 1 and not self._admitted[1] else chosen

    def _method(self, params: Params, prefix: str, n: int) -> Method | None:
        """Return what makes a layer of ``n`` candidates; ``None`` for selection."""
        methods = self._admitted[n]
        if len(methods) == 1:
            return methods[0]
        name = params[prefix + self._switch[n]]
        for method in methods:
            if name == (SELECT if method is None else method.operation):
                return method
        raise PluginError(f"{prefix}{self._switch[n]} is one of {list(self._names(n))}, got {name!r}.")

    def _encode(
        self, plan: Plan, prefix: str, build: Callable[[Mix], Plan]
    ) -> tuple[dict[str, ParamValue], list[str]]:
        mix = Mix.of(plan)
        unknown = [model for model in mix.models if model not in self.models]
        if unknown:
            return {}, [f"{', '.join(unknown)} is no model of the family ({', '.join(self.models)})"]
        if mix.operation != SELECT and not (self.merging and mix.operation in self._methods):
            among = ", ".join(self._methods if self.merging else ()) or "none"
            return {}, [f"{mix.operation} is not among {self.setting} ({among})"]
        named, wrong = self._named(mix)
        if not wrong:
            reached = build(self.decode(named, ""))
            if reached != plan:
                wrong.append(f"{_text(plan)} can't be had; the nearest is {_text(reached)}")
        return {f"{prefix}{name}": value for name, value in named.items()}, wrong

    def _named(self, mix: Mix) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters that a mix spells out, and what is wrong with them."""
        if not self.merging:
            return dict.fromkeys(self._distributions, mix.models[0]), []
        n = sum(c in mix.models for c in self.candidates)
        named: dict[str, ParamValue] = {c: int(c in mix.models) for c in self.candidates}
        names = self._names(n) if n else ()
        if names and mix.operation not in names:
            return named, [f"{mix.operation} of {n} candidates is not in the space, which has {', '.join(names)}"]
        if len(names) > 1:
            named[self._switch[n]] = mix.operation
        if mix.operation == SELECT:
            return named, []
        values, wrong = self._methods[mix.operation].encode_of(mix.models, dict(mix.params))
        return named | values, wrong


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


def _text(plan: LayerPlan | Owner) -> str:
    return plan if isinstance(plan, str) else str(plan.to_dict())
