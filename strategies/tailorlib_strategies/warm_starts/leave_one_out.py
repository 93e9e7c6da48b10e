"""LeaveOneOut: layers that the text is predicted well without."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tailorlib import Tailoring, TextSource
from tailorlib.console import bar
from tailorlib.evaluation.text import text_loss
from tailorlib.warm_start import WarmStartContext
from tailorlib_strategies.warm_starts.removals import (
    Calibrated,
    filled,
    measured,
    merge_by_scale,
    presented,
    removal_of,
    reusing_states,
    without,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


class LeaveOneOut(Calibrated):
    """Removes the layers without which the perplexity of a text rises least.

    The score of a layer is the perplexity of the base without it. At once, the R layers of the least score go (the
    perplexity criterion of Shortened LLaMA, arXiv 2402.02834), which takes one evaluation for each of L layers. If
    ``greedy``, one layer goes after another, and the rest are ranked again without it (SLEB, arXiv 2402.09025),
    which takes ``R (L - (R - 1) / 2)`` evaluations. Layers below the removed one don't run again, as far as
    ``study.prefix_cache_mib`` reaches. Proposes the base's other layers; with ``merge_scales``, then each
    candidate's and all candidates merged, once per scale, as :class:`BlockInfluence` does. Where the number of
    removed layers varies, all that is proposed for the least, the middle and the largest one.

    Args:
        text: Calibration text.
        greedy: Whether layers go one after another.
        context_length: Length in tokens of the windows that the text is cut into.
        max_tokens: Number of tokens to score.
        merge_scales: Scales at which all candidates are merged; none of the candidates are used without.
        merge: Merge operation with a hyperparameter ``scale``; others are in the middle of their ranges.

    Raises:
        RecipeError: If ``merge`` is unknown or has no scale, or a number is not positive.
    """

    def __init__(
        self,
        text: TextSource,
        greedy: bool = False,
        context_length: int = 256,
        max_tokens: int = 2048,
        merge_scales: list[float] | None = None,
        merge: str = "TaskArithmetic",
    ) -> None:
        super().__init__(text, context_length, max_tokens)
        self.greedy = greedy
        self.merge_scales, self.merge = tuple(merge_scales or ()), merge
        if self.merge_scales:
            merge_by_scale(merge, "LeaveOneOut.merge")  # what can't be is said before any layer is ranked

    @property
    def label(self) -> str:
        """What tables call it."""
        return "greedy leave-one-out (SLEB)" if self.greedy else "leave-one-out (perplexity)"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return what is made without those layers, once for each number of them: the base's own first."""
        removal = removal_of(context, self)
        if self.greedy:
            order = self._one_after_another(context, removal.removable, removal.sizes[-1])
            lists = [tuple(sorted(order[:size])) for size in removal.sizes]
        else:
            lists = removal.least(self.losses(context, removal.removable), self)
        proposals: list[Tailoring] = []
        for removed in lists:
            _log.info("%s removes the layers %s.", self.label, ", ".join(map(str, removed)))
            made = filled(context, removed, self.merge_scales, self.merge)
            proposals += made if self.merge_scales else [without(context, removed)]
        return presented(context, proposals)

    def losses(
        self, context: WarmStartContext, layers: Sequence[int], removed: Sequence[int] = ()
    ) -> dict[int, float]:
        """Return the loss without each of some layers, in nats per token.

        Args:
            context: The context.
            layers: The layers that are left out, each by itself.
            removed: Layers that are left out as well, always.

        Raises:
            EvaluationError: If the base gives NaN, or memory runs out.
        """
        with bar(self.label, len(layers)) as advance, reusing_states(context.engine):
            return _losses(context, layers, removed, self._measure(context), advance)

    def _one_after_another(self, context: WarmStartContext, layers: Sequence[int], number: int) -> list[int]:
        left, removed, measure = list(layers), list[int](), self._measure(context)
        total = sum(len(left) - i for i in range(number))
        with bar(self.label, total) as advance, reusing_states(context.engine):
            for _ in range(number):
                losses = _losses(context, left, removed, measure, advance)
                least = min(left, key=lambda i: (losses[i], i))
                _log.info("Without layer %d: %.4f nats per token.", least, losses[least])
                removed.append(least)
                left.remove(least)
        return removed

    def _measure(self, context: WarmStartContext) -> Callable[[PreTrainedModel], float]:
        """Return what gives a live model's nats per token."""
        found = self.windows(context)
        compiled = context.engine.compile([window.request for window in found])

        def measure(model: PreTrainedModel) -> float:
            scores = context.engine.score(model, compiled)
            return text_loss(found, scores.log_likelihood.tolist()).nats_per_token

        return measure


def _losses(
    context: WarmStartContext,
    layers: Sequence[int],
    removed: Sequence[int],
    measure: Callable[[PreTrainedModel], float],
    advance: Callable[[], None],
) -> dict[int, float]:
    downwards = sorted(layers, reverse=True)
    tailorings = (without(context, [*removed, i]) for i in downwards)
    losses = measured(context, tailorings, without(context, removed), measure, advance)
    return dict(zip(downwards, losses, strict=True))
