# ruff: noqa: T201
"""Time merges against the same tensor arithmetic written by hand, in one run; run it as a script.

Both get three sources and a base of random float32 matrices. The sides take turns, and the ratio is that of their
fastest rounds. By hand, tied entries are all kept or all dropped, so a few entries can differ. Example::

    python tests/benchmarks/merge_speed.py --shape 4096 11008 --method TaskArithmetic TIES
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tailorlib.operation import OPERATIONS
from tailorlib.seeding import torch_generator

Hand = Callable[[Tensor, list[Tensor]], Tensor]
_clock = time.perf_counter


def linear(base: Tensor, tensors: list[Tensor]) -> Tensor:
    a, b, c = tensors
    return (a + b + c) / 3


def slerp(base: Tensor, tensors: list[Tensor]) -> Tensor:
    a, b = tensors
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return torch.sin(0.5 * angle) / torch.sin(angle) * (a + b)


def task_arithmetic(base: Tensor, tensors: list[Tensor]) -> Tensor:
    a, b, c = tensors
    return base + 0.5 * ((a - base) + (b - base) + (c - base))


def consensus(base: Tensor, vectors: list[Tensor]) -> Tensor:
    a, b, c = vectors
    sign = torch.where(a + b + c >= 0, 1.0, -1.0)
    agree = [v.sign() == sign for v in vectors]
    total = a * agree[0] + b * agree[1] + c * agree[2]
    return base + 0.5 * total / (agree[0].float() + agree[1] + agree[2]).clamp(min=1)


def trimmed(delta: Tensor) -> Tensor:
    magnitude = delta.abs().flatten()
    threshold = magnitude.kthvalue(magnitude.numel() // 2 + 1).values
    return delta * (delta.abs() >= threshold)


def ties(base: Tensor, tensors: list[Tensor]) -> Tensor:
    return consensus(base, [trimmed(t - base) for t in tensors])


def breadcrumbs(base: Tensor, tensors: list[Tensor]) -> Tensor:
    n, total = base.numel(), torch.zeros_like(base)
    for tensor in tensors:
        delta = tensor - base
        magnitude = delta.abs().flatten()
        high = magnitude.kthvalue(n - n // 100).values
        low = magnitude.kthvalue(n - n // 100 - n // 2 + 1).values
        total += delta * ((delta.abs() >= low) & (delta.abs() <= high))
    return base + 0.5 * total


def dropped(delta: Tensor, generator: torch.Generator) -> Tensor:
    return delta * (torch.rand(delta.shape, generator=generator) < 0.5) / 0.5


def dare_linear(base: Tensor, tensors: list[Tensor]) -> Tensor:
    vectors = [dropped(t - base, torch_generator(i)) for i, t in enumerate(tensors)]
    return base + 0.5 * (vectors[0] + vectors[1] + vectors[2])


def dare_ties(base: Tensor, tensors: list[Tensor]) -> Tensor:
    return consensus(base, [dropped(t - base, torch_generator(i)) for i, t in enumerate(tensors)])


def della_linear(base: Tensor, tensors: list[Tensor]) -> Tensor:
    total = torch.zeros_like(base)
    for i, tensor in enumerate(tensors):
        delta = tensor - base
        ranks = delta.abs().argsort(dim=-1).argsort(dim=-1)
        p = 0.4 + 0.2 * ranks / (delta.shape[-1] - 1)
        total += delta * (torch.rand(delta.shape, generator=torch_generator(i)) < p) / p
    return base + 0.5 * total


def model_stock(base: Tensor, tensors: list[Tensor]) -> Tensor:
    a, b, c = (t - base for t in tensors)
    x, y, z = a.norm(), b.norm(), c.norm()
    cosine = ((a * b).sum() / (x * y) + (a * c).sum() / (x * z) + (b * c).sum() / (y * z)) / 3
    t = 3 * cosine / (1 + 2 * cosine)
    return t * (tensors[0] + tensors[1] + tensors[2]) / 3 + (1 - t) * base


def sce(base: Tensor, tensors: list[Tensor]) -> Tensor:
    vectors = [t - base for t in tensors]
    variance = torch.stack(vectors).var(dim=0, correction=0)
    selected = variance >= variance.flatten().kthvalue(variance.numel() // 2 + 1).values
    vectors = [v * selected for v in vectors]
    sign = torch.where(vectors[0] + vectors[1] + vectors[2] >= 0, 1.0, -1.0)
    weights = [v.square().mean() * (v.sign() == sign) for v in vectors]
    total = vectors[0] * weights[0] + vectors[1] * weights[1] + vectors[2] * weights[2]
    return base + total / (weights[0] + weights[1] + weights[2]).clamp(min=1e-12)


METHODS: dict[str, tuple[Hand, dict[str, Any]]] = {
    "Linear": (linear, {}),
    "SLERP": (slerp, {"t": 0.5}),
    "TaskArithmetic": (task_arithmetic, {"scale": 0.5}),
    "TIES": (ties, {"density": 0.5, "scale": 0.5}),
    "DARELinear": (dare_linear, {"density": 0.5, "scale": 0.5}),
    "DARETIES": (dare_ties, {"density": 0.5, "scale": 0.5}),
    "DELLALinear": (della_linear, {"density": 0.5, "epsilon": 0.1, "scale": 0.5}),
    "Breadcrumbs": (breadcrumbs, {"density": 0.5, "gamma": 0.01, "scale": 0.5}),
    "ModelStock": (model_stock, {}),
    "SCE": (sce, {"select_topk": 0.5}),
}


def timed(call: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Return seconds and result."""
    start = _clock()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _clock() - start, result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=[1024, 2752])
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cpu-time", action="store_true", help="one thread and CPU seconds: for a busy machine")
    args = parser.parse_args()
    if args.cpu_time:
        global _clock
        _clock = time.process_time
        torch.set_num_threads(1)
    device = torch.device(args.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"machine: {machine}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"command: {shlex.join(sys.argv)}")
    draw = torch_generator("merge speed")
    base = torch.randn(args.shape, generator=draw).to(device)
    tensors = [base + 0.1 * torch.randn(args.shape, generator=draw).to(device) for _ in range(3)]
    print(f"{'method':16}{'operation':>12}{'by hand':>12}{'ratio':>8}{'entries that differ':>22}")
    for name in args.method:
        hand, given = METHODS[name]
        op: Any = OPERATIONS.get(name)()
        params = {n: d.default for n, d in op.distributions().items()} | given
        used = tensors[: op.max_sources]

        def ours(op: Any = op, used: list[Tensor] = used, params: dict[str, Any] = params) -> Tensor:
            generators = [torch_generator(i) for i in range(len(used))]
            merged: Tensor = op.apply(used, base=base, params=params, generators=generators)
            return merged

        def by_hand(hand: Hand = hand, used: list[Tensor] = used) -> Tensor:
            return hand(base, used)

        rounds = [(timed(ours, device), timed(by_hand, device)) for _ in range(args.rounds)]
        (fast, merged), (slow, expected) = (min(side, key=lambda t: t[0]) for side in zip(*rounds, strict=True))
        off = int(((merged - expected).abs() > 1e-3 * expected.abs().max()).count_nonzero())
        print(f"{name:16}{fast:10.3f} s{slow:10.3f} s{fast / slow:8.2f}{off:22}", flush=True)


if __name__ == "__main__":
    main()
