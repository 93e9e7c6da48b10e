"""Layouts, spaces of every kind, and enumeration of small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import torch
from tailorlib_strategies.operations import (
    SLERP,
    TIES,
    LayerFolding,
    LayerRemoval,
    ResidualScale,
    TaskArithmetic,
)
from tailorlib_strategies.search_spaces import (
    DepthIntegrationSpace,
    FoldingSpace,
    LayerFusionSpace,
    PruningSpace,
)
from torch import Tensor

from tailorlib import (
    Categorical,
    Distribution,
    FamilyLayout,
    Float,
    Integer,
    MergeOperation,
    Params,
    SearchSpace,
    Subset,
)
from tailorlib.operation import OPERATIONS


class Weighted(MergeOperation):
    """A weighted sum, as an operation with weights to search."""

    def __init__(self, weights: Distribution | None = None, sharpness: Sequence[str] = ()) -> None:
        self.weights = Float(0.0, 2.0) if weights is None else weights
        self.sharpness = tuple(sharpness)

    def distributions(self) -> Mapping[str, Distribution]:
        return {"sharpness": Categorical(self.sharpness)} if self.sharpness else {}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        weights: Any = params["weights"]
        return torch.stack([w * t for w, t in zip(weights, tensors, strict=True)]).sum(dim=0)


class Pair(Weighted):
    """Merges exactly two."""

    max_sources = 2


class Triple(Weighted):
    """Merges three or more."""

    min_sources = 3


class Single(Weighted):
    """Changes one candidate, and merges no two."""

    min_sources, max_sources, needs_base = 1, 1, True

    def __init__(self, sharpness: Sequence[str] = ()) -> None:
        super().__init__(FIXED, sharpness)


class Alone(Single):
    """Another one."""


FIXED = Float(1.0, 1.0)
TWO_WEIGHTS = Categorical((0.5, 1.0))


EVERY_OPERATION = [cls() for cls in OPERATIONS.load_all().values() if issubclass(cls, MergeOperation)]
"""Every registered merge operation, as a recipe names it without settings."""


def layout(num_layers: int = 6, candidates: str = "abc", kinds: str = "") -> FamilyLayout:
    """Return a layout; ``kinds`` names the layers' kinds by a letter each."""
    return FamilyLayout(tuple(candidates), num_layers, tuple(kinds or "f" * num_layers))


Case = tuple[Callable[[], SearchSpace], FamilyLayout]
REMOVAL = {"removal": LayerRemoval(count=2)}
CASES: dict[str, Case] = {
    "pruning: removal only": (lambda: PruningSpace(**REMOVAL), layout(candidates="")),
    "pruning: nothing removed": (lambda: PruningSpace(LayerRemoval(count=0)), layout()),
    "pruning: one candidate": (lambda: PruningSpace(**REMOVAL, merges=[TaskArithmetic()]), layout(candidates="a")),
    "pruning: no selection, no merges": (lambda: PruningSpace(**REMOVAL, selection=None), layout()),
    "pruning: merges": (lambda: PruningSpace(**REMOVAL, merges=[TaskArithmetic(), TIES(density=0.5)]), layout()),
    "pruning: unlike arity": (
        lambda: PruningSpace(**REMOVAL, merges=[SLERP(), Triple(), TaskArithmetic()]),
        layout(candidates="abcd"),
    ),
    "pruning: weights": (lambda: PruningSpace(**REMOVAL, merges=[Weighted(), TIES()]), layout()),
    "pruning: fixed weights": (
        lambda: PruningSpace(**REMOVAL, merges=[Weighted(Float(0.5, 0.5)), Pair(FIXED)]),
        layout(),
    ),
    "pruning: one candidate, changed or not": (
        lambda: PruningSpace(**REMOVAL, merges=[Single("xy")]),
        layout(candidates="a"),
    ),
    "pruning: candidates changed alone": (
        lambda: PruningSpace(**REMOVAL, merges=[Single(), TIES(), Alone("xy")]),
        layout(),
    ),
    "pruning: every operation": (lambda: PruningSpace(**REMOVAL, merges=EVERY_OPERATION), layout()),
    "pruning: residual scale and outer parts": (
        lambda: PruningSpace(
            **REMOVAL,
            merges=[TaskArithmetic()],
            residual_scale=ResidualScale(attention=0.9, mlp=(0.5, 1.5)),
            outer=["head", "embeddings"],
        ),
        layout(),
    ),
    "folding: base only": (lambda: FoldingSpace(**REMOVAL), layout(candidates="")),
    "folding: selection": (lambda: FoldingSpace(**REMOVAL, folding=LayerFolding((0.0, 1.0))), layout()),
    "folding: merges": (
        lambda: FoldingSpace(
            LayerRemoval(count=2, protect=[1]),
            merges=[Weighted(), TaskArithmetic()],
            residual_scale=ResidualScale(),
        ),
        layout(kinds="ssfsss"),
    ),
    "folding: merges without selection": (
        lambda: FoldingSpace(**REMOVAL, selection=None, merges=[TaskArithmetic()]),
        layout(),
    ),
    "depth: stacks": (lambda: DepthIntegrationSpace(), layout()),
    "depth: blocks, one shorter": (
        lambda: DepthIntegrationSpace(4, stack=3, residual_scale=ResidualScale()),
        layout(),
    ),
    "depth: blocks can go": (lambda: DepthIntegrationSpace(2, stack=(0, 2)), layout(5)),
    "depth: an exact number goes": (
        lambda: DepthIntegrationSpace(2, stack=2, removal=LayerRemoval(count=1, protect=[0])),
        layout(),
    ),
    "depth: not too deep": (lambda: DepthIntegrationSpace(2, stack=(0, 3), max_layers=5), layout(7, "ab")),
    "depth: not too deep, some removed": (
        lambda: DepthIntegrationSpace(stack=3, removal=LayerRemoval(0.3), max_layers=8),
        layout(),
    ),
    "fusion: selection": (lambda: LayerFusionSpace(), layout()),
    "fusion: merges in bins": (
        lambda: LayerFusionSpace(
            granularity=4, merges=[Weighted(), TIES(), SLERP()], residual_scale=ResidualScale()
        ),
        layout(),
    ),
    "fusion: removal": (
        lambda: LayerFusionSpace(["self_attn.q", "self_attn", "mlp"], 2, removal=LayerRemoval(0.4, protect=[0])),
        layout(),
    ),
    "fusion: no filters, outer parts": (
        lambda: LayerFusionSpace([], 2, merges=[TaskArithmetic()], outer=["embeddings", "norm", "head"]),
        layout(),
    ),
    "fusion: base only": (lambda: LayerFusionSpace(selection=None, removal=LayerRemoval(count=1)), layout()),
}

TINY: dict[str, Case] = {
    "tiny pruning: selection": (lambda: PruningSpace(LayerRemoval(count=1)), layout(4)),
    "tiny pruning: pairs": (lambda: PruningSpace(LayerRemoval(count=1), merges=[Pair(FIXED)]), layout(4, "ab")),
    "tiny pruning: discrete weights": (
        lambda: PruningSpace(LayerRemoval(count=1), merges=[Weighted(TWO_WEIGHTS, "xy"), Pair(FIXED)]),
        layout(2, "ab"),
    ),
    "tiny pruning: three sources": (
        lambda: PruningSpace(LayerRemoval(count=0), merges=[Pair(TWO_WEIGHTS), Triple(FIXED, "xy"), TIES()]),
        layout(1),
    ),
    "tiny pruning: one candidate, always changed": (
        lambda: PruningSpace(LayerRemoval(count=1), merges=[Single("xy")], selection=None),
        layout(3, "a"),
    ),
    "tiny pruning: changed alone or not": (
        lambda: PruningSpace(LayerRemoval(count=1), merges=[Single("xy"), Pair(FIXED), Alone()]),
        layout(2, "ab"),
    ),
    "tiny pruning: outer parts": (
        lambda: PruningSpace(
            LayerRemoval(count=1), merges=[TaskArithmetic()], outer=["norm", "embeddings"], selection=None
        ),
        layout(3, "ab"),
    ),
    "tiny folding: selection": (lambda: FoldingSpace(LayerRemoval(count=2)), layout(5, "ab")),
    "tiny folding: kinds": (lambda: FoldingSpace(LayerRemoval(count=2, protect=[-1])), layout(7, "a", "ssfssss")),
    "tiny folding: merges": (
        lambda: FoldingSpace(LayerRemoval(count=1), merges=[Pair(FIXED)]),
        layout(3, "ab"),
    ),
    "tiny folding: base": (lambda: FoldingSpace(LayerRemoval(ratio=0.5)), layout(8, "")),
    "tiny depth: stacks": (lambda: DepthIntegrationSpace(2), layout(5, "a")),
    "tiny depth: blocks can go": (lambda: DepthIntegrationSpace(stack=(0, 2)), layout(3, "a")),
    "tiny depth: none or one": (lambda: DepthIntegrationSpace(stack=(0, 1)), layout(5, "a")),
    "tiny depth: an exact number goes": (
        lambda: DepthIntegrationSpace(2, stack=2, removal=LayerRemoval(count=1, protect=[1])),
        layout(5, "a"),
    ),
    "tiny depth: not too deep": (lambda: DepthIntegrationSpace(2, stack=(0, 2), max_layers=4), layout(5, "a")),
    "tiny depth: always two": (lambda: DepthIntegrationSpace(2, stack=(2, 2)), layout(3, "ab")),
    "tiny depth: at least two": (lambda: DepthIntegrationSpace(stack=(2, 3), max_layers=7), layout(3, "")),
    "tiny depth: not too deep, some removed": (
        lambda: DepthIntegrationSpace(2, stack=2, removal=LayerRemoval(count=1), max_layers=5),
        layout(5, "a"),
    ),
    "tiny fusion: selection": (lambda: LayerFusionSpace(), layout(2, "ab")),
    "tiny fusion: removal": (
        lambda: LayerFusionSpace(["mlp"], 2, removal=LayerRemoval(count=2)),
        layout(5, "a"),
    ),
    "tiny fusion: merges": (
        lambda: LayerFusionSpace(["mlp"], 2, merges=[Weighted(TWO_WEIGHTS)], removal=LayerRemoval(count=1)),
        layout(2, "ab"),
    ),
    "tiny fusion: a bin can go": (
        lambda: LayerFusionSpace(["mlp"], 1, removal=LayerRemoval(count=1, protect=[1]), outer=["norm"]),
        layout(3, "a"),
    ),
}


def made(case: Case) -> SearchSpace:
    """Return a space, set up."""
    space = case[0]()
    space.setup(case[1])
    return space


def values(distribution: Distribution) -> list[Any]:
    """Return all values of a distribution; one of a continuous one."""
    match distribution:
        case Categorical(choices=choices):
            return list(choices)
        case Integer(low=low, high=high):
            return list(range(low, high + 1))
        case Subset(n=n, k=k):
            return list(combinations(range(n), k))
        case Float(low=low):
            return [low]
    raise AssertionError(distribution)


def assignments(space: SearchSpace) -> Iterator[Params]:
    """Yield every assignment of a small space."""
    choices = {name: values(d) for name, d in space.distributions().items()}
    for chosen in product(*choices.values()):
        yield dict(zip(choices, chosen, strict=True))
