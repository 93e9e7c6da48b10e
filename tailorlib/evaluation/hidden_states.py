"""What each decoder layer does to the hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

    def see(index: int, before: Tensor, after: Tensor) -> None:
        rows = [h[where[0]].float() for h in (before, after)]  # [pairs, hidden] each
        totals[index] += torch.cosine_similarity(rows[0], rows[1], dim=-1).sum().to("cpu", torch.float64)

    with _watching(layers, see):
        for batch in compiled.plan.batches:
            where[:] = [batch.scored[batch.pair_row]]  # a prefix of several texts counts for each
            hidden_states(model, batch)
    tokens = sum(len(batch.pair_row) for batch in compiled.plan.batches)
    return 1.0 - torch.stack(totals) / tokens


@torch.inference_mode()
def last_token_states(model: PreTrainedModel, layers: Sequence[nn.Module], compiled: CompiledRequests) -> Tensor:
    """Return the hidden states at the last token that each request runs.

    Args:
        model: A live causal language model in evaluation mode.
        layers: Its decoder layers, bottom to top.
        compiled: Text, laid out as plain rows.

    Returns:
        The input of each layer and the output of the last one, before the final norm; float64
        [layers + 1, requests, hidden], on the CPU.
    """
    compiled.unpack()
    found: list[list[Tensor]] = [[] for _ in range(len(layers) + 1)]
    where: list[Tensor] = []

    def see(index: int, before: Tensor, after: Tensor) -> None:
        found[index].append(before[where[0]].float().to("cpu", torch.float64))
        if index == len(layers) - 1:
            found[-1].append(after[where[0]].float().to("cpu", torch.float64))

    order: list[int] = []
    with _watching(layers, see):
        for batch in compiled.plan.batches:
            last: dict[int, int] = {}
            for request, position in zip(
                batch.pair_request.tolist(), batch.scored[batch.pair_row].tolist(), strict=True
            ):
                last[request] = max(position, last.get(request, 0))
            order += last
            where[:] = [torch.tensor(list(last.values()), device=batch.scored.device)]
            hidden_states(model, batch)
    return torch.stack([torch.cat(states) for states in found])[:, torch.tensor(order).argsort()]


@torch.inference_mode()
def final_states(model: PreTrainedModel, compiled: CompiledRequests) -> list[tuple[Tensor, Tensor]]:
    """Return what the model makes of each batch, after the final norm.

    Args:
        model: A live causal language model in evaluation mode.
        compiled: Text, laid out as plain rows.

    Returns:
        By batch the hidden states at the positions that predict a scored token, float64 [pairs, hidden], and the
        request of each, [pairs]; both on the CPU.
    """
    compiled.unpack()
    found = []
    for batch in compiled.plan.batches:
        states = hidden_states(model, batch)[batch.scored[batch.pair_row]]
        found.append((states.float().to("cpu", torch.float64), batch.pair_request))
    return found


@contextmanager
def _watching(layers: Sequence[nn.Module], see: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    """Show each layer's number, input and output, [rows * length, hidden], in every forward pass."""

    def observe(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            see(index, before.flatten(0, 1), after.flatten(0, 1))

        return hook

    handles = [layer.register_forward_hook(observe(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
