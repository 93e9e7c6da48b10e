"""What each decoder layer does to the hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tailorlib.evaluation.engine import CompiledRequests
from tailorlib.evaluation.forward import hidden_states


@torch.inference_mode()
def block_influence(model: PreTrainedModel, layers: Sequence[nn.Module], compiled: CompiledRequests) -> Tensor:
    """Return how much each layer turns the hidden states: ``1 - E[cos(h_l, h_l+1)]`` (arXiv 2403.03853, eq. 1).

    The mean is over the positions that predict a scored token. The final norm is no part of the last layer.

    Args:
        model: A live causal language model in evaluation mode.
        layers: Its decoder layers, bottom to top.
        compiled: Text, laid out as plain rows.

    Returns:
        Block influence, float64 [layers], on the CPU.
    """
    compiled.unpack()  # every architecture takes plain rows
    totals = [torch.zeros((), dtype=torch.float64) for _ in layers]
    where: list[Tensor] = []

    def observe(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            rows = [h.flatten(0, 1)[where[0]].float() for h in (before, after)]  # [pairs, hidden] each
            totals[index] += torch.cosine_similarity(rows[0], rows[1], dim=-1).sum().to("cpu", torch.float64)

        return hook

    handles = [layer.register_forward_hook(observe(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for batch in compiled.plan.batches:
            where[:] = [batch.scored[batch.pair_row]]  # a prefix of several texts counts for each
            hidden_states(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    tokens = sum(len(batch.pair_row) for batch in compiled.plan.batches)
    return 1.0 - torch.stack(totals) / tokens
