"""Random numbers by name: every draw has a seed of its own, and no global generator is touched."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_for(*parts: object) -> int:
    """Return a 63-bit seed that depends on the text of ``parts`` alone (SHA-256, the same on every machine)."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def torch_generator(*parts: object) -> torch.Generator:
    """Return a CPU generator seeded from ``parts``.

    Masks are drawn on the CPU whatever the device of the weights, so that every device gets the same bits.
    """
    return torch.Generator(device="cpu").manual_seed(seed_for(*parts))


def numpy_generator(*parts: object) -> np.random.Generator:
    """Return a NumPy generator seeded from ``parts``."""
    return np.random.default_rng(seed_for(*parts))
