"""UniformMix, SingleVariants and FullDepthMerge: controls that tell what a search gains, and by what."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from tailorlib import LayerPlan, LayerSource, MergeOperation, PartPlan, Subset, Tailoring, WarmStart
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError, did_you_mean
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import BASE
from tailorlib.warm_start import WarmStartContext
from tailorlib_strategies.warm_starts.removals import (
    candidates_of,
    merge_operation,
    presented,
    removal_of,
    removed_by,
    without,
)

_log = logging.getLogger(__name__)
_DRAWS = 100
"""How often a mix is drawn for each one that is asked for: a small family has few."""


class UniformMix(WarmStart):
    """Takes each kept layer from a model of the family at random, each model as likely: a control for selection.

    Args:
        count: How many mixes, all different; fewer if the family has fewer.
        removal: Warm start whose first proposal says which layers go; by default they are drawn at random, each
            set as likely (of a number of layers that is drawn first, where it varies).
    """

    def __init__(self, count: int = 1, removal: WarmStart | None = None) -> None:
        if count < 1:
            raise RecipeError(f"UniformMix draws at least one mix, got count={count}.")
        self.count, self.removal = count, removal

    @property
    def label(self) -> str:
        """What tables call it."""
        return "uniform layer mix" if self.removal is None else f"uniform layer mix on {self.removal.label}"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the mixes; the same ones for the same seed and family."""
        models = (BASE, *candidates_of(context, self))
        rng = numpy_generator(context.seed, "UniformMix")
        given = None if self.removal is None else removed_by(self.removal, context, self)
        found: dict[str, Tailoring] = {}
        for _ in range(_DRAWS * self.count):
            gone = self._removed(context, rng) if given is None else given
            kept = [i for i in range(context.family.layout.num_layers) if i not in gone]
            drawn = rng.integers(len(models), size=len(kept))
            plans = (LayerPlan((LayerSource(models[m], i),)) for m, i in zip(drawn, kept, strict=True))
            mix = Tailoring(tuple(plans), seed=context.seed)
            found.setdefault(mix.digest, mix)
            if len(found) == self.count:
                break
        else:
            _log.warning("UniformMix draws %d different mixes, and found %d.", self.count, len(found))
        return presented(context, found.values())

    def _removed(self, context: WarmStartContext, rng: np.random.Generator) -> set[int]:
        removal = removal_of(context, self)
        positions = Subset(len(removal.removable), removal.sizes[-1], removal.sizes[0]).sample(rng)
        return {removal.removable[position] for position in positions}


class SingleVariants(WarmStart):
    """Takes all kept layers from one candidate, for each candidate: what one fine-tune alone would give.

    Args:
        removal: Warm start whose first proposal says which layers go.
        variant: The one candidate to propose; all of them, in recipe order, by default. As a baseline only the
            first proposal is a row: list a SingleVariants for each candidate.
    """

    def __init__(self, removal: WarmStart, variant: str | None = None) -> None:
        self.removal, self.variant = removal, variant

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.variant or 'single variant'} on {self.removal.label}"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return a tailoring for each candidate, in recipe order."""
        candidates = candidates_of(context, self)
        if self.variant is not None and self.variant not in candidates:
            raise RecipeError(
                f"SingleVariants.variant names a candidate, got {self.variant!r}."
                f"{did_you_mean(self.variant, candidates)}"
            )
        removed = removed_by(self.removal, context, self)
        chosen = candidates if self.variant is None else (self.variant,)
        return presented(context, [without(context, removed, model) for model in chosen])


class FullDepthMerge(WarmStart):
    """Merges all candidates whole, no layer removed, embeddings, norm and head too: what merging alone would give.

    It lies in no search space that removes layers, and is a baseline.

    Args:
        operation: Name of the merge operation.
        params: Its hyperparameters, and ``weights`` (one number per candidate) if it has any; those that the
            operation fixes by default can be left out.
    """

    def __init__(
        self,
        operation: str = "TaskArithmetic",
        params: dict[str, bool | int | float | str | list[float]] | None = None,
    ) -> None:
        self.operation, self.params = operation, dict(params or {})

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"full-depth merge ({self.operation})"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the merge."""
        models = candidates_of(context, self)
        operation = merge_operation(self.operation, "FullDepthMerge.operation")
        params = self._complete(operation, len(models))
        base = BASE if operation.needs_base else None
        plans = (
            LayerPlan(
                tuple(LayerSource(model, i) for model in models),
                operation.name,
                params,
                None if base is None else LayerSource(base, i),
            )
            for i in range(context.family.layout.num_layers)
        )
        outer = PartPlan(models, operation.name, params, base)
        return presented(context, [Tailoring(tuple(plans), outer, outer, outer, context.seed)])

    def _complete(self, operation: MergeOperation, number: int) -> tuple[tuple[str, ParamValue], ...]:
        known = operation.distributions()
        faults = []
        if not operation.min_sources <= number <= (operation.max_sources or number):
            most = "" if operation.max_sources is None else f" to {operation.max_sources}"
            faults.append(
                f"FullDepthMerge.operation merges all candidates, got {number} for {operation.name}, which takes "
                f"{operation.min_sources}{most or ' or more'}. Use another operation."
            )
        weights = self.params.get("weights")
        if weights is not None and (
            operation.weights is None or not isinstance(weights, list) or len(weights) != number
        ):
            faults.append(
                f"FullDepthMerge.params has weights, one number per candidate, for operations that weigh; got "
                f"{weights} for {operation.name} of {number} candidates."
            )
        faults += [
            f"FullDepthMerge.params has no {name!r}; {operation.name} has {', '.join(known) or 'none'}."
            for name in self.params
            if name not in known and name != "weights"
        ]
        open_ones = [name for name, d in known.items() if d.cardinality != 1 and name not in self.params]
        if open_ones:
            faults.append(
                f"FullDepthMerge.params says every hyperparameter that {operation.name} leaves open, got none for "
                f"{', '.join(open_ones)}."
            )
        if faults:
            raise RecipeError(faults)
        fixed: dict[str, ParamValue] = {name: d.default for name, d in known.items() if d.cardinality == 1}
        given = {n: tuple(value) if isinstance(value, list) else value for n, value in self.params.items()}
        return tuple({**fixed, **given}.items())
