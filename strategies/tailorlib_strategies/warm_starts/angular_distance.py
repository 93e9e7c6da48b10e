"""AngularDistance: the block of neighbouring layers that does least."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from tailorlib import Tailoring, TextSource
from tailorlib.evaluation.hidden_states import last_token_states
from tailorlib.exceptions import EvaluationError, RecipeError
from tailorlib.tailoring import BASE
from tailorlib.warm_start import WarmStartContext
from tailorlib_strategies.warm_starts.removals import Calibrated, presented, removal_of, without

_log = logging.getLogger(__name__)


class AngularDistance(Calibrated):
    """Removes the contiguous block whose output is turned least against its input (arXiv 2403.17887, section 3).

    ``d(l, l+n) = E[arccos(cos(x_l, x_l+n))] / pi``, where ``x_l`` is the input of layer l at the last token of a
    window, and the mean is over windows; n is the number of layers that the search space removes. Protected layers
    lie in no block. Proposes the base's other layers; where the number varies, for the least, the middle and the
    largest one.

    Args:
        text: Calibration text.
        context_length: Length in tokens of the windows that the text is cut into; each counts with its last token.
        max_tokens: Number of tokens to run.
    """

    def __init__(self, text: TextSource, context_length: int = 128, max_tokens: int = 4096) -> None:
        super().__init__(text, context_length, max_tokens)

    @property
    def label(self) -> str:
        """What tables call it."""
        return "contiguous block (angular distance)"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the base without its block, once for each number of layers."""
        removal, distances = removal_of(context, self), self.distances(context)
        proposals = []
        for size in removal.sizes:
            block = _block(distances, removal.removable, size)
            _log.info("Angular distance removes the layers %s.", ", ".join(map(str, block)))
            proposals.append(without(context, block))
        return presented(context, proposals)

    def distances(self, context: WarmStartContext) -> list[list[float]]:
        """Return the angular distance between the inputs of any two layers, in [0, 1].

        Returns:
            A square table: entry [l][m] is ``d(l, m)``; the last row and column stand for the last layer's output.

        Raises:
            EvaluationError: If the dense base gives NaN.
        """
        family, compiled = context.family, self.compiled(context)
        model = family.stitch(Tailoring.whole(BASE, family.layout.num_layers))
        layers = list(model.get_submodule(family.architecture.layers).children())
        states = last_token_states(model, layers, compiled)  # [layers + 1, windows, hidden]
        states = states / torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        cosines = torch.einsum("lwh,mwh->lmw", states, states).clamp(-1.0, 1.0)
        table: list[list[float]] = (torch.arccos(cosines).mean(-1) / math.pi).tolist()
        if any(math.isnan(value) for row in table for value in row):
            raise EvaluationError(
                "AngularDistance compares hidden states, got NaN from the dense base. Try family.init_args.dtype "
                "float32."
            )
        return table


def _block(distances: Sequence[Sequence[float]], removable: Sequence[int], size: int) -> tuple[int, ...]:
    """Return the block of the least distance; of equal ones the lowest."""
    L = len(distances) - 1  # noqa: N806
    free = frozenset(removable)
    lows = [low for low in range(L - size + 1) if free.issuperset(range(low, low + size))]
    if not lows:
        raise RecipeError(
            f"AngularDistance removes neighbouring layers, {size} of them; got no such block among those that may "
            f"go: {list(removable)}. Protect fewer layers, or remove fewer."
        )
    best = min(lows, key=lambda low: (distances[low][low + size], low))
    return tuple(range(best, best + size))
