"""GapDistance: the layers whose absence moves the stream least, all gaps together."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import cache

import torch
from torch import Tensor

from tailorlib import Tailoring, TextSource
from tailorlib.calibration.moments import Listener, Streams
from tailorlib.exceptions import RecipeError
from tailorlib.tailoring import BASE
from tailorlib.warm_start import WarmStartContext
from tailorlib_strategies.warm_starts.removals import Calibrated, filled, merge_by_scale, presented, removal_of

_log = logging.getLogger(__name__)


class GapDistance(Calibrated):
    """Removes the layers that make the sum of all gaps' distances least: found exactly, by dynamic programming.

    With the inputs H_i of the dense base's layers, a gap of the layers a to b - 1 is of the distance
    ``|H_b - H_a|^2 / |H_b - mean(H_b)|^2``. A gap of several layers is not of the distance of their single gaps
    together, so layers are not ranked one by one. Meant for candidates that are bridged.
    Proposes what :class:`BlockInfluence` proposes: the removal with the base's layers, each candidate's, and all
    merged, at each scale.

    Args:
        text: Calibration text.
        context_length: Length in tokens of the windows that the text is cut into.
        max_tokens: Number of tokens to run.
        merge_scales: Scales at which all candidates are merged.
        merge: Merge operation with a hyperparameter ``scale``; others are in the middle of their ranges.

    Raises:
        RecipeError: If ``merge`` is unknown or has no scale, or a number is not positive.
    """

    def __init__(
        self,
        text: TextSource,
        context_length: int = 256,
        max_tokens: int = 4096,
        merge_scales: list[float] | None = None,
        merge: str = "TaskArithmetic",
    ) -> None:
        super().__init__(text, context_length, max_tokens)
        self.merge_scales, self.merge = tuple(merge_scales or ()), merge
        if self.merge_scales:
            merge_by_scale(merge, "GapDistance.merge")

    @property
    def label(self) -> str:
        """What tables call it."""
        return "gap distance"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the tailorings: the base's layers first, then each candidate's, then merged ones."""
        removal, distances = removal_of(context, self), self.distances(context)
        proposals: list[Tailoring] = []
        for size in removal.sizes:
            removed = least_removal(distances, size, removal.removable)
            _log.info("Gap distance removes the layers %s.", ", ".join(map(str, removed)))
            proposals += filled(context, removed, self.merge_scales, self.merge)
        return presented(context, proposals)

    def distances(self, context: WarmStartContext) -> list[list[float]]:
        """Return the distance of the gap from a up to b of the dense base, for all a < b."""
        family, rows = context.family, self.windows(context)
        number = family.layout.num_layers
        model = family.stitch(Tailoring.whole(BASE, number))
        moved = [[0.0] * (number + 1) for _ in range(number + 1)]
        sums: list[Tensor] = []
        squares = [0.0] * (number + 1)
        tokens = 0

        def add(streams: Streams) -> None:
            nonlocal tokens
            states = streams.states
            tokens += len(states[0])
            for b in range(number + 1):
                squares[b] += float(states[b].square().sum(dtype=torch.float64))
                for a in range(b):
                    moved[a][b] += float((states[b] - states[a]).square().sum(dtype=torch.float64))
            total = [state.sum(0, dtype=torch.float64) for state in states]
            sums[:] = total if not sums else [x + y for x, y in zip(sums, total, strict=True)]

        ids = [(*window.request.context, *window.request.continuation) for window in rows]
        Listener(model, family.architecture, {}).run(ids, add)
        spread = [squares[b] - float(sums[b].square().sum()) / tokens for b in range(number + 1)]
        return [[moved[a][b] / max(spread[b], 1e-30) for b in range(number + 1)] for a in range(number + 1)]


def least_removal(distances: Sequence[Sequence[float]], size: int, removable: Collection[int]) -> tuple[int, ...]:
    """Return the layers to remove so that the distances of all gaps add up to the least.

    Args:
        distances: Of the gap from a up to b, by a and b.
        size: Number of layers to remove.
        removable: The layers that may go.

    Raises:
        RecipeError: If so many can't go.
    """
    number, free = len(distances) - 1, frozenset(removable)

    @cache
    def best(at: int, left: int) -> tuple[float, tuple[int, ...]]:
        """Return the least sum for the layers from ``at`` on, and what goes; the layer below them stays."""
        if at >= number:
            return (0.0 if left == 0 else float("inf")), ()
        found: tuple[float, tuple[int, ...]] = (float("inf"), ())
        for length in range(min(left, number - at) + 1):
            if length and at + length - 1 not in free:
                break
            end = at + length
            cost, rest = best(end + 1, left - length)  # the layer at the end of a gap stays
            cost += distances[at][end] if length else 0.0
            if cost < found[0]:
                found = (cost, (*range(at, end), *rest))
        return found

    cost, removed = best(0, size)
    if cost == float("inf"):
        raise RecipeError(f"GapDistance removes {size} of the layers {sorted(free)}: there are too few.")
    return removed
