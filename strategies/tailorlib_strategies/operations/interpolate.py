"""Interpolations between tensors as flat vectors.

Each result is a combination sum_k c_k theta_k, and its coefficients follow from the inner products of the tensors
alone. So one pass gives the products, a little arithmetic the coefficients, and one more pass the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

COLINEAR = 0.9995
"""Above this |cosine| SLERP takes the line for the arc."""


def normalized(weights: Sequence[float]) -> list[float]:
    """Return weights divided by their sum; equal weights where the sum is zero."""
    total = math.fsum(weights)
    if abs(total) <= 1e-8 * max(map(abs, weights)):
        return [1 / len(weights)] * len(weights)
    return [w / total for w in weights]


def cosines(products: Tensor) -> tuple[Tensor, Tensor]:
    """Return lengths (K,) and cosines (K, K) from inner products (K, K).

    A tensor of zeros has no direction; its cosines are 0, a right angle to all, its own included.
    """
    lengths = products.diagonal().sqrt()
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    return lengths, (products * inverse[:, None] * inverse).clamp_(-1.0, 1.0)


def arc(cosine: Tensor, t: float, colinear: float) -> tuple[Tensor, Tensor]:
    """Return the coefficients of spherical interpolation (Shoemake 1985).

    c_1 = sin((1 - t) w) / sin(w), c_2 = sin(t w) / sin(w) with w the angle between the two. Where they are
    (anti)parallel, w says nothing, and the line 1 - t, t takes its place.

    Args:
        cosine: cos(w), of any shape.
        t: Position from the first (0) to the second (1).
        colinear: The |cosine| above which the line is taken.
    """
    line = cosine.abs() > colinear
    angle = torch.acos(torch.where(line, 0.0, cosine))
    first, second = (torch.sin(s * angle) / torch.sin(angle) for s in (1 - t, t))
    return torch.where(line, 1 - t, first), torch.where(line, t, second)


def spherical_mean(products: Tensor, weights: Sequence[float]) -> list[float]:
    """Return the coefficients of the normalised mean direction, at the mean length.

    theta = (sum_k w_k |theta_k|) m / |m| with m = sum_k w_k theta_k / |theta_k|. Where m is zero (antipodes in
    balance) there is no mean direction, and the weighted sum takes its place.

    Args:
        products: Inner products (K, K) of the tensors.
        weights: w_k.
    """
    lengths, cosine = cosines(products)
    w = torch.tensor(weights, dtype=torch.float64)
    length = math.sqrt(max(0.0, float(w @ cosine @ w)))
    if length <= 1e-6 * float(w.abs().max()):
        return list(weights)
    scaled = float(w @ lengths) / length * w
    return [float(s / n) if n > 0 else 0.0 for s, n in zip(scaled, lengths, strict=True)]


def karcher_mean(products: Tensor, weights: Sequence[float], max_iter: int, tol: float) -> list[float]:
    """Return the coefficients of the Karcher mean, the direction with the least mean squared angle.

    On the unit sphere the gradient step x <- exp_x(sum_k w_k log_x(u_k)) is repeated from the normalised mean of
    the directions u_k = theta_k / |theta_k| (Karcher 1977; arXiv 2603.04972). All x lie in the span of the u_k, so
    the iteration runs on K coefficients. A direction opposite to x has no logarithm there and doesn't pull. The
    result has the mean length.

    Args:
        products: Inner products (K, K) of the tensors.
        weights: w_k, which sum to 1.
        max_iter: The largest number of steps.
        tol: A step shorter than this is the last; tensors shorter than this, relative to the longest, give no
            direction.
    """
    lengths, cosine = cosines(products)
    usable = lengths > tol * lengths.max()
    if not bool(usable.any()):
        return [0.0] * len(weights)
    w = torch.where(usable, torch.tensor(weights, dtype=torch.float64), 0.0)
    w = torch.tensor(normalized(w.tolist()), dtype=torch.float64) * usable

    def norm(c: Tensor) -> float:
        return math.sqrt(max(0.0, float(c @ cosine @ c)))

    first = torch.zeros_like(w)
    first[int(usable.to(torch.int8).argmax())] = 1.0
    x = w / norm(w) if norm(w) >= tol else first
    for _ in range(max_iter):
        dots = (cosine @ x).clamp(-1.0, 1.0)  # (K,)
        angles = torch.acos(dots)
        pulls = (angles >= tol) & (angles <= math.pi - 1e-3) & usable
        factors = torch.where(pulls, w * angles / torch.sin(angles), 0.0)
        tangent = factors - (factors @ dots) * x
        length = norm(tangent)
        if length < tol:
            break
        x = math.cos(length) * x + math.sin(length) / length * tangent
        x = x / norm(x)
    mean = math.fsum(a * float(n) for a, n in zip(weights, lengths, strict=True))
    return [mean * float(c / n) if u else 0.0 for c, n, u in zip(x, lengths, usable, strict=True)]
