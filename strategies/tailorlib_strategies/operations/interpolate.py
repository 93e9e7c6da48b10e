"""Interpolations between tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COLINEAR = 0.9995
"""Above this |cosine| the arc between two directions is numerically a line."""


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the mean of K tensors of one shape, with weights that sum to 1."""
    return torch.stack([w * t for w, t in zip(weights, tensors, strict=True)]).sum(dim=0)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate along the arc between two tensors, as flat vectors (Shoemake 1985).

    slerp(a, b; t) = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b with w the angle between a and b. Where they
    are (anti)parallel or one is zero, w says nothing, and the line (1 - t) a + t b takes its place.

    Args:
        a: A tensor of any shape; the result for t = 0.
        b: A tensor of the same shape; the result for t = 1.
        t: Position between them, in [0, 1].
    """
    length_a, length_b = a.norm(), b.norm()
    if length_a == 0 or length_b == 0:
        return torch.lerp(a, b, t)
    cosine = ((a / length_a).flatten() @ (b / length_b).flatten()).clamp(-1.0, 1.0)
    if cosine.abs() > COLINEAR:
        return torch.lerp(a, b, t)
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
