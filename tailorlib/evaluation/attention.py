"""Attention inside packed rows: every token sees its own ancestors and itself, at any window, in every layer.

The functions here stand in for a model's own attention function while a packed batch runs. A window counts depth:
along a text's own path, depth is position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - what everybody calls it
from torch import Tensor, nn
from transformers import AttentionInterface

from tailorlib.evaluation.tree import Block, Span

_NAME = "tailorlib_tree"


class TreeAttention(ABC):
    """Attention over the rows of one batch, for all layers of a forward pass.

    Args:
        depth: Depth of each token in its tree, [rows, length].
        last: Index of the last token of each token's subtree, [rows, length].
    """

    def __init__(self, depth: Tensor, last: Tensor) -> None:
        self.depth, self.last = depth, last
        self.calls = 0
        """Number of layers that have attended."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Attend.

        Args:
            query: [rows, heads, length, size].
            key: [rows, key heads, length, size].
            value: [rows, key heads, length, value size].
            scale: What scores are multiplied by.
            window: Number of tokens that a token sees, itself included; ``None`` for all of its text.
            softcap: Bound of the scores, by ``softcap * tanh(score / softcap)``; ``None`` for none.

        Returns:
            [rows, length, heads, value size].
        """
        self.calls += 1
        return self.attend(query, key, value, scale, window, softcap)

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Do what calling it says."""


class DenseAttention(TreeAttention):
    """Attention of whole rows, with a mask."""

    def __init__(self, depth: Tensor, last: Tensor) -> None:
        super().__init__(depth, last)
        self._masks: dict[int | None, Tensor] = {}

    def attend(  # noqa: D102
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        mask = self._masks.get(window)
        if mask is None:
            mask = self._masks[window] = dense_mask(self.depth, self.last, window, query.dtype)
        return _attend(query, key, value, mask, scale, softcap).transpose(1, 2)


class BlockAttention(TreeAttention):
    """Attention of one row in blocks, each with the keys that it needs.

    Args:
        depth: Depth of each token in its tree, [1, length].
        last: Index of the last token of each token's subtree, [1, length].
        blocks: The blocks of the row.
    """

    def __init__(self, depth: Tensor, last: Tensor, blocks: tuple[Block, ...]) -> None:
        super().__init__(depth, last)
        self.blocks = blocks
        self._seen: dict[int | None, list[tuple[tuple[Span, ...], Tensor]]] = {}

    def attend(  # noqa: D102
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        seen = self._seen.get(window)
        if seen is None:
            seen = self._seen[window] = [self._keys(block, window, query.dtype) for block in self.blocks]
        rows, heads, length, _ = query.shape
        attended = query.new_empty(rows, length, heads, value.shape[3])
        for block, (spans, mask) in zip(self.blocks, seen, strict=True):
            queries = query[:, :, block.start : block.stop]
            found = _attend(queries, _gather(key, spans), _gather(value, spans), mask, scale, softcap)
            attended[:, block.start : block.stop] = found.transpose(1, 2)
        return attended

    def _keys(self, block: Block, window: int | None, dtype: torch.dtype) -> tuple[tuple[Span, ...], Tensor]:
        """Return a block's keys, and the mask [1, 1, queries, keys]."""
        spans = block.keys(window)
        device = self.depth.device
        queries = torch.arange(block.start, block.stop, device=device)
        keys = torch.cat([torch.arange(*span, device=device) for span in spans])
        return spans, _additive(_visible(self.depth, self.last, queries, keys, window)[:, None], dtype)


def tree_attention(depth: Tensor, last: Tensor, blocks: tuple[Block, ...] | None) -> TreeAttention:
    """Return the attention of a batch: in blocks where it has any."""
    return DenseAttention(depth, last) if blocks is None else BlockAttention(depth, last, blocks)


def dense_mask(depth: Tensor, last: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return a mask to be added to the attention scores of whole rows, [rows, 1, length, length]."""
    index = torch.arange(depth.shape[1], device=depth.device)
    return _additive(_visible(depth, last, index, index, window)[:, None], dtype)


@contextmanager
def attention_by(tree: TreeAttention, config: Any, layers: int) -> Iterator[dict[str, Any]]:
    """Let every layer of a model attend through ``tree``; yields what its decoder has to be called with.

    Args:
        tree: What attends.
        config: The model's config, which its layers share.
        layers: Number of layers that run.

    Raises:
        RuntimeError: If a layer attended in another way: its result would be wrong, and nothing would show it.
    """
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield {"position_ids": tree.depth, "tailorlib_tree": tree}
    finally:
        config._attn_implementation = before
    if tree.calls != layers:
        raise RuntimeError(
            f"All layers attend through the packed rows' own function; of {config.model_type!r}, {tree.calls} of "
            f"{layers} did."
        )


def _tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tailorlib_tree: TreeAttention,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do; it finds this one by its name in the config."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return tailorlib_tree(query, key, value, scale, sliding_window, softcap), None


# a name without a mask function of its own: the models then make no mask
AttentionInterface.register(_NAME, _tree_attention)


def _visible(depth: Tensor, last: Tensor, queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Say which queries see which keys, bool [rows, queries, keys]."""
    ahead = keys[None, :] <= queries[:, None]
    visible = ahead & (queries[None, :, None] <= last[:, None, keys])
    if window is not None:
        visible &= depth[:, queries, None] - depth[:, None, keys] < window
    return visible


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to be added to attention scores."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, torch.finfo(dtype).min)


def _gather(states: Tensor, spans: tuple[Span, ...]) -> Tensor:
    """Return some positions of keys or values, [rows, heads, keys, size]; one stretch is not copied."""
    parts = [states[:, :, start:stop] for start, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if softcap is None:
        shared = groups > 1
        if shared and query.device.type != "cpu":  # with a mask and shared heads only the CPU has a fast kernel
            key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
            shared = False
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=shared)
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * scale / softcap)
    weights = torch.softmax(scores + mask, dim=-1, dtype=torch.float32).to(query.dtype)
    return weights @ value
