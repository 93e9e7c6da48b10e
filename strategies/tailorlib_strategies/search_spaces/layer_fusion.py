"""LayerFusionSpace: parts of layers merged each in its own way ("LFS", arXiv 2502.04030)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import comb

from tailorlib import Distribution, FamilyLayout, LayerPlan, MergeOperation, Params, Tailoring
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError
from tailorlib.search_space import SpaceSize
from tailorlib_strategies.operations.removal import LayerRemoval
from tailorlib_strategies.operations.residual_scale import ResidualScale
from tailorlib_strategies.operations.selection import LayerSelection
from tailorlib_strategies.search_spaces.declared import DeclaredSpace, Faults
from tailorlib_strategies.search_spaces.merge_choice import SELECTION, MergeChoice, named_once
from tailorlib_strategies.search_spaces.mix import Mix, plain
from tailorlib_strategies.search_spaces.outer_choice import OuterChoice, OuterPart
from tailorlib_strategies.search_spaces.removal_choice import RemovalChoice
from tailorlib_strategies.search_spaces.scale_choice import ScaleChoice

REST = "rest"
"""The group of the tensors of a layer that no filter matches, such as its norms."""


class LayerFusionSpace(DeclaredSpace):
    """Each group of parameters of each few layers is selected or merged on its own.

    The layers are cut into bins of ``granularity`` layers, the tensors of a layer into groups by filter, and what
    no filter matches into the group ``rest``. Parameters: ``bin.{b}.{group}.`` with what PruningSpace has under
    ``layer.{i}.``; with removal ``removed``, a Subset of the layers; with residual scales
    ``layer.{i}.ResidualScale.attention`` and ``.mlp``. Embeddings, final norm and head stay the base's, but for
    those in ``outer``.

    A layer's groups become its plan's parts, in the order of the filters. Groups at the end that are made like
    ``rest`` are left out of the parts, so that a layer whose groups are all made alike is an ordinary layer.

    Args:
        groups: Filters: a tensor belongs to the first one that its name inside the layer contains;
            attention and MLP by default, by the names that they have in the family's files.
        granularity: Number of neighbouring layers that are made alike.
        selection: Whether a group can be one candidate's; ``None`` leaves the base's and merges.
        merges: Merge operations to choose from, each with the ranges of its hyperparameters.
        removal: Remove an exact number of layers.
        residual_scale: Ranges of the factors of each kept layer's branches; ``None`` leaves them at 1.
        outer: Parts outside the layers that are selected or merged too: some of ``embeddings``, ``norm``,
            ``head``. Leave out ``head`` where it is tied to the embeddings.
    """

    def __init__(
        self,
        groups: list[str] | None = None,
        granularity: int = 1,
        selection: LayerSelection | None = SELECTION,
        merges: list[MergeOperation] | None = None,
        removal: LayerRemoval | None = None,
        residual_scale: ResidualScale | None = None,
        outer: list[OuterPart] | None = None,
    ) -> None:
        self._filters, self.groups = groups, tuple(groups or ())
        faults = []
        if len({*self.groups, REST, ""}) < len(self.groups) + 2:
            faults.append(
                f"LayerFusionSpace.groups are distinct parts of tensors' names, got {list(self.groups)}. What no "
                f"filter matches is the group {REST!r} by itself."
            )
        if granularity < 1:
            faults.append(f"LayerFusionSpace.granularity is 1 or more layers, got {granularity}.")
        if faults:
            raise RecipeError(faults)
        self.granularity, self.selection, self.removal = granularity, selection, removal
        self.merges = named_once("LayerFusionSpace.merges", merges)
        self.residual_scale, self.outer = residual_scale, tuple(outer or ())

    def _arrange(self, layout: FamilyLayout) -> None:
        L, g = layout.num_layers, self.granularity  # noqa: N806
        self.groups = layout.branches if self._filters is None else self.groups
        self._bins = [range(start, min(start + g, L)) for start in range(0, L, g)]
        self._removal = RemovalChoice(self.removal, L)
        self._merge = MergeChoice(
            "LayerFusionSpace.merges", layout.candidates, self.selection is not None, self.merges
        )
        self._scale = ScaleChoice(self.residual_scale)
        self._outer = OuterChoice("LayerFusionSpace.outer", self.outer, self._merge)

    def _parameters(self) -> Iterator[tuple[str, Distribution]]:
        yield from self._removal.parameters()
        for b in range(len(self._bins)):
            for group in (*self.groups, REST):
                for name, distribution in self._merge.parameters():
                    yield f"bin.{b}.{group}.{name}", distribution
        for i in range(self.layout.num_layers):
            for name, distribution in self._scale.parameters():
                yield f"layer.{i}.{name}", distribution
        yield from self._outer.parameters()

    def active(self, params: Params) -> Params:
        """Return what matters: nothing of bins without a kept layer, nor of merges that don't happen."""
        active, kept = self._removal.active(params), self._removal.kept(params)
        for b in dict.fromkeys(i // self.granularity for i in kept):
            for group in (*self.groups, REST):
                active |= self._merge.active(params, f"bin.{b}.{group}.")
        for i in kept:
            active |= self._scale.active(params, f"layer.{i}.")
        return active | self._outer.active(params)

    def decode(self, params: Params, *, seed: int = 0) -> Tailoring:
        """Return the tailoring that an assignment means; inactive parameters may be missing."""
        kept = self._removal.kept(params)
        mixes = {
            b: {group: self._merge.decode(params, f"bin.{b}.{group}.") for group in (*self.groups, REST)}
            for b in dict.fromkeys(i // self.granularity for i in kept)
        }
        plans = ((i, self._plan(i, mixes[i // self.granularity])) for i in kept)
        layers = tuple(self._scale.scaled(plan, params, f"layer.{i}.") for i, plan in plans)
        return Tailoring(layers, seed=seed, **self._outer.decode(params))

    def _plan(self, i: int, mixes: Mapping[str, Mix]) -> LayerPlan:
        rest = mixes[REST]
        named = list(self.groups)
        # only from the end: a tensor would otherwise fall to a later filter that matches it too
        while named and mixes[named[-1]] == rest:
            named.pop()
        plan = rest.layer(i)
        parts = tuple((group, mixes[group].layer(i)) for group in named)
        return replace(plan, parts=parts) if parts else plan

    def _read(self, tailoring: Tailoring, faults: Faults) -> dict[str, ParamValue]:
        params, wrong = self._outer.encode(tailoring)
        faults.add(wrong)
        depths = [plan.sources[0].layer for plan in tailoring.layers]
        removed, wrong = self._removal.encode(depths)
        faults.add(wrong)
        params |= removed
        bins: dict[int, dict[str, ParamValue]] = {}
        for i, plan in zip(depths, tailoring.layers, strict=True):
            b, where = i // self.granularity, f"layer {i}"
            scales, wrong = self._scale.encode_layer(plan, f"layer.{i}.")
            faults.add(wrong, where)
            named = self._read_groups(plan, i, faults)
            if bins.setdefault(b, named) != named:
                faults.add([f"it is made unlike the layers below it in its bin of {self.granularity}"], where)
            params |= named | scales
        return params

    def _read_groups(self, plan: LayerPlan, i: int, faults: Faults) -> dict[str, ParamValue]:
        """Return the parameters of a layer's bin, as this layer has them."""
        where, parts, rest = f"layer {i}", dict(plan.parts), plain(plan)
        if tuple(parts) != self.groups[: len(parts)]:
            faults.add(
                [f"its parts are {list(parts)}, where the space has {list(self.groups)}, less some at the end"],
                where,
            )
        elif parts and plan.parts[-1][1] == rest:
            faults.add([f"its last part {plan.parts[-1][0]!r} is made like its rest: leave the part out"], where)
        params: dict[str, ParamValue] = {}
        for group in (*self.groups, REST):
            prefix = f"bin.{i // self.granularity}.{group}."
            named, wrong = self._merge.encode_layer(parts.get(group, rest), i, prefix)
            if group in parts or group == REST:  # the others are made like the rest, and as wrong
                faults.add(wrong, f"{where}, {group}" if parts else where)
            params |= named
        return params

    def size(self) -> SpaceSize:
        """Return the exact number of discrete candidates, and the most continuous parameters active at once."""
        groups, kept = len(self.groups) + 1, self.layout.num_layers - self._removal.subset.k
        used = self._used_bins()
        discrete = sum(ways * self._merge.count() ** (groups * bins) for bins, ways in used.items())
        continuous = max(used) * groups * self._merge.continuous() + kept * self._scale.continuous()
        return SpaceSize(discrete * self._outer.count(), continuous + self._outer.continuous())

    def _used_bins(self) -> Counter[int]:
        """Return the number of choices of removed layers, by the number of bins that keep a layer."""
        to_remove = self._removal.subset.k
        states: Counter[tuple[int, int]] = Counter({(0, 0): 1})  # layers removed, bins that keep one
        for block in self._bins:
            free = sum(i in self._removal.removable for i in block)
            following: Counter[tuple[int, int]] = Counter()
            for (removed, used), ways in states.items():
                for gone in range(min(free, to_remove - removed) + 1):
                    following[removed + gone, used + (gone < len(block))] += ways * comb(free, gone)
            states = following
        return Counter({used: ways for (removed, used), ways in states.items() if removed == to_remove})

    def operations(self) -> tuple[MergeOperation, ...]:
        """Return the merges that can be chosen; none with fewer than two candidates."""
        self.layout  # noqa: B018  (raises before setup)
        return self._merge.operations
