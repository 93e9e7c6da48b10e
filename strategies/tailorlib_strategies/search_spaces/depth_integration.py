"""DepthIntegrationSpace: blocks of several models stacked at one depth ("DIS", arXiv 2502.04030)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tailorlib import Categorical, Distribution, FamilyLayout, Integer, LayerPlan, LayerSource, Params, Tailoring
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError
from tailorlib.search_space import SpaceSize
from tailorlib.tailoring import BASE
from tailorlib_strategies.operations.removal import LayerRemoval
from tailorlib_strategies.operations.residual_scale import ResidualScale
from tailorlib_strategies.search_spaces.declared import DeclaredSpace, Faults
from tailorlib_strategies.search_spaces.merge_choice import MergeChoice
from tailorlib_strategies.search_spaces.mix import plain
from tailorlib_strategies.search_spaces.outer_choice import OuterChoice
from tailorlib_strategies.search_spaces.removal_choice import RemovalChoice
from tailorlib_strategies.search_spaces.scale_choice import ScaleChoice


class DepthIntegrationSpace(DeclaredSpace):
    """At each depth an ordered stack of the models' blocks of layers, with repetition.

    The layers are cut into blocks of ``granularity`` layers (the last one may be shorter). Parameters:
    ``block.{b}.count``, how many blocks stand at depth b, and ``block.{b}.slot.{j}``, the model of the j-th of
    them from below; with removal ``removed``, a Subset of the blocks; with residual scales
    ``block.{b}.slot.{j}.ResidualScale.attention`` and ``.mlp``, for all layers of the block. What has one value
    only is no parameter. Layers are taken as they are; embeddings, final norm and head are the base's.

    Counts that give a model deeper than ``max_layers`` stand for smaller ones: as long as it is too deep, one of
    the highest stacks loses its top block; of several, the first in a fixed order that spreads over the depth.
    Counts that are all 0 stand for one block at the bottom.

    Args:
        granularity: Number of layers of a block.
        stack: The largest number of blocks at one depth, from 1 on; or a pair of the smallest and the largest.
            With 0 as the smallest, blocks can go, any number of them.
        removal: Remove an exact number of blocks; its ratio, count and protected numbers are of blocks.
        max_layers: The largest number of layers of the result; ``None`` for any.
        residual_scale: Ranges of the factors of each block's branches; ``None`` leaves them at 1.
    """

    def __init__(
        self,
        granularity: int = 1,
        stack: int | tuple[int, int] = 2,
        removal: LayerRemoval | None = None,
        max_layers: int | None = None,
        residual_scale: ResidualScale | None = None,
    ) -> None:
        low, high = stack if isinstance(stack, tuple | list) else (1, stack)
        faults = []
        if granularity < 1:
            faults.append(f"DepthIntegrationSpace.granularity is 1 or more layers, got {granularity}.")
        if not 0 <= low <= high or high < 1:
            faults.append(
                "DepthIntegrationSpace.stack is a number of blocks, 1 or more, or a pair low <= high from 0 on; "
                f"got {stack}."
            )
        if low == 0 and removal is not None:
            faults.append(
                f"DepthIntegrationSpace.stack starts at 1 where removal says how many blocks go, got {stack}. "
                "Leave out the one or the other."
            )
        if faults:
            raise RecipeError(faults)
        self.granularity, self.stack, self.removal = granularity, (low, high), removal
        self.max_layers, self.residual_scale = max_layers, residual_scale

    def _arrange(self, layout: FamilyLayout) -> None:
        L, g = layout.num_layers, self.granularity  # noqa: N806
        self._blocks = [range(start, min(start + g, L)) for start in range(0, L, g)]
        try:
            self._removal = RemovalChoice(self.removal, len(self._blocks), "blocks")
        except RecipeError as error:
            raise RecipeError(
                f"DepthIntegrationSpace.removal speaks of blocks, of which {L} layers have {len(self._blocks)}: "
                f"{error}"
            ) from error
        self._order = _spread(len(self._blocks))
        self._scale = ScaleChoice(self.residual_scale)
        self._outer = OuterChoice(
            "DepthIntegrationSpace", (), MergeChoice("DepthIntegrationSpace", layout.candidates, True, ())
        )
        self._counted, self._chooses = self.stack[0] < self.stack[1], bool(layout.candidates)
        self._check_depth()

    def _check_depth(self) -> None:
        sizes = sorted(len(self._blocks[b]) for b in self._removal.removable)
        # the most layers that the smallest stacks can have: what is removed may be the smallest blocks
        low = self.stack[0]
        needed = low * (self.layout.num_layers - sum(sizes[: self._removal.subset.k])) or len(self._blocks[0])
        if self.max_layers is not None and self.max_layers < needed:
            raise RecipeError(
                f"DepthIntegrationSpace.max_layers leaves room for the smallest stacks, {needed} layers; got "
                f"{self.max_layers}. Raise it, remove more blocks, or let stack start at 0."
            )

    def _parameters(self) -> Iterator[tuple[str, Distribution]]:
        yield from self._removal.parameters()
        model = Categorical(self.layout.models)
        for b in range(len(self._blocks)):
            if self._counted:
                yield f"block.{b}.count", Integer(*self.stack)
            for j in range(self.stack[1]):
                if self._chooses:
                    yield f"block.{b}.slot.{j}", model
                for name, distribution in self._scale.parameters():
                    yield f"block.{b}.slot.{j}.{name}", distribution

    def active(self, params: Params) -> Params:
        """Return what matters: the counts that the model has, and the slots below them."""
        active = self._removal.active(params)
        for b, count in self._counts(params).items():
            if self._counted:
                active[f"block.{b}.count"] = count
            for j in range(count):
                if self._chooses:
                    active[f"block.{b}.slot.{j}"] = params[f"block.{b}.slot.{j}"]
                active |= self._scale.active(params, f"block.{b}.slot.{j}.")
        return active

    def decode(self, params: Params, *, seed: int = 0) -> Tailoring:
        """Return the tailoring that an assignment means; inactive parameters may be missing."""
        plans = []
        for b, count in self._counts(params).items():
            for slot in (f"block.{b}.slot.{j}" for j in range(count)):
                model = str(params[slot]) if self._chooses else BASE
                sources = (LayerSource(model, i) for i in self._blocks[b])
                plans += [self._scale.scaled(LayerPlan((source,)), params, f"{slot}.") for source in sources]
        return Tailoring(tuple(plans), seed=seed)

    def _counts(self, params: Params) -> dict[int, int]:
        """Return the number of blocks at each depth that isn't removed, as the model has them."""
        counts = {}
        for b in self._removal.kept(params):
            count = params[f"block.{b}.count"] if self._counted else self.stack[0]
            assert isinstance(count, int)
            counts[b] = count
        if not any(counts.values()):
            counts[0] = 1
        if self.max_layers is not None:
            depth = sum(count * len(self._blocks[b]) for b, count in counts.items())
            while depth > self.max_layers:
                highest = max(counts.values())
                b = next(b for b in self._order if counts.get(b) == highest)
                counts[b] -= 1
                depth -= len(self._blocks[b])
        return counts

    def _read(self, tailoring: Tailoring, faults: Faults) -> dict[str, ParamValue]:
        params, wrong = self._outer.encode(tailoring)
        faults.add(wrong)
        slots = self._slots(tailoring.layers, faults)
        counts = {b: len(slots[b]) for b in range(len(self._blocks)) if slots[b] or not self.stack[0]}
        removed, wrong = self._removal.encode(list(counts))
        faults.add(wrong)
        params |= removed
        for b, count in counts.items():
            if not self.stack[0] <= count <= self.stack[1]:
                low, high = self.stack
                faults.add([f"{count} blocks are stacked, where the space stacks {low} to {high}"], f"block {b}")
            params[f"block.{b}.count"] = count
            for j, slot in enumerate(slots[b]):
                name = f"block.{b}.slot.{j}"
                params[name] = slot.model
                scales, wrong = self._scale.encode_layer(slot.plan, f"{name}.")
                faults.add(wrong, name)
                params |= scales
        if self.max_layers is not None and len(tailoring.layers) > self.max_layers:
            faults.add([f"it has {len(tailoring.layers)} layers, more than max_layers={self.max_layers}"])
        return params

    def _slots(self, plans: Sequence[LayerPlan], faults: Faults) -> Mapping[int, list[_Slot]]:
        """Return the blocks that layers make up, by depth, and note what makes up none."""
        slots: defaultdict[int, list[_Slot]] = defaultdict(list)
        position, highest = 0, 0
        while position < len(plans):
            where, source = f"layer {position}", plans[position].sources[0]
            length = self._matching(plans[position:])
            block = source.layer // self.granularity
            if not plain(plans[position]).is_selection or plans[position].parts:
                faults.add(["it is merged, where the space takes layers as they are"], where)
            elif source.model not in self.layout.models:
                models = ", ".join(self.layout.models)
                faults.add([f"{source.model} is no model of the family ({models})"], where)
            elif block >= len(self._blocks) or length < len(self._blocks[block]):
                faults.add(
                    [f"no whole block of {self.granularity} layers, all scaled alike, begins with {source}"], where
                )
            else:
                if block < highest:
                    faults.add([f"block {block} stands above block {highest}"], where)
                highest = max(highest, block)
                slots[block].append(_Slot(source.model, plans[position]))
            position += max(length, 1)
        return slots

    def _matching(self, plans: Sequence[LayerPlan]) -> int:
        """Return how many of the plans, from the first on, go on in one block; 0 if the first begins none."""
        first = plans[0]
        model, layer = first.sources[0].model, first.sources[0].layer
        block = layer // self.granularity
        if block >= len(self._blocks) or layer != self._blocks[block].start:
            return 0
        for n, (i, plan) in enumerate(zip(self._blocks[block], plans, strict=False)):
            scales = (first.attention_scale, first.mlp_scale)
            wanted = LayerPlan((LayerSource(model, i),), attention_scale=scales[0], mlp_scale=scales[1])
            if plan != wanted:
                return n
        return min(len(self._blocks[block]), len(plans))

    def size(self) -> SpaceSize:
        """Return the exact number of discrete candidates, and the most continuous parameters active at once."""
        limit = self.max_layers or self.stack[1] * self.layout.num_layers
        models, to_remove = len(self.layout.models), self._removal.subset.k
        # state: blocks removed, layers -> number of ways, most slots
        states = {(0, 0): (1, 0)}
        for b, block in enumerate(self._blocks):
            following: dict[tuple[int, int], tuple[int, int]] = {}
            options = [(0, count, models**count) for count in range(self.stack[0], self.stack[1] + 1)]
            options += [(1, 0, 1)] if b in self._removal.removable else []
            for (removed, depth), (ways, slots) in states.items():
                for gone, count, choices in options:
                    state = removed + gone, depth + count * len(block)
                    if state[0] <= to_remove and state[1] <= limit:
                        before = following.get(state, (0, 0))
                        following[state] = before[0] + ways * choices, max(before[1], slots + count)
            states = following
        found = [known for (removed, depth), known in states.items() if removed == to_remove and depth > 0]
        slots = max(slots for _, slots in found)
        return SpaceSize(sum(ways for ways, _ in found), slots * self._scale.continuous())


@dataclass(frozen=True)
class _Slot:
    """A block of a tailoring: its model, and the plan of its first layer."""

    model: str
    plan: LayerPlan


def _spread(n: int) -> list[int]:
    """Return 0 .. n-1 in an order whose beginnings are spread over the range (van der Corput's, base 2)."""
    bits = n.bit_length()
    return sorted(range(n), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
