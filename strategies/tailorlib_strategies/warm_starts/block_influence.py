"""BlockInfluence: ShortGPT's layers, removed at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tailorlib import Tailoring, TextSource
from tailorlib.evaluation.hidden_states import block_influence
from tailorlib.tailoring import BASE
from tailorlib.warm_start import WarmStartContext
from tailorlib_strategies.warm_starts.removals import (
    Calibrated,
    filled,
    merge_by_scale,
    presented,
    removal_of,
)

_log = logging.getLogger(__name__)


class BlockInfluence(Calibrated):
    """Removes the layers that turn the hidden states least (ShortGPT, arXiv 2403.03853, eq. 1).

    The influence of layer l is ``1 - E[cos(h_l, h_l+1)]``, over all tokens. Proposes that removal with all layers
    from the base; then with all layers from each candidate; then with every layer merged from all candidates, once
    per scale. What lies outside the search space is left out. Where the number of removed layers varies, all that
    is proposed for the least, the middle and the largest number.

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
        max_tokens: int = 2048,
        merge_scales: list[float] | None = None,
        merge: str = "TaskArithmetic",
    ) -> None:
        super().__init__(text, context_length, max_tokens)
        self.merge_scales, self.merge = tuple(merge_scales or ()), merge
        if self.merge_scales:
            merge_by_scale(merge, "BlockInfluence.merge")  # what can't be is said before any layer is ranked

    @property
    def label(self) -> str:
        """The method's own name, and the figure that it goes by."""
        return "ShortGPT (block influence)"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the tailorings: the base's layers first, then each candidate's, then merged ones."""
        removal = removal_of(context, self)
        proposals: list[Tailoring] = []
        for removed in removal.least(self.influence(context), self):
            _log.info("Block influence removes the layers %s.", ", ".join(map(str, removed)))
            proposals += filled(context, removed, self.merge_scales, self.merge)
        return presented(context, proposals)

    def influence(self, context: WarmStartContext) -> list[float]:
        """Return the block influence of each layer of the dense base."""
        family, compiled = context.family, self.compiled(context)
        model = family.stitch(Tailoring.whole(BASE, family.layout.num_layers))
        layers = list(model.get_submodule(family.architecture.layers).children())
        values: list[float] = block_influence(model, layers, compiled).tolist()
        return values
