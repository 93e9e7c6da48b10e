"""MagnitudeImportance and TaylorImportance: what a layer's weights say of it."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tailorlib import LayerPlan, LayerSource, Tailoring, TextSource, WarmStart
from tailorlib.console import bar
from tailorlib.evaluation.text import Window
from tailorlib.exceptions import RecipeError
from tailorlib.models.stitching import Stitcher
from tailorlib.tailoring import BASE
from tailorlib.warm_start import WarmStartContext
from tailorlib_strategies.warm_starts.removals import Calibrated, presented, removal_of, without

_log = logging.getLogger(__name__)


class WeightImportance(WarmStart):
    """Removes the layers whose matrices are of least importance, summed over all their entries."""

    @abstractmethod
    def importance(self, context: WarmStartContext) -> list[float]:
        """Return the importance of each layer of the dense base."""

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the base without those layers, once for each number of them."""
        removal = removal_of(context, self)
        lists = removal.least(self.importance(context), self)
        for removed in lists:
            _log.info("%s removes the layers %s.", self.label, ", ".join(map(str, removed)))
        return presented(context, [without(context, removed) for removed in lists])


class MagnitudeImportance(WeightImportance):
    """Removes the layers of the least ``sum |w|`` over all entries of their matrices, as stored.

    The magnitude criterion of LLM-Pruner (arXiv 2305.11627) for whole layers, as in Shortened LLaMA (arXiv
    2402.02834). It looks at no text. Both papers let the first and last layers stay: use ``LayerRemoval.protect``.
    """

    @property
    def label(self) -> str:
        """What tables call it."""
        return "magnitude (LLM-Pruner)"

    def importance(self, context: WarmStartContext) -> list[float]:
        """Return ``sum |w|`` of each layer."""
        assembly, found = context.family.assembly, []
        for i in range(context.family.layout.num_layers):
            tensors = assembly.layer_tensors(LayerPlan((LayerSource(BASE, i),)), context.seed)
            found.append(sum(float(w.double().abs().sum()) for _, w in tensors if w.dim() > 1))
        return found


class TaylorImportance(Calibrated, WeightImportance):
    """Removes the layers of the least ``sum |w dL/dw|`` over all entries of their matrices.

    The first-order, element-wise Taylor criterion of LLM-Pruner (arXiv 2305.11627, eq. 5 without its second-order
    term), summed over whole layers as in Shortened LLaMA (arXiv 2402.02834). L is the mean negative log-likelihood
    of the text's tokens. One backward pass per window, in float32 on a copy of the base, whatever data type the
    search computes in: for a moment that takes 8 bytes per parameter of the base. Both papers let the first and
    last layers stay: use ``LayerRemoval.protect``.

    Args:
        text: Calibration text.
        context_length: Length in tokens of the windows that the text is cut into.
        max_tokens: Number of tokens to score.
    """

    def __init__(self, text: TextSource, context_length: int = 256, max_tokens: int = 2048) -> None:
        super().__init__(text, context_length, max_tokens)

    @property
    def label(self) -> str:
        """What tables call it."""
        return "Taylor (LLM-Pruner)"

    def importance(self, context: WarmStartContext) -> list[float]:
        """Return ``sum |w dL/dw|`` of each layer.

        Raises:
            RecipeError: If the family is quantised.
        """
        family, found = context.family, self.windows(context)
        if family.quantization != "none":
            raise RecipeError(
                "TaylorImportance needs gradients of the base's weights in float32, got a family with "
                f"quantization={family.quantization!r}. Use MagnitudeImportance or BlockInfluence, or leave "
                "quantization out."
            )
        # a live model of its own: the family's layers are shared, and compute in another data type
        stitcher = Stitcher(
            family.assembly,
            family.config,
            device=context.engine.device,
            dtype=torch.float32,
            merge_cache_bytes=0,
            trust_remote_code=family.source.trust_remote_code,
        )
        with torch.inference_mode(False), torch.enable_grad():
            model = stitcher.stitch(Tailoring.whole(BASE, family.layout.num_layers))
            layers = list(model.get_submodule(family.architecture.layers).children())
            matrices = [[w for w in layer.parameters() if w.dim() > 1] for layer in layers]
            for w in (w for group in matrices for w in group):
                w.requires_grad_(True)
            tokens = sum(len(window.request.continuation) for window in found)
            with bar(self.label, len(found)) as advance:
                for window in found:  # gradients add up
                    (_nats(model, window) / tokens).backward()  # type: ignore[no-untyped-call]
                    advance()
        return [sum(_first_order(w) for w in group) for group in matrices]


def _nats(model: PreTrainedModel, window: Window) -> Tensor:
    """Return the negative log-likelihood of a window."""
    context, continuation = window.request.context, window.request.continuation
    ids = torch.tensor([(*context, *continuation)], device=model.device)  # [1, length]
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(context) - 1 :]
    return nn.functional.cross_entropy(logits.float(), ids[0, len(context) :], reduction="sum")


def _first_order(w: Tensor) -> float:
    return 0.0 if w.grad is None else float((w.detach() * w.grad).abs().sum())
