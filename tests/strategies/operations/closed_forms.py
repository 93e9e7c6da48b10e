"""Merge methods as their papers write them: naive, in float64, with sorts. Operations are checked against these.

Each takes tensors, base, params and weights, and starts from float32 task vectors, as any merge does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from merge_cases import generators
from torch import Tensor

Form = Callable[[Sequence[Tensor], Tensor, Mapping[str, Any], Sequence[float]], Tensor]


def deltas(tensors: Sequence[Tensor], base: Tensor) -> list[Tensor]:
    return [(t - base).double() for t in tensors]


def normalized(weights: Sequence[float]) -> list[float]:
    return [w / sum(weights) for w in weights]


def linear(tensors, base, params, weights):
    w = normalized(weights) if params["normalize"] else weights
    return sum(x * t.double() for x, t in zip(w, tensors, strict=True))


def task_arithmetic(tensors, base, params, weights):
    return base + params["scale"] * sum(w * d for w, d in zip(weights, deltas(tensors, base), strict=True))


def descending(delta: Tensor) -> Tensor:
    return torch.sort(delta.abs().flatten(), descending=True, stable=True).indices


def keep(delta: Tensor, indices: Tensor) -> Tensor:
    kept = torch.zeros(delta.numel(), dtype=torch.float64)
    kept[indices] = delta.flatten()[indices]
    return kept.view(delta.shape)


def trimmed(delta, generator, density, rescale):
    return keep(delta, descending(delta)[: max(1, int(density * delta.numel()))])


def without_outliers(delta, generator, density, gamma, rescale):
    n = delta.numel()
    kept = max(1, int(density * n))
    dropped = min(int(gamma * n), n - kept)
    return keep(delta, descending(delta)[dropped : dropped + kept])


def dropped(delta, generator, density, rescale):
    mask = torch.rand(delta.shape, generator=generator) < density
    return torch.where(mask, delta / (density if rescale == "density" else 1), 0.0)


def dropped_by_rank(delta, generator, density, epsilon, rescale):
    epsilon = min(epsilon, density, 1 - density)
    rows = delta.reshape(-1, delta.shape[-1])
    places = torch.linspace(-1, 1, rows.shape[1], dtype=torch.float64) if rows.shape[1] > 1 else torch.zeros(1)
    ranks = torch.sort(rows.abs(), stable=True).indices.argsort()  # 0 for the smallest of its row
    p = density + epsilon * places[ranks]
    survives = torch.rand(rows.shape, generator=generator) < p
    return torch.where(survives, rows / p if rescale == "density" else rows, 0.0).view(delta.shape)


def sparse_vectors(sparsify, tensors, base, params) -> list[Tensor]:
    """Return the sparse task vectors, rescaled."""
    found = []
    names = [name for name in ("density", "gamma", "epsilon") if name in params]
    for k, (delta, generator) in enumerate(zip(deltas(tensors, base), generators(len(tensors)), strict=True)):
        own = {n: params[n][k] if isinstance(params[n], tuple) else params[n] for n in names}
        sparse = delta if own["density"] == 1 else sparsify(delta, generator, **own, rescale=params["rescale"])
        if params["rescale"] == "l1" and bool(sparse.any()):
            sparse = sparse * (delta.abs().sum() / sparse.abs().sum())
        found.append(sparse)
    return found


def consensus(votes: Sequence[Tensor], factors: Sequence[float], weights: Sequence[float]):
    """Return the sum of what agrees in sign with the sum, and the weight of what does, entry by entry."""
    sign = torch.where(sum(votes) >= 0, 1.0, -1.0)
    total = sum(torch.where(v.sign() == sign, v, 0.0) * f for v, f in zip(votes, factors, strict=True))
    weight = sum((v.sign() == sign).double() * w for v, w in zip(votes, weights, strict=True))
    return total, torch.where(weight.abs() < 1e-9, 1.0, weight)


def sparse(sparsify: Callable[..., Tensor], *, agreeing: bool) -> Form:
    def form(tensors, base, params, weights):
        vectors = sparse_vectors(sparsify, tensors, base, params)
        votes = [w * v for w, v in zip(weights, vectors, strict=True)]
        if not agreeing:
            return base + params["scale"] * sum(votes)
        total, weight = consensus(votes, [1.0] * len(votes), weights)
        return base + params["scale"] * (total / weight if params["normalize"] else total)

    return form


def angle(a: Tensor, b: Tensor) -> float:
    lengths = float(a.norm() * b.norm())
    return math.acos(max(-1.0, min(1.0, float(a @ b) / lengths))) if lengths else math.pi / 2


def on_the_arc(a: Tensor, b: Tensor, t: float, colinear: float) -> Tensor:
    w = angle(a, b)
    if abs(math.cos(w)) > colinear:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * w) * a + math.sin(t * w) * b) / math.sin(w)


def slerp(tensors, base, params, weights):
    a, b = (t.double().flatten() for t in tensors)
    return on_the_arc(a, b, params["t"], 0.9995).view(base.shape)


def nuslerp(tensors, base, params, weights):
    t, (a, b) = weights[1] / sum(weights), (x.double() for x in tensors)
    if params["vectors"] == "tensor":
        return on_the_arc(a.flatten(), b.flatten(), t, 1 - 1e-6).view(a.shape)
    axis = -1 if params["vectors"] == "rows" else 0
    a, b = a.movedim(axis, -1), b.movedim(axis, -1)
    pairs = zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]), strict=True)
    merged = torch.stack([on_the_arc(x, y, t, 1 - 1e-6) for x, y in pairs])
    return merged.view(a.shape).movedim(-1, axis)


def multislerp(tensors, base, params, weights):
    """Include the step in the tangent space, which changes nothing."""
    w = normalized(weights) if params["normalize"] else weights
    flat = [t.double().flatten() for t in tensors]
    units = [v / (v.norm() or 1.0) for v in flat]
    mean = sum(x * u for x, u in zip(w, units, strict=True))
    if mean.norm() < 1e-9:
        return sum(x * t.double() for x, t in zip(w, tensors, strict=True))
    mean /= mean.norm()
    tangent = sum(x * (u - (u @ mean) * mean) for x, u in zip(w, units, strict=True))
    step = float(tangent.norm())
    point = mean * math.cos(step) + tangent * (math.sin(step) / step if step else 1.0)
    return (point * sum(x * v.norm() for x, v in zip(w, flat, strict=True))).view(base.shape)


def of_task_vectors(form: Form) -> Form:
    return lambda tensors, base, params, weights: base + form([t - base for t in tensors], base, params, weights)


def karcher(tensors, base, params, weights):
    w = normalized(weights)
    flat = [t.double().flatten() for t in tensors]
    longest = max(float(v.norm()) for v in flat)
    length = sum(x * float(v.norm()) for x, v in zip(w, flat, strict=True))
    used = [(x, v / v.norm()) for x, v in zip(w, flat, strict=True) if v.norm() > params["tol"] * longest]
    if not used:
        return torch.zeros(base.shape, dtype=torch.float64)
    total = sum(x for x, _ in used)
    point = sum(x / total * u for x, u in used)
    point = point / point.norm() if point.norm() >= params["tol"] else used[0][1]
    for _ in range(params["max_iter"]):
        tangent = torch.zeros_like(point)
        for x, u in used:
            w = angle(point, u)
            if params["tol"] <= w <= math.pi - 1e-3:
                tangent += x / total * w / math.sin(w) * (u - (u @ point) * point)
        step = float(tangent.norm())
        if step < params["tol"]:
            break
        point = math.cos(step) * point + math.sin(step) / step * tangent
        point /= point.norm()
    return (length * point).view(base.shape)


def model_stock(tensors, base, params, weights):
    if params["filter_wise"] and base.dim() > 1:
        rows = [t.reshape(-1, t.shape[-1]) for t in (base, *tensors)]
        whole = {"filter_wise": False}
        parts = [model_stock(others, origin, whole, weights) for origin, *others in zip(*rows, strict=True)]
        return torch.stack(parts).view(base.shape)
    vectors, K = [d.flatten() for d in deltas(tensors, base)], len(tensors)
    pairs = list(combinations(vectors, 2))
    cosine = sum(math.cos(angle(a, b)) for a, b in pairs) / len(pairs)
    bottom = 1 + (K - 1) * cosine
    t = K * cosine / bottom if abs(bottom) > 1e-6 else 0.0
    return t * sum(x.double() for x in tensors) / K + (1 - t) * base


def sce(tensors, base, params, weights):
    vectors = deltas(tensors, base)
    if params["select_topk"] < 1:
        variance = torch.stack(vectors).var(dim=0, correction=0)
        variance[(torch.stack(vectors) == vectors[0]).all(dim=0)] = 0
        varying = int((variance > 0).sum())
        best = descending(variance)[: max(1, int(params["select_topk"] * varying)) if varying else 0]
        vectors = [keep(v, best) for v in vectors]
    squares = [float(v.square().mean()) for v in vectors]
    eta = normalized(squares) if sum(squares) else [1.0] * len(squares)
    total, weight = consensus(vectors, eta, eta)
    return base + total / weight


def nearswap(tensors, base, params, weights):
    (delta,) = deltas(tensors, base)
    weight = torch.where(delta == 0, 1.0, (params["t"] / delta.abs())).clamp(0, 1)
    return base + weight * delta


def arcee_fusion(tensors, base, params, weights):
    p, q = (torch.softmax(t.double(), dim=-1) + 1e-8 for t in (tensors[0], base))
    scores = (tensors[0] - base).abs() * (p * (p / q).log()).sum(dim=-1, keepdim=True)
    ranked = scores.flatten().sort().values
    lower, median, upper = (float(ranked[int(q * (len(ranked) - 1))]) for q in (0.25, 0.5, 0.75))
    return torch.where(scores >= median + 1.5 * (upper - lower), tensors[0], base).double()


def ram(tensors, base, params, weights):
    vectors = deltas(tensors, base)
    changed = [d.abs() > params["epsilon"] for d in vectors]
    count = sum(c.double() for c in changed)
    merged = base.double()
    for delta, own in zip(vectors, changed, strict=True):
        alone, shared = own & (count == 1), own & (count > 1)
        ratio = float(shared.sum()) / float(alone.sum()) if bool(alone.any()) else 0.0
        reinforced = 1 + params.get("r", 0.0) * min(ratio, params.get("alpha", 0.0))
        merged = merged + reinforced * delta * alone + delta * shared / count.clamp(min=1)
    return merged


def folding(tensors, base, params, weights):
    first = tensors[0]
    return first + params["scale"] * sum((t - first).double() for t in tensors[1:])
