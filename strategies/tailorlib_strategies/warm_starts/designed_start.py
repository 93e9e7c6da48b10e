"""DesignedStart: removal lists times patterns of candidates, the designed start of GPTailor (arXiv 2506.20480)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from tailorlib import LayerPlan, Tailoring, WarmStart
from tailorlib.exceptions import RecipeError
from tailorlib.warm_start import WarmStartContext
from tailorlib_strategies.warm_starts.removals import (
    candidates_of,
    merge_by_scale,
    merged,
    presented,
    removed_by,
    without,
)

SCALES = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)


class DesignedStart(WarmStart):
    """Every removal list with the base's layers, and with every pattern of candidates merged at every scale.

    A removal list is what the first proposal of another warm start does without. To each belong the base's layers,
    and for each scale and each pattern (a set of candidates) the layers merged from the pattern, all alike. With 3
    lists, 6 scales and the 7 patterns of 3 candidates that are 3 (1 + 6 * 7) = 129 designs, as in the paper.

    Patterns come in the order: all candidates together, each alone, then pairs, triples, and so on, each in the
    recipe's order; ``max_patterns`` takes the first ones. A pattern of one candidate is task arithmetic of one
    model. Search spaces such as PruningSpace merge two or more; there the candidate's layers are taken as they
    are, whatever the scale: for 3 candidates 3 (1 + 3 + 6 * 4) = 84 of the 129 are left. What else lies outside
    the search space is left out, and no tailoring is proposed twice.

    Args:
        removals: Warm starts whose first proposals give the removal lists.
        scales: Scales at which patterns are merged; six from 0.1 to 1 by default.
        max_patterns: The largest number of patterns; ``None`` for all ``2^K - 1`` of K candidates.
        merge: Merge operation with a hyperparameter ``scale``; others are in the middle of their ranges.
    """

    def __init__(
        self,
        removals: list[WarmStart],
        scales: list[float] | None = None,
        max_patterns: int | None = 31,
        merge: str = "TaskArithmetic",
    ) -> None:
        faults = []
        if not removals:
            faults.append("DesignedStart.removals names one warm start or more, got none. Add BlockInfluence.")
        if scales is not None and (not scales or len(set(scales)) < len(scales)):
            faults.append(f"DesignedStart.scales are distinct numbers, one or more, got {scales}.")
        if max_patterns is not None and max_patterns < 1:
            faults.append(f"DesignedStart.max_patterns is 1 or more, got {max_patterns}.")
        if faults:
            raise RecipeError(faults)
        self.removals, self.scales = tuple(removals), tuple(SCALES if scales is None else scales)
        self.max_patterns, self.merge = max_patterns, merge

    @property
    def label(self) -> str:
        """What tables call it."""
        return "designed start (GPTailor)"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the designs that lie in the search space, in their order."""
        reachable = []
        for design in self.designs(context):
            alone = not design.layers[0].is_selection and len(design.layers[0].sources) == 1
            reachable.append(_selected(design) if alone and not context.in_space([design]) else design)
        return presented(context, reachable)

    def designs(self, context: WarmStartContext) -> list[Tailoring]:
        """Return all designs, in the search space or not: the base's layers first, then by scale, then by pattern.

        Raises:
            RecipeError: If the merge is no operation by scale, or a removal list can't be had.
        """
        operation = merge_by_scale(self.merge, "DesignedStart.merge")
        chosen = list(patterns(candidates_of(context, self), self.max_patterns))
        lists = dict.fromkeys(removed_by(start, context, self) for start in self.removals)
        designs: list[Tailoring] = []
        for removed in lists:
            designs.append(without(context, removed))
            kept = [i for i in range(context.family.layout.num_layers) if i not in removed]
            for scale in self.scales:
                for pattern in chosen:
                    if len(pattern) < operation.min_sources:
                        designs.append(without(context, removed, pattern[0]))
                    else:
                        plans = (merged(operation, scale, pattern, i) for i in kept)
                        designs.append(Tailoring(tuple(plans), seed=context.seed))
        return designs


def patterns(candidates: Sequence[str], limit: int | None = None) -> Iterator[tuple[str, ...]]:
    """Yield the non-empty sets of candidates: all together, each alone, then pairs, triples, and so on.

    Args:
        candidates: Names, in recipe order.
        limit: How many at most.
    """
    number = len(candidates)
    sizes = dict.fromkeys((number, *range(1, number)))
    every = (pattern for size in sizes for pattern in combinations(candidates, size))
    yield from (pattern for i, pattern in enumerate(every) if limit is None or i < limit)


def _selected(design: Tailoring) -> Tailoring:
    """Return the layers that a design changes, as they are."""
    return replace(design, layers=tuple(LayerPlan(plan.sources) for plan in design.layers))
