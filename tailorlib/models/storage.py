"""How a model's weights are stored: 16- or 32-bit floats are read; quantised weights are refused by that word.

What config.json says of storage is compared with the file and never copied: a model trained with QLoRA and
saved in 16 bits often keeps the entry of its training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tailorlib.exceptions import ModelError, shown
from tailorlib.models.checkpoint import Checkpoint

FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""The data types that a model's weights are read in."""
QUANTIZATION_ENTRIES = ("quantization_config", "compression_config", "quantization")
"""Entries of config.json that say how weights are quantised; the last one is MLX's."""
STORAGE_ENTRIES = (*QUANTIZATION_ENTRIES, "_model_name_or_path", "gguf_file")
"""Entries that say how and where weights were stored: none is true of what is made of them."""
_PARTS = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|biases|absmax|nested_absmax|quant_map|nested_quant_map|SCB|W_q|qscale"
    r"|weight\.(absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.\w+|_data|_scale)"
    r"|(weight|input|output)_(scale|scale_inv|scale_2|packed|shape|zero_point|g_idx|format)|\w+_proj_(blocks|scales))$"
)
"""Ends of names that only the parts of quantised weights have, by bitsandbytes, GPTQ, AWQ, FP8 and others."""


def quantization_entry(entries: Mapping[str, Any]) -> str:
    """Return which entry of a config.json says that weights are quantised, and how, in words; else nothing."""
    for name in QUANTIZATION_ENTRIES:
        said = entries.get(name)
        if said:
            method = said.get("quant_method") or said.get("format") if isinstance(said, Mapping) else said
            bits = said.get("bits") if isinstance(said, Mapping) else None
            what = shown(method) if method else "an unnamed method"
            return f"{name}: {what}" + (f", {shown(bits)} bits" if bits is not None else "")
    return ""


def check_storage(folder: Path, entries: Mapping[str, Any], checkpoint: Checkpoint) -> str:
    """Check that a model's weights are plain floats.

    Args:
        folder: The model's folder, for messages.
        entries: What its config.json says.
        checkpoint: Its weights.

    Returns:
        A note if config.json says that they are quantised, and they aren't; else nothing.

    Raises:
        ModelError: If they are quantised.
    """
    said = quantization_entry(entries)
    for name in checkpoint.keys():  # noqa: SIM118
        if _is_quantised(checkpoint, name):
            kind = str(checkpoint.dtype(name)).removeprefix("torch.")
            raise ModelError(
                f"The weights of {str(folder)!r} are quantised: config.json says {said or 'nothing of it'}, and "
                f"{name!r} is {kind} {list(checkpoint.shape(name))}. Layers are merged from 16- or 32-bit "
                "weights: give the 16-bit model that it was made from."
            )
    return f"{said} in its config.json; its weights are plain, and the entry is left out" if said else ""


def _is_quantised(checkpoint: Checkpoint, name: str) -> bool:
    if _PARTS.search(name):
        return True
    dtype = checkpoint.dtype(name)
    is_matrix = name.endswith((".weight", "_proj")) and len(checkpoint.shape(name)) > 1
    return dtype not in FLOATS and (is_matrix or dtype.is_floating_point)
