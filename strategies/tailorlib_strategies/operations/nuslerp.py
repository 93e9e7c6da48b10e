"""NuSLERP: spherical interpolation by weights, of whole tensors or of their rows or columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from tailorlib import Distribution, MergeOperation, Params
from tailorlib_strategies.operations.blocks import add_task_vectors, gram, weighted_sum
from tailorlib_strategies.operations.hyperparameters import Range, fixed, per_source, searched, word
from tailorlib_strategies.operations.interpolate import arc, cosines, normalized

Vectors = Literal["tensor", "rows", "columns"]
_VECTORS = ("tensor", "rows", "columns")
_COLINEAR = 1 - 1e-6
"""Closer to (anti)parallel the float32 cosine no longer tells the angle; near 0 arc and line agree to 1e-7."""


class NuSLERP(MergeOperation):
    """Spherical interpolation of exactly two tensors by weights, as in mergekit's ``nuslerp`` without a base.

    theta = sin((1 - t) w) / sin(w) theta_1 + sin(t w) / sin(w) theta_2 with t = w_2 / (w_1 + w_2), 0.5 where the
    weights sum to zero. Antiparallel vectors take the line; within 1e-6 of a cosine of -1 mergekit 0.1.5 divides
    by the noise of a float32 sine.

    Args:
        weights: The weight of each source; a number gives both the same, a pair is searched.
        vectors: What is taken as a vector: the whole ``tensor``; its ``rows``, runs along the last dimension
            (mergekit's ``nuslerp_flatten: false``); or its ``columns``, along the first (its
            ``nuslerp_row_wise: true`` besides).
    """

    max_sources = 2

    def __init__(self, weights: Range = (0.0, 1.0), vectors: Vectors = "tensor") -> None:
        self.weights = searched(f"{self.name}.weights", weights)
        self.vectors = fixed(f"{self.name}.vectors", vectors, _VECTORS)

    def distributions(self) -> Mapping[str, Distribution]:
        """Return the fixed ``vectors``."""
        return {"vectors": self.vectors}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return the point at t on the arc, from the base if there is one."""
        _, t = normalized(per_source(params, "weights", 2))
        vectors = word(params, "vectors", _VECTORS)
        if vectors != "tensor":
            return _by_vector(tensors, base, t, dim=-1 if vectors == "rows" else 0)
        _, cosine = cosines(gram(tensors, base))
        coefficients = [float(c) for c in arc(cosine[0, 1], t, _COLINEAR)]
        if base is None:
            return weighted_sum(tensors, coefficients)
        return add_task_vectors(base, tensors, coefficients)


class TaskNuSLERP(NuSLERP):
    """NuSLERP of two task vectors: theta = theta_base + nuslerp(theta_1 - theta_base, theta_2 - theta_base).

    Args:
        weights: The weight of each task vector; a number gives both the same, a pair is searched.
        vectors: What is taken as a vector, as in :class:`NuSLERP`.
    """

    needs_base = True


def _by_vector(tensors: Sequence[Tensor], base: Tensor | None, t: float, dim: int) -> Tensor:
    vectors = tensors if base is None else [tensor - base for tensor in tensors]
    first, second = (vector.contiguous() for vector in vectors)  # or the bits depend on the strides
    lengths = first.norm(dim=dim, keepdim=True) * second.norm(dim=dim, keepdim=True)
    products = (first * second).sum(dim=dim, keepdim=True)
    cosine = torch.where(lengths > 0, products / lengths, 0.0).clamp_(-1.0, 1.0)
    a, b = arc(cosine, t, _COLINEAR)
    merged = (a * first).add_(b * second)
    return merged if base is None else merged.add_(base)
