"""The family of sparse task arithmetic: sparsify each task vector, rescale it, then sum or find a consensus."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tailorlib import Distribution, MergeOperation, Params
from tailorlib_strategies.operations.blocks import blocks, run_sums
from tailorlib_strategies.operations.consensus import add_disjoint_mean
from tailorlib_strategies.operations.hyperparameters import Range, fixed, number, per_source, searched, word

L1 = Literal["none", "l1"]
"""What makes up for the entries that were dropped: nothing, or the factor that restores the L1 norm."""
Rescale = Literal["none", "density", "l1"]
"""The same for random masks; ``"density"`` divides survivors by their probability, which keeps the expectation."""


class SparseTaskVectors(MergeOperation):
    """theta = theta_base + scale * combine(w_k * rescale(sparsify(delta_k))) with delta_k = theta_k - theta_base.

    A subclass says how a task vector is sparsified, and by :attr:`consensus` how the sparse ones are combined:
    they are summed, or each entry takes a sign and those that have it are averaged. Numbers that steer the
    sparsification can differ between sources: the params of a tailoring may give a tuple, one number per source.
    """

    needs_base = True
    min_sources = 1
    consensus: ClassVar[bool] = False
    """Whether each entry takes the sign of the larger mass, and only what agrees is merged."""
    rescales: ClassVar[tuple[str, ...]] = ("none", "density", "l1")
    """The kinds of rescaling that the method has."""

    def __init__(
        self, *, density: Range, scale: Range, weights: Range, rescale: Rescale, normalize: bool = True
    ) -> None:
        self.density = searched(f"{self.name}.density", density, low=1e-6, high=1.0)
        self.scale = searched(f"{self.name}.scale", scale)
        self.weights = searched(f"{self.name}.weights", weights)
        self.rescale = fixed(f"{self.name}.rescale", rescale, self.rescales)
        self.normalize = fixed(f"{self.name}.normalize", normalize)

    def sparsity(self) -> Mapping[str, Distribution]:
        """Return the hyperparameters of the sparsification, numbers that each source may have its own of."""
        return {"density": self.density}

    def distributions(self) -> Mapping[str, Distribution]:
        """Return the ranges of the sparsification and of ``scale``; ``rescale`` and ``normalize`` are fixed."""
        shared = {**self.sparsity(), "scale": self.scale, "rescale": self.rescale}
        return {**shared, "normalize": self.normalize} if self.consensus else shared

    @abstractmethod
    def sparsify(
        self, delta: Tensor, numbers: Mapping[str, float], generator: torch.Generator, *, unbiased: bool
    ) -> None:
        """Set entries of a task vector to zero, in place.

        Args:
            delta: The task vector, contiguous.
            numbers: A value for each hyperparameter in :meth:`sparsity`.
            generator: The generator of its source.
            unbiased: Whether to divide what survives by its probability to do so.
        """

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return theta_base + scale * combine(w_k * rescale(sparsify(delta_k)))."""
        assert base is not None
        K = len(tensors)  # noqa: N806
        weights, scale = per_source(params, "weights", K), number(params, "scale")
        columns = {name: per_source(params, name, K) for name in self.sparsity()}
        sparse = (
            self._sparse(
                (tensors[k] - base).contiguous(), params, {n: c[k] for n, c in columns.items()}, generators[k]
            )
            for k in range(K)
        )
        if self.consensus:
            deltas, factors = zip(*sparse, strict=True)
            normalize = bool(params["normalize"])
            return add_disjoint_mean(
                base, deltas, weights=weights, factors=factors, scale=scale, normalize=normalize
            )
        total = torch.zeros_like(base, memory_format=torch.contiguous_format)
        for weight, (delta, factor) in zip(weights, sparse, strict=True):
            for part, piece in blocks(total, delta):
                part.add_(piece, alpha=weight * factor)
        for part, origin in blocks(total, base):
            torch.add(origin, part, alpha=scale, out=part)
        return total

    def _sparse(
        self, delta: Tensor, params: Params, numbers: Mapping[str, float], generator: torch.Generator
    ) -> tuple[Tensor, float]:
        """Sparsify a task vector in place; return it and the factor that is left to apply."""
        rescale = word(params, "rescale", self.rescales)
        before = _l1(delta) if rescale == "l1" else 0.0
        self.sparsify(delta, numbers, generator, unbiased=rescale == "density")
        after = _l1(delta) if rescale == "l1" else 0.0
        return delta, before / after if after > 0 else 1.0


def _l1(delta: Tensor) -> float:
    return math.fsum(s for (block,) in blocks(delta) for s in run_sums(block.abs()))
