"""Arithmetic in blocks that fit a CPU's cache, and the sums of tensors that the merges share.

A merge passes over its tensors many times. Block by block it reads each of them from memory once, and makes no
temporary tensor of their size. Elsewhere than on a CPU a tensor is one block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

BLOCK = 1 << 17
"""Entries of a block, for up to four threads: half a megabyte in float32."""
_GRAIN = 1 << 15
"""Entries that torch gives a thread of its own for."""
_RUN = 1 << 14
"""Entries that are summed in float32 by one thread."""

Blocks = tuple[Tensor, ...]


def blocks(*tensors: Tensor) -> Iterator[Blocks]:
    """Yield matching pieces of tensors of one shape, flattened; of a contiguous tensor they are views."""
    flat = [t.reshape(-1) for t in tensors]
    n = flat[0].numel()
    step = max(BLOCK, torch.get_num_threads() * _GRAIN) if tensors[0].device.type == "cpu" else max(n, 1)
    for start in range(0, n, step):
        yield tuple(t[start : start + step] for t in flat)


def by_block(compute: Callable[[Blocks], Tensor], *tensors: Tensor) -> Tensor:
    """Return ``compute`` of each block of tensors of one shape, put together in that shape."""
    result = torch.empty(tensors[0].shape, dtype=tensors[0].dtype, device=tensors[0].device)
    for out, *pieces in blocks(result, *tensors):
        out.copy_(compute(tuple(pieces)))
    return result


def weighted_sum(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return sum_k c_k theta_k."""

    def compute(pieces: Blocks) -> Tensor:
        total = pieces[0] * coefficients[0]
        for piece, coefficient in zip(pieces[1:], coefficients[1:], strict=True):
            total.add_(piece, alpha=coefficient)
        return total

    return by_block(compute, *tensors)


def add_task_vectors(
    base: Tensor, tensors: Sequence[Tensor], coefficients: Sequence[float], scale: float = 1.0
) -> Tensor:
    """Return theta_base + scale * sum_k c_k (theta_k - theta_base)."""

    def compute(pieces: Blocks) -> Tensor:
        origin, *others = pieces
        total = torch.zeros_like(origin)
        for piece, coefficient in zip(others, coefficients, strict=True):
            total.add_(piece - origin, alpha=coefficient)
        return origin.add(total, alpha=scale)

    return by_block(compute, base, *tensors)


def run_sums(values: Tensor) -> list[float]:
    """Return the sums of runs of a block's entries, to be added by ``math.fsum``.

    So a sum has the same bits for any number of threads, any size of block and any place in memory (which those of
    ``torch.sum`` and ``torch.dot`` haven't).
    """
    whole = len(values) // _RUN * _RUN
    sums: list[float] = values[:whole].view(-1, _RUN).sum(dim=1).tolist()
    return [*sums, float(values[whole:].sum())] if whole < len(values) else sums


def gram(tensors: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
    """Return the inner products of tensors as flat vectors, or of their task vectors if there is a base.

    Returns:
        (K, K) float64 on the CPU.
    """
    K = len(tensors)  # noqa: N806
    pairs = list(combinations_with_replacement(range(K), 2))
    sums: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for pieces in blocks(*tensors, *([] if base is None else [base])):
        vectors = pieces if base is None else [piece - pieces[-1] for piece in pieces[:-1]]
        for i, j in pairs:
            sums[i, j] += run_sums(vectors[i] * vectors[j])
    products = torch.zeros(K, K, dtype=torch.float64)
    for i, j in pairs:
        products[i, j] = products[j, i] = math.fsum(sums[i, j])
    return products
