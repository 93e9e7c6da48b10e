"""PruningSpace: the search space of the GPTailor paper (arXiv 2506.20480).

Omega = {r, c, m, h}: r, which layers are removed; and per kept layer c, the candidates that contribute; m, the
merge method; h, its hyperparameters. All layers keep their depth: layer i is made from the models' layers i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tailorlib import Distribution, FamilyLayout, LayerPlan, MergeOperation, Params, Tailoring
from tailorlib.distributions import ParamValue
from tailorlib.search_space import SpaceSize
from tailorlib_strategies.operations.removal import LayerRemoval
from tailorlib_strategies.operations.residual_scale import ResidualScale
from tailorlib_strategies.operations.selection import LayerSelection
from tailorlib_strategies.search_spaces.declared import DeclaredSpace, Faults
from tailorlib_strategies.search_spaces.merge_choice import SELECTION, MergeChoice, named_once
from tailorlib_strategies.search_spaces.outer_choice import OuterChoice, OuterPart
from tailorlib_strategies.search_spaces.removal_choice import RemovalChoice
from tailorlib_strategies.search_spaces.scale_choice import ScaleChoice


class PruningSpace(DeclaredSpace):
    """Remove layers, take each kept layer from the base or a candidate, or merge several candidates.

    Parameters: ``removed``, a Subset of the removable layers. With merges a bit ``layer.{i}.{candidate}`` per
    candidate: none means the base's layer, one selects, two or more merge by ``layer.{i}.operation`` with
    ``layer.{i}.{Operation}.{hyperparameter}`` and, for weighted operations,
    ``layer.{i}.{Operation}.weight.{candidate}``. Without merges one choice ``layer.{i}.source``. With residual
    scales ``layer.{i}.ResidualScale.attention`` and ``.mlp``. Embeddings, final norm and head stay the base's,
    but for those in ``outer``, which have the same parameters as a layer under ``embeddings.`` and so on.

    Args:
        removal: How many layers go; a range searches over the number, too.
        selection: Whether a kept layer can be a candidate's; ``None`` leaves the base's layers and merges.
        merges: Merge operations to choose from, each with the ranges of its hyperparameters.
        residual_scale: Ranges of the factors of each kept layer's branches; ``None`` leaves them at 1.
        outer: Parts outside the layers that are selected or merged too: some of ``embeddings``, ``norm``,
            ``head``. Leave out ``head`` where it is tied to the embeddings.
    """

    def __init__(
        self,
        removal: LayerRemoval,
        selection: LayerSelection | None = SELECTION,
        merges: list[MergeOperation] | None = None,
        residual_scale: ResidualScale | None = None,
        outer: list[OuterPart] | None = None,
    ) -> None:
        self.removal, self.selection, self.residual_scale = removal, selection, residual_scale
        self.merges, self.outer = named_once("PruningSpace.merges", merges), tuple(outer or ())

    def _arrange(self, layout: FamilyLayout) -> None:
        self._removal = RemovalChoice(self.removal, layout.num_layers, exactly=False)
        self._merge = MergeChoice(
            "PruningSpace.merges", layout.candidates, self.selection is not None, self.merges
        )
        self._scale = ScaleChoice(self.residual_scale)
        self._outer = OuterChoice("PruningSpace.outer", self.outer, self._merge)

    def _parameters(self) -> Iterator[tuple[str, Distribution]]:
        yield from self._removal.parameters()
        for i in range(self.layout.num_layers):
            for choice in (self._merge, self._scale):
                for name, distribution in choice.parameters():
                    yield f"layer.{i}.{name}", distribution
        yield from self._outer.parameters()

    def active(self, params: Params) -> Params:
        """Return what matters: nothing of removed layers, of merges that don't happen, of other operations."""
        active = self._removal.active(params)
        for i in self._removal.kept(params):
            active |= self._merge.active(params, f"layer.{i}.")
            if self.residual_scale is not None:
                active |= self._scale.active(params, f"layer.{i}.")
        return active | self._outer.active(params)

    def decode(self, params: Params, *, seed: int = 0) -> Tailoring:
        """Return the tailoring that an assignment means; inactive parameters may be missing."""
        layers = tuple(self._plan(params, i) for i in self._removal.kept(params))
        return Tailoring(layers, seed=seed, **self._outer.decode(params))

    def _plan(self, params: Params, i: int) -> LayerPlan:
        plan = self._merge.decode(params, f"layer.{i}.").layer(i)
        return self._scale.scaled(plan, params, f"layer.{i}.")

    def _read(self, tailoring: Tailoring, faults: Faults) -> dict[str, ParamValue]:
        params, wrong = self._outer.encode(tailoring)
        faults.add(wrong)
        depths = [plan.sources[0].layer for plan in tailoring.layers]
        removed, wrong = self._removal.encode(depths)
        faults.add(wrong)
        params |= removed
        for i, plan in zip(depths, tailoring.layers, strict=True):
            where = f"layer {i}"
            if plan.parts:
                faults.add(["it is made in parts, where the space makes layers whole"], where)
            scales, wrong = self._scale.encode_layer(plan, f"layer.{i}.")
            faults.add(wrong, where)
            named, wrong = self._merge.encode_layer(plan, i, f"layer.{i}.")
            faults.add(wrong, where)
            params |= named | scales
        return params

    def size(self) -> SpaceSize:
        """Return the exact number of discrete candidates, and the most continuous parameters active at once."""
        subset, layers = self._removal.subset, self.layout.num_layers
        per_layer = self._merge.continuous() + self._scale.continuous()
        discrete = sum(
            math.comb(subset.n, size) * self._merge.count() ** (layers - size)
            for size in range(subset.low, subset.k + 1)
        )
        continuous = per_layer * (layers - subset.low) + self._outer.continuous()
        return SpaceSize(discrete * self._outer.count(), continuous)

    @property
    def most_removed(self) -> int:
        """The largest number of layers that lack in a row."""
        self.layout  # noqa: B018  (raises before setup)
        return self._removal.subset.k

    def operations(self) -> tuple[MergeOperation, ...]:
        """Return the merges that can be chosen; none with fewer than two candidates."""
        self.layout  # noqa: B018  (raises before setup)
        return self._merge.operations
