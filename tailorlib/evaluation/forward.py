"""Forward passes in two parts: the decoder over whole rows, the head over chosen positions alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from tailorlib.evaluation.packing import Batch


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Run the decoder without the head.

    Args:
        model: A live causal language model.
        batch: Rows of tokens.

    Returns:
        Hidden states after the final norm, [rows * length, hidden].
    """
    arguments: dict[str, Any] = {}
    mask = batch.attention_mask()
    if mask is not None:
        arguments = {"attention_mask": _additive(mask, model), "position_ids": batch.position_ids}
    output = model.get_decoder()(input_ids=batch.input_ids, use_cache=False, **arguments)
    states: Tensor = output.last_hidden_state
    return states.flatten(0, 1)


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the model's own head to some hidden states, with all that it does to logits (scaling, soft caps).

    Args:
        model: A live causal language model.
        hidden: Hidden states after the final norm, [rows, hidden].

    Returns:
        Logits, [rows, vocabulary].
    """
    with _decoder_answers(model, hidden[None]):
        logits: Tensor = model(inputs_embeds=hidden[None], use_cache=False).logits
    return logits[0]


def _additive(mask: Tensor, model: PreTrainedModel) -> Tensor:
    """Return a mask to be added to attention scores, which every attention implementation takes."""
    zeros = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
    return zeros.masked_fill_(~mask, torch.finfo(model.dtype).min)


@contextmanager
def _decoder_answers(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """Let the decoder answer with given hidden states, [1, rows, hidden], without computing."""
    decoder = model.get_decoder()
    own = decoder.__dict__.get("forward")  # set on the instance by whoever wrapped the module

    def answer(*args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    decoder.forward = answer
    try:
        yield
    finally:
        if own is None:
            del decoder.forward
        else:
            decoder.forward = own
