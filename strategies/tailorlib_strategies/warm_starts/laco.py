"""LaCo: layers folded into the layer below them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import torch

from tailorlib import LayerPlan, LayerSource, Tailoring, TextSource
from tailorlib.console import bar
from tailorlib.evaluation.hidden_states import final_states
from tailorlib.exceptions import EvaluationError, RecipeError
from tailorlib.tailoring import BASE
from tailorlib.warm_start import WarmStartContext
from tailorlib_strategies.operations.folding import LayerFolding
from tailorlib_strategies.warm_starts.removals import (
    Calibrated,
    measured,
    presented,
    removal_of,
    reusing_states,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import CompiledRequests

_log = logging.getLogger(__name__)


class LaCo(Calibrated):
    """Folds following layers' differences into a layer: theta_l + sum_k (theta_l+k - theta_l).

    Layer collapse (LaCo, arXiv 2402.11187). A fold counts by how alike it leaves the representation: the cosine
    between the final hidden states of the folded and the dense base, all tokens of a window as one vector, mean
    over windows. The paper goes down from the top and accepts each fold of C - 1 layers whose cosine exceeds a
    threshold, which decides how many layers go. Here exactly R go: of all folds of C - 1 layers (fewer in the last
    step, and where no other fits) the one of the largest cosine is accepted, then the rest are measured again;
    that takes about ``R / (C - 1) * L`` evaluations. What was folded is not folded again, since the differences of
    a FoldingSpace are those to one layer.

    The proposal lies in a FoldingSpace whose scale can be 1, one for each number of layers if that varies. In
    another space it can be a baseline only, with as many layers folded as that space removes.

    Args:
        text: Calibration text.
        merged_layers: Number C of layers that become one in one step, 2 or more. A fold of two is the upper layer
            in the place of the lower one: theta_l + (theta_l+1 - theta_l). More suit models whose neighbouring
            layers are alike; small ones can break.
        context_length: Length in tokens of the windows that the text is cut into.
        max_tokens: Number of tokens to run.
    """

    def __init__(
        self, text: TextSource, merged_layers: int = 4, context_length: int = 256, max_tokens: int = 1024
    ) -> None:
        super().__init__(text, context_length, max_tokens)
        if merged_layers < 2:
            raise RecipeError(f"LaCo.merged_layers is 2 or more, got {merged_layers}. Two layers make a fold.")
        self.merged_layers = merged_layers

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"LaCo (folds of {self.merged_layers} layers)"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the folded base, once for each number of folded layers."""
        layout, removal = context.family.layout, removal_of(context, self)
        kinds = layout.layer_types
        foldable = [i for i in removal.removable if i > 0 and kinds[i] == kinds[i - 1]]
        cosine = _Cosine(context, self.compiled(context))
        proposals = []
        steps = sum(math.ceil(size / (self.merged_layers - 1)) for size in removal.sizes)
        with bar(self.label, steps) as advance, reusing_states(context.engine):
            for size in removal.sizes:
                folded = self._fold(foldable, size, cosine, advance)
                _log.info("LaCo folds the layers %s.", ", ".join(map(str, sorted(folded))))
                proposals.append(_folded(context, folded))
        return presented(context, proposals)

    def _fold(
        self, foldable: Collection[int], size: int, cosine: _Cosine, advance: Callable[[], None]
    ) -> frozenset[int]:
        folded: frozenset[int] = frozenset()
        while len(folded) < size:
            folds = self._folds(foldable, folded, size - len(folded))
            if not folds:
                raise RecipeError(
                    f"LaCo folds {size} layers into layers below them that stay; got room for {len(folded)} among "
                    f"{list(foldable)}. Protect or fold fewer layers, or raise merged_layers."
                )
            values = cosine.of(folded, [folded | set(fold) for fold in folds])
            best = max(range(len(folds)), key=lambda j: (values[j], folds[j].start))
            folded |= set(folds[best])
            advance()
        return folded

    def _folds(self, foldable: Collection[int], folded: Collection[int], left: int) -> list[range]:
        """Return the longest folds that can come next, each into a layer that stays; the topmost first."""
        for length in range(min(self.merged_layers - 1, left), 0, -1):
            folds = [range(low, low + length) for low in sorted(foldable, reverse=True)]
            free = {i for i in foldable if i not in folded and i + 1 not in folded}
            found = [fold for fold in folds if free.issuperset(fold) and fold.start - 1 not in folded]
            if found:
                return found
        return []


class _Cosine:
    """How alike the final hidden states of a folded and the dense base are."""

    def __init__(self, context: WarmStartContext, compiled: CompiledRequests) -> None:
        self._context, self._compiled = context, compiled
        dense = context.family.stitch(Tailoring.whole(BASE, context.family.layout.num_layers))
        self._dense = [states for states, _ in final_states(dense, compiled)]
        self._known: dict[frozenset[int], float] = {}

    def of(self, parent: frozenset[int], children: Sequence[frozenset[int]]) -> list[float]:
        """Return the cosine of each set of folded layers, given the set that they all continue."""
        new = [child for child in children if child not in self._known]
        tailorings = (_folded(self._context, child) for child in new)
        found = measured(
            self._context, tailorings, _folded(self._context, parent), self._measure, advance=lambda: None
        )
        self._known |= zip(new, found, strict=True)
        return [self._known[child] for child in children]

    def _measure(self, model: PreTrainedModel) -> float:
        windows = len(self._compiled.requests)
        products = torch.zeros(3, windows, dtype=torch.float64)  # xx, xy, yy of each window
        for x, (y, request) in zip(self._dense, final_states(model, self._compiled), strict=True):
            for row, (a, b) in zip(products, ((x, x), (x, y), (y, y)), strict=True):
                row.index_add_(0, request, (a * b).sum(-1))
        xx, xy, yy = products
        cosine = float((xy / (xx * yy).sqrt()).mean())
        if math.isnan(cosine):
            raise EvaluationError(
                "LaCo compares hidden states, got NaN. Try family.init_args.dtype float32, or other text."
            )
        return cosine


def _folded(context: WarmStartContext, folded: Collection[int]) -> Tailoring:
    """Return the base with some layers folded into the kept layers below them."""
    runs: list[list[LayerSource]] = []
    for i in range(context.family.layout.num_layers):
        if i in folded:
            runs[-1].append(LayerSource(BASE, i))
        else:
            runs.append([LayerSource(BASE, i)])
    plans = (
        LayerPlan(tuple(run), LayerFolding.name, (("scale", 1.0),)) if len(run) > 1 else LayerPlan(tuple(run))
        for run in runs
    )
    return Tailoring(tuple(plans), seed=context.seed)
