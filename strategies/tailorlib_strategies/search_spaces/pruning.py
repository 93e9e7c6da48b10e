"""PruningSpace: the search space of the GPTailor paper (arXiv 2506.20480).

Omega = {r, c, m, h}: r, which layers are removed; and per kept layer c, the candidates that contribute; m, the
merge method; h, its hyperparameters. All layers keep their depth: layer i is made from the models' layers i.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from jsonargparse.typing import lazy_instance

from tailorlib import (
    Categorical,
    Distribution,
    FamilyLayout,
    LayerPlan,
    LayerSource,
    MergeOperation,
    Params,
    SearchSpace,
    Tailoring,
)
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import PluginError, RecipeError
from tailorlib.search_space import SpaceSize
from tailorlib.tailoring import BASE
from tailorlib_strategies.operations.removal import LayerRemoval
from tailorlib_strategies.operations.selection import LayerSelection

_SELECTION: LayerSelection = lazy_instance(LayerSelection)


class PruningSpace(SearchSpace):
    """Remove layers, take each kept layer from the base or a candidate, or merge several candidates.

    Parameters: ``removed``, a Subset of the removable layers. With merges a bit ``layer.{i}.{candidate}`` per
    candidate: none means the base's layer, one selects, two or more merge by ``layer.{i}.operation`` with
    ``layer.{i}.{operation}.{hyperparameter}``. Without merges one choice ``layer.{i}.source``. Embeddings, final
    norm and head stay the base's.

    Args:
        removal: How many layers go.
        selection: Whether a kept layer can be a candidate's; ``None`` leaves the base's layers and merges.
        merges: Merge operations to choose from, each with the ranges of its hyperparameters.
    """

    def __init__(
        self,
        removal: LayerRemoval,
        selection: LayerSelection | None = _SELECTION,
        merges: list[MergeOperation] | None = None,
    ) -> None:
        self.removal, self.selection, self.merges = removal, selection, tuple(merges or ())
        names = [op.name for op in self.merges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RecipeError(
                f"PruningSpace.merges names each operation once, got {', '.join(twice)} again. Widen the ranges "
                "of one entry instead."
            )

    def _setup(self, layout: FamilyLayout) -> None:
        K = len(layout.candidates)  # noqa: N806
        self._removable = self.removal.removable(layout.num_layers)
        self._subset = self.removal.subset(layout.num_layers)
        self._merging = bool(self.merges) and K >= 2
        # per number of sources the operations that admit it, and the name of the parameter that chooses one
        self._admitted = {n: self._admitting(n) for n in range(2, K + 1)} if self._merging else {}
        first = {ops: n for n, ops in reversed(self._admitted.items())}
        self._choice = {
            n: "operation" if len(first) == 1 else f"operation.{first[ops]}" for n, ops in self._admitted.items()
        }
        distributions: dict[str, Distribution] = {"removed": self._subset}
        for i in range(layout.num_layers):
            for name, distribution in self._of_layer():
                if f"layer.{i}.{name}" in distributions:
                    raise RecipeError(
                        f"PruningSpace needs distinct parameter names, got 'layer.{i}.{name}' twice. Rename the "
                        "candidate that is called like an operation."
                    )
                distributions[f"layer.{i}.{name}"] = distribution
        self._distributions = distributions

    def _admitting(self, n: int) -> tuple[MergeOperation, ...]:
        ops = tuple(op for op in self.merges if op.max_sources is None or op.max_sources >= n)
        if not ops:
            raise RecipeError(
                f"PruningSpace.merges has an operation for every number of candidates, got none that merges {n}: "
                f"{', '.join(f'{op.name} at most {op.max_sources}' for op in self.merges)}. Add one that takes "
                "any number, such as TaskArithmetic, or leave out candidates."
            )
        return ops

    def _of_layer(self) -> Iterator[tuple[str, Distribution]]:
        """Yield the parameters of one layer, without the prefix."""
        candidates = self.layout.candidates
        if not self._merging:
            if candidates and self.selection is not None:
                yield "source", Categorical((BASE, *candidates))
            return
        for candidate in candidates:
            yield candidate, Categorical((0, 1))
        for n in sorted({name: n for n, name in reversed(self._choice.items())}.values()):
            if len(self._admitted[n]) > 1:
                yield self._choice[n], Categorical(tuple(op.name for op in self._admitted[n]))
        for op in self.merges:
            for name, distribution in op.distributions().items():
                yield f"{op.name}.{name}", distribution

    def distributions(self) -> Mapping[str, Distribution]:
        """Return every parameter of the space: ``removed``, then layer by layer."""
        self.layout  # noqa: B018  (raises before setup)
        return self._distributions

    def active(self, params: Params) -> Params:
        """Return what matters: nothing of removed layers, of merges that don't happen, of other operations."""
        active: dict[str, ParamValue] = {"removed": params["removed"]}
        for i in self._kept(params):
            active |= self._active_of_layer(params, i)
        return active

    def _active_of_layer(self, params: Params, i: int) -> dict[str, ParamValue]:
        prefix = f"layer.{i}."
        if not self._merging:
            name = f"{prefix}source"
            return {name: params[name]} if name in self._distributions else {}
        chosen = self._chosen(params, i)
        active: dict[str, ParamValue] = {f"{prefix}{c}": int(c in chosen) for c in self.layout.candidates}
        if len(chosen) >= 2:
            op = self._operation(params, i, len(chosen))
            if len(self._admitted[len(chosen)]) > 1:
                active[prefix + self._choice[len(chosen)]] = op.name
            active |= {name: params[name] for name in (f"{prefix}{op.name}.{h}" for h in op.distributions())}
        return active

    def decode(self, params: Params, *, seed: int = 0) -> Tailoring:
        """Return the tailoring that an assignment means; inactive parameters may be missing."""
        return Tailoring(tuple(self._plan(params, i) for i in self._kept(params)), seed=seed)

    def _plan(self, params: Params, i: int) -> LayerPlan:
        chosen = self._chosen(params, i) or (BASE,)
        sources = tuple(LayerSource(model, i) for model in chosen)
        if len(sources) == 1:
            return LayerPlan(sources)
        op = self._operation(params, i, len(sources))
        return LayerPlan(
            sources,
            operation=op.name,
            params=tuple((name, params[f"layer.{i}.{op.name}.{name}"]) for name in op.distributions()),
            base=LayerSource(BASE, i) if op.needs_base else None,
        )

    def _kept(self, params: Params) -> list[int]:
        removed = params["removed"]
        assert isinstance(removed, tuple)
        gone = {self._removable[int(position)] for position in removed}
        return [i for i in range(self.layout.num_layers) if i not in gone]

    def _chosen(self, params: Params, i: int) -> tuple[str, ...]:
        """Return the candidates that contribute to layer i; none means the base."""
        if not self._merging:
            source = str(params.get(f"layer.{i}.source", BASE))
            return () if source == BASE else (source,)
        chosen = tuple(c for c in self.layout.candidates if params[f"layer.{i}.{c}"] == 1)
        return () if len(chosen) == 1 and self.selection is None else chosen

    def _operation(self, params: Params, i: int, n: int) -> MergeOperation:
        ops = self._admitted[n]
        if len(ops) == 1:
            return ops[0]
        name = params[f"layer.{i}.{self._choice[n]}"]
        for op in ops:
            if op.name == name:
                return op
        raise PluginError(f"layer.{i}.{self._choice[n]} is one of {[op.name for op in ops]}, got {name!r}.")

    def encode(self, tailoring: Tailoring) -> Params:
        """Return the active parameters of a tailoring.

        Raises:
            RecipeError: If the tailoring lies outside the space, naming every way in which it does.
        """
        owners = {"embeddings": tailoring.embeddings, "norm": tailoring.norm, "head": tailoring.head}
        faults = [f"its {part} are {owner}'s, not the base's" for part, owner in owners.items() if owner != BASE]
        depths = [plan.sources[0].layer for plan in tailoring.layers]
        if sorted(set(depths)) != depths or not set(depths) <= set(range(self.layout.num_layers)):
            faults.append(f"its layers {depths} are not ascending numbers below {self.layout.num_layers}")
        removed = tuple(p for p, i in enumerate(self._removable) if i not in depths)
        if not self._subset.contains(removed) or len(depths) + len(removed) != self.layout.num_layers:
            faults.append(
                f"it keeps {len(depths)} layers, where {self._subset.k} of {list(self._removable)} are removed of "
                f"{self.layout.num_layers}"
            )
        params: dict[str, ParamValue] = {"removed": removed}
        for i, plan in zip(depths, tailoring.layers, strict=True):
            named = self._params_of(plan, i)
            wrong = self._wrong_with(plan, i, named)
            faults += [f"layer {i}: {fault}" for fault in wrong]
            params |= named
        if faults:
            raise RecipeError(
                f"A tailoring given to a search lies in its space; got one outside: {'; '.join(faults[:5])}. "
                "Widen the search space, or mend the tailoring."
            )
        return self.active(params)

    def _params_of(self, plan: LayerPlan, i: int) -> dict[str, ParamValue]:
        models = [source.model for source in plan.sources]
        if not self._merging:
            name = f"layer.{i}.source"
            return {name: models[0]} if name in self._distributions else {}
        named: dict[str, ParamValue] = {f"layer.{i}.{c}": int(c in models) for c in self.layout.candidates}
        if len(models) >= 2:
            if len(self._admitted.get(len(models), ())) > 1:
                named[f"layer.{i}.{self._choice[len(models)]}"] = plan.operation
            named |= {f"layer.{i}.{plan.operation}.{name}": value for name, value in plan.params}
        return named

    def _wrong_with(self, plan: LayerPlan, i: int, named: Params) -> list[str]:
        """Say why a plan can't be reached at depth i; nothing if it can."""
        unknown = [s.model for s in plan.sources if s.model not in self.layout.models]
        if unknown:
            return [f"{', '.join(unknown)} is no model of the family ({', '.join(self.layout.models)})"]
        if not plan.is_selection and plan.operation not in {op.name for op in self.merges}:
            return [
                f"{plan.operation} is not among its merges ({', '.join(op.name for op in self.merges) or 'none'})"
            ]
        wrong = [
            f"{name}={value!r} is not in {self._distributions.get(name, 'the space')}"
            for name, value in named.items()
            if name not in self._distributions or not self._distributions[name].contains(value)
        ]
        if wrong:
            return wrong
        try:
            reached: object = self._plan(named, i)
        except KeyError as error:
            return [f"{error} is missing"]
        return [] if reached == plan else [f"{plan.to_dict()} can't be had; the nearest is {_text(reached)}"]

    def size(self) -> SpaceSize:
        """Return the exact number of discrete candidates, and the most continuous parameters active at once."""
        K, kept = len(self.layout.candidates), self.layout.num_layers - self._subset.k  # noqa: N806
        choices = 1 + (K if self.selection is not None else 0)
        continuous = 0
        for n, ops in self._admitted.items():
            cardinalities = [[d.cardinality for d in op.distributions().values()] for op in ops]
            choices += math.comb(K, n) * sum(math.prod(_finite(c)) for c in cardinalities)
            continuous = max(continuous, *(c.count(None) for c in cardinalities))
        return SpaceSize(math.comb(self._subset.n, self._subset.k) * choices**kept, continuous * kept)


def _finite(cardinalities: Iterable[int | None]) -> Iterator[int]:
    return (c for c in cardinalities if c is not None)


def _text(plan: object) -> str:
    return str(plan.to_dict()) if isinstance(plan, LayerPlan) else str(plan)
