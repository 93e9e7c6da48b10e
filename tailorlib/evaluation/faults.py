"""What a model or device can do wrong while it is scored, told so that a user can mend it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tailorlib.evaluation.forward import decoder_layers
from tailorlib.evaluation.states import reusing


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error means that the device's memory is full; the CPU's allocator has no type for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def memory_figure(error: RuntimeError) -> str:
    """Return what an error says of the memory that there is and that it wanted, in 200 characters."""
    return f"{' '.join(str(error).split())[:200].rstrip('. ')}."


def release_memory(device: torch.device) -> None:
    """Give back to the device what its allocator keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def where_it_breaks(model: PreTrainedModel, run: Callable[[], Tensor]) -> str:
    """Return where a model's numbers stop being finite, as a sentence for an error.

    Args:
        model: The model.
        run: Runs its decoder on something that gave NaN, and returns the hidden states after the final norm.
    """
    layers = decoder_layers(model)
    broken: list[str] = []

    def look(name: str, states: Any) -> None:
        states = states[0] if isinstance(states, tuple) else states
        if not bool(torch.isfinite(states).all()):
            broken.append(name)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        look("the embeddings", args[0] if args else kwargs["hidden_states"])

    def after(index: int) -> Any:
        return lambda module, args, output: look(f"decoder layer {index}", output)

    handles = [layer.register_forward_hook(after(i)) for i, layer in enumerate(layers)]
    handles.append(layers[0].register_forward_pre_hook(before, with_kwargs=True))
    try:
        with reusing(model, None):
            look("the final norm", run())
    finally:
        for handle in handles:
            handle.remove()
    first = broken[0] if broken else "the head"
    number = f" (of 0 to {len(layers) - 1})" if "layer" in first else ""
    cure = " float16 ends at 65504: take bfloat16 or float32." if model.dtype == torch.float16 else ""
    return f"The model gives NaN. The first output that is not finite is that of {first}{number}.{cure}"
