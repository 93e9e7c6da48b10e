"""Tied heads: whether a model's head is its embeddings, as transformers decides it from the config and the file.

``tie_word_embeddings`` says so, and the file has the last word: transformers keeps a stored head that differs from
the embeddings, whatever the config says, and reads embeddings that are stored only under the head's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError
from tailorlib.models.architecture import Architecture
from tailorlib.models.checkpoint import Checkpoint

_ROWS = 4096


class AliasedCheckpoint(Checkpoint):
    """A checkpoint some of whose tensors have a second name.

    Args:
        inner: The checkpoint.
        names: The second names, and those of the tensors that they stand for.
    """

    def __init__(self, inner: Checkpoint, names: Mapping[str, str]) -> None:
        self.inner, self.names = inner, dict(names)

    def keys(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        return tuple(sorted({*self.inner.keys(), *self.names}))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self.inner.shape(self._own(name))

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's stored data type without reading it."""
        return self.inner.dtype(self._own(name))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU, not to be modified."""
        return self.inner.tensor(self._own(name))

    def origin(self, name: str) -> tuple[Checkpoint, str]:
        """Return the checkpoint that really holds a tensor, and its name there."""
        return self.inner.origin(self._own(name))

    def file_bytes(self) -> int:
        """Return the bytes of its files' tensors."""
        return self.inner.file_bytes()

    def where(self, name: str) -> str:
        """Return where a tensor is stored, for error messages."""
        return self.inner.where(self._own(name))

    def __contains__(self, name: str) -> bool:
        return name in self.names or name in self.inner

    def _own(self, name: str) -> str:
        return self.names.get(name, name)


def head_of(row: Architecture) -> str:
    """Return the name of the head's weight in files."""
    return f"{row.stored_head}.weight"


def with_head(checkpoint: Checkpoint, row: Architecture) -> Checkpoint:
    """Return a model whose head is its embeddings with a head under its own name."""
    head = head_of(row)
    return checkpoint if head in checkpoint else AliasedCheckpoint(checkpoint, {head: _embeddings(row)})


def settle_tie(checkpoint: Checkpoint, config: Any, row: Architecture) -> tuple[Checkpoint, str]:
    """Make a config's ``tie_word_embeddings`` say what transformers does with the model's file.

    Embeddings and head are compared, and so read, only if the config says tied and the file has both.

    Args:
        checkpoint: The model's weights.
        config: Its transformers config; changed in place.
        row: Where its parts live.

    Returns:
        The weights, with embeddings under their own name, and what is worth a warning, or nothing.

    Raises:
        ModelError: If the model has no head, or one of another shape than its config says.
    """
    head, embeddings = head_of(row), _embeddings(row)
    if head not in checkpoint:
        if not config.tie_word_embeddings and embeddings in checkpoint:
            raise ModelError(
                f"The config says that the head is no copy of the embeddings (tie_word_embeddings is false), and "
                f"{head!r} is missing: transformers would draw a random one. If the embeddings are the head, set "
                "tie_word_embeddings to true in its config.json; else fetch the model again."
            )
        return checkpoint, ""
    if not config.tie_word_embeddings:
        return checkpoint, ""
    if embeddings not in checkpoint:
        return AliasedCheckpoint(checkpoint, {embeddings: head}), ""
    shapes = [checkpoint.shape(name) for name in (embeddings, head)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"The config says that the head is the embeddings (tie_word_embeddings is true), and {head!r} has the "
            f"shape {list(shapes[1])} where {embeddings!r} has {list(shapes[0])}. Save the model again."
        )
    if _equal(checkpoint, embeddings, head):
        return checkpoint, ""
    config.tie_word_embeddings = False
    return checkpoint, (
        f"a head of its own: {head!r} differs from {embeddings!r}, though tie_word_embeddings is true. It is "
        "kept, as transformers keeps it"
    )


def _embeddings(row: Architecture) -> str:
    return f"{row.embeddings[0]}.weight"


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    if checkpoint.origin(one) == checkpoint.origin(other):
        return True
    a, b = checkpoint.tensor(one), checkpoint.tensor(other)
    wide = torch.promote_types(a.dtype, b.dtype)
    return all(torch.equal(a[i : i + _ROWS].to(wide), b[i : i + _ROWS].to(wide)) for i in range(0, len(a), _ROWS))
