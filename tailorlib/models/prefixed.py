"""Prefixed names: checkpoints that were saved from a model without its head."""

from __future__ import annotations

import torch
from torch import Tensor

from tailorlib.models.architecture import Architecture
from tailorlib.models.checkpoint import Checkpoint


class PrefixedCheckpoint(Checkpoint):
    """A checkpoint under longer names: ``h.0.ln_1.weight`` is read as ``transformer.h.0.ln_1.weight``.

    Models that were saved without a head lack the prefix, the original GPT-2 checkpoints among them.

    Args:
        inner: The checkpoint.
        prefix: What each of its names lacks, with the dot.
    """

    def __init__(self, inner: Checkpoint, prefix: str) -> None:
        self.inner, self.prefix = inner, prefix

    def keys(self) -> tuple[str, ...]:
        """Return the longer names of all tensors, sorted."""
        return tuple(self.prefix + name for name in self.inner.keys())  # noqa: SIM118

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self.inner.shape(self._inner_name(name))

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's stored data type without reading it."""
        return self.inner.dtype(self._inner_name(name))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU, not to be modified."""
        return self.inner.tensor(self._inner_name(name))

    def origin(self, name: str) -> tuple[Checkpoint, str]:
        """Return the checkpoint that really holds a tensor, and its name there."""
        return self.inner.origin(self._inner_name(name))

    def file_bytes(self) -> int:
        """Return the bytes of its files' tensors."""
        return self.inner.file_bytes()

    def where(self, name: str) -> str:
        """Return where a tensor is stored, for error messages."""
        return self.inner.where(self._inner_name(name))

    def __contains__(self, name: str) -> bool:
        return name.startswith(self.prefix) and self._inner_name(name) in self.inner

    def _inner_name(self, name: str) -> str:
        return name.removeprefix(self.prefix)


def with_prefix(checkpoint: Checkpoint, architecture: Architecture) -> Checkpoint:
    """Return a checkpoint under the names of the whole model, whether it was saved with a head or without.

    Args:
        checkpoint: A checkpoint of this architecture.
        architecture: Where the parts of the model live; its layers' first name is the prefix.
    """
    outer, _, inner = architecture.layers.partition(".")
    names = checkpoint.keys()
    if any(name.startswith(f"{inner}.0.") for name in names) and not any(n.startswith(f"{outer}.") for n in names):
        return PrefixedCheckpoint(checkpoint, f"{outer}.")
    return checkpoint
