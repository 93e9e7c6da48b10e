"""Precision: which data type a device computes fastest in."""

from __future__ import annotations

import time
from typing import Literal, cast

import torch

from tailorlib.exceptions import RecipeError, did_you_mean

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
"""What a recipe can ask for."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WORTH_IT = 1.3
"""How much faster than float32 bfloat16 has to be for the lost digits."""


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """Return the data type that a recipe's setting means on a device.

    Args:
        setting: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for the fastest.
        device: Where the models run.

    Raises:
        RecipeError: If the setting is none of these.
    """
    if setting != "auto":
        if setting not in DTYPES:
            raise RecipeError(f"dtype is 'auto' or a data type, got {setting!r}.{did_you_mean(setting, DTYPES)}")
        return DTYPES[setting]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    faster = gemm_seconds(torch.bfloat16, device) * _WORTH_IT <= gemm_seconds(torch.float32, device)
    return torch.bfloat16 if faster else torch.float32


def dtype_name(dtype: torch.dtype) -> DtypeName:
    """Return the name of a data type, as a recipe writes it."""
    return cast(DtypeName, str(dtype).removeprefix("torch."))


def gemm_seconds(dtype: torch.dtype, device: torch.device, *, size: int = 768, repeats: int = 5) -> float:
    """Return the shortest time of one matrix product of ``size``³; infinite if the device can't do it."""
    try:
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        seconds = []
        for _ in range(repeats + 1):  # the first one warms up
            started = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # reading one number waits for the device
            seconds.append(time.perf_counter() - started)
    except (RuntimeError, TypeError):
        return float("inf")
    return min(seconds[1:])
