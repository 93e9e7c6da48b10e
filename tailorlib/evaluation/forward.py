"""Forward passes in two parts: the decoder over whole rows, the head over chosen positions alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from tailorlib.evaluation.attention import attention_by, dense_mask, tree_attention
from tailorlib.evaluation.packing import Batch
from tailorlib.evaluation.states import reuse_of, spliced
from tailorlib.evaluation.workspace import Workspace

OWN_ATTENTION = frozenset({"falcon"})
"""Model types whose attention can't be replaced from outside; they take a mask."""


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Run the decoder without the head; layers whose output is known (see :mod:`.states`) don't run.

    Args:
        model: A live causal language model; if the batch is packed, one that
            :func:`tailorlib.evaluation.engine.supports_packing` approves of.
        batch: Rows of tokens.

    Returns:
        Hidden states after the final norm, [rows * length, hidden].
    """
    layers, reuse = decoder_layers(model), reuse_of(model)
    if reuse is None:
        return _run(model, batch, len(layers))
    splice = reuse.splice(batch.serial)
    with spliced(layers, splice):
        states = _run(model, batch, len(layers) - splice.start)
    reuse.keep(batch.serial, batch.input_ids.numel(), splice)
    return states


def _run(model: PreTrainedModel, batch: Batch, layers: int) -> Tensor:
    decoder = model.get_decoder()
    if batch.position_ids is None or batch.last is None:
        output = decoder(input_ids=batch.input_ids, use_cache=False)
    elif model.config.model_type in OWN_ATTENTION:
        mask = dense_mask(batch.position_ids, batch.last, None, model.dtype)
        output = decoder(
            input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.position_ids, use_cache=False
        )
    else:
        tree = tree_attention(batch.position_ids, batch.last, batch.blocks)
        with attention_by(tree, model.config, layers) as arguments:
            output = decoder(input_ids=batch.input_ids, use_cache=False, **arguments)
    states: Tensor = output.last_hidden_state
    return states.flatten(0, 1)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder layers that run, bottom to top."""
    stacks = (m for m in model.get_decoder().children() if isinstance(m, nn.ModuleList))
    return list(next(stacks))[: model.config.num_hidden_layers]


def logits_of(model: PreTrainedModel, hidden: Tensor, workspace: Workspace) -> Tensor:
    """Apply the model's own head to some hidden states, with all that it does to logits (scaling, soft caps).

    Args:
        model: A live causal language model.
        hidden: Hidden states after the final norm, [rows, hidden].
        workspace: Where the head writes, if it is a plain matrix on a CPU.

    Returns:
        Logits, [rows, vocabulary]; the caller's own to overwrite, until the next ones are asked for.
    """
    with _decoder_answers(model, hidden[None]), _head_writes(model, workspace):
        logits: Tensor = model(inputs_embeds=hidden[None], use_cache=False).logits
    return logits[0]


@dataclass
class _Answer(BaseModelOutputWithPastAndCrossAttentions):  # type: ignore[misc] # transformers is untyped here
    """What any decoder may answer: every head finds the fields that it reads."""

    router_logits: tuple[Tensor, ...] | None = None


@contextmanager
def _decoder_answers(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """Let the decoder answer with given hidden states, [1, rows, hidden], without computing."""

    def answer(*args: Any, **kwargs: Any) -> _Answer:
        return _Answer(last_hidden_state=hidden)

    with _forward_of(model.get_decoder(), answer):
        yield


@contextmanager
def _head_writes(model: PreTrainedModel, workspace: Workspace) -> Iterator[None]:
    """Let the head write its product where there is memory already; the bits are those of its own."""
    head = model.get_output_embeddings()
    # a subclass, a quantised head or one that somebody wrapped may compute something else
    plain = type(head) is nn.Linear and "forward" not in head.__dict__
    if not plain or head.weight.device.type != "cpu" or torch.is_grad_enabled():
        yield
        return

    def write(hidden: Tensor) -> Tensor:
        rows, matrix = hidden.flatten(0, -2), head.weight.T
        out = workspace.empty("logits", (len(rows), matrix.shape[1]), rows.dtype, rows.device)
        if head.bias is None:
            torch.mm(rows, matrix, out=out)
        else:
            torch.addmm(head.bias, rows, matrix, out=out)
        return out.view(*hidden.shape[:-1], -1)

    with _forward_of(head, write):
        yield


@contextmanager
def _forward_of(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else."""
    own = module.__dict__.get("forward")  # set on the instance by whoever wrapped the module
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
