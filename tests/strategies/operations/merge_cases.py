"""Families of tensors to merge, easy and adversarial, and calls of an operation and its peer in mergekit 0.1.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mergekit.merge_methods import registry as mergekit
from mergekit.merge_methods.base import TensorGroup
from torch import Tensor

from tailorlib import MergeOperation, Params
from tailorlib.seeding import torch_generator

G = torch.Generator().manual_seed(0)
SAME = torch.randn(6, 5, generator=G)
BASE = torch.randn(24, 16, generator=G)


def random(*shape: int, number: int = 4) -> list[Tensor]:
    return [torch.randn(shape, generator=G) for _ in range(number)]


FAMILIES: dict[str, dict[str, list[Tensor]]] = {  # base first
    "float32": {
        "matrix": random(16, 12),
        "two models": random(8, 8, number=3),
        "vector": random(33),
        "three dimensions": random(4, 3, 5),
        "fine-tunes": [BASE, *(BASE + 0.1 * torch.randn(24, 16, generator=G) for _ in range(3))],
        "several blocks": random(380, 360),
        "transposed": [t.T for t in random(9, 14)],
    },
    "bfloat16": {
        "bfloat16": [t.bfloat16() for t in random(16, 12)],
        "bfloat16 fine-tunes": [
            BASE.bfloat16(),
            *((BASE + 0.1 * torch.randn(24, 16, generator=G)).bfloat16() for _ in range(3)),
        ],
        "bfloat16 in blocks": [t.bfloat16() for t in random(380, 360)],
    },
    "edge cases": {
        "one element": random(1),
        "rank 1": [torch.outer(a, b) for a, b in zip(random(7), random(9), strict=True)],
        "all zero": [torch.zeros(4, 4) for _ in range(4)],
        "zeros among others": [SAME, torch.zeros(6, 5), *random(6, 5, number=2)],
        "equal models": [SAME, *(SAME + 0.5 for _ in range(3))],
        "equal to the base": [SAME] * 4,
        "one equal to the base": [SAME, torch.randn(6, 5, generator=G), SAME, torch.randn(6, 5, generator=G)],
        "opposite signs": [torch.zeros(6, 5), SAME, -SAME, 0.5 * SAME],
        "large": [1e12 * t for t in random(300, 200)],
        "small": [1e-6 * t for t in random(12, 10)],
    },
}
ALL = {name: family for group in FAMILIES.values() for name, family in group.items()}


def sources(op: MergeOperation, family: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors to merge: as many of the family's models as the operation takes."""
    return list(family[1 : 1 + (op.max_sources or len(family))])


def generators(number: int, seed: int = 0) -> list[torch.Generator]:
    return [torch_generator(seed, f"model {i}", "a.weight") for i in range(number)]


def apply(op: MergeOperation, family: Sequence[Tensor], seed: int = 0, **params: Any) -> Tensor:
    """Merge a family; what isn't given of the params is the middle of its range."""
    tensors = sources(op, family)
    defaults = {name: distribution.default for name, distribution in op.distributions().items()}
    full: Params = {**defaults, **params}
    return op.apply(tensors, base=family[0], params=full, generators=generators(len(tensors), seed))


def peer(method: str, tensors: Sequence[Tensor], base: Tensor | None = None, **parameters: Any) -> Tensor:
    """Run a mergekit method in float32; parameters of each model are lists in their order."""
    inputs = [t.float() for t in (*([] if base is None else [base]), *tensors)]
    group = TensorGroup.from_tensors(inputs, base_index=None if base is None else 0)
    (merged,) = mergekit.get(method)((group,), parameters=parameters)
    return merged


def deviation(ours: Tensor, theirs: Tensor, base: Tensor) -> float:
    """Return the largest difference, relative to the largest entry of the result or of the base."""
    difference = float((ours.double() - theirs.double()).abs().max())
    return difference / (max(float(t.abs().max()) for t in (theirs, base)) or 1.0)
