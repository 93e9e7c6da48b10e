"""DARE: drop entries of the task vectors at random, rescale the rest, then merge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.consensus import disjoint_mean
from tailorlib_strategies.operations.hyperparameters import Range, number, searched
from tailorlib_strategies.operations.sparsify import drop_and_rescale
from tailorlib_strategies.operations.task_arithmetic import task_vectors


class _DARE(MergeOperation):
    """DARE (arXiv 2311.03099): theta = theta_base + scale * combine(m_k * delta_k / density).

    m_k ~ Bernoulli(density), entry by entry. The rescale is the paper's 1 / density (mergekit 0.1.5 restores
    the L1 norm instead, which differs by the sampling noise of the mask).
    """

    needs_base = True

    def __init__(self, density: Range = (0.1, 1.0), scale: Range = (0.0, 1.0)) -> None:
        self.density = searched(f"{self.name}.density", density, low=1e-6, high=1.0)
        self.scale = searched(f"{self.name}.scale", scale)

    def distributions(self) -> Mapping[str, Float]:
        """Return the ranges of ``density`` and ``scale``."""
        return {"density": self.density, "scale": self.scale}

    @abstractmethod
    def combine(self, deltas: Tensor) -> Tensor:
        """Make one task vector (...) of the K sparse ones (K, ...)."""

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return theta_base + scale * combine(drop_and_rescale(delta_k))."""
        assert base is not None
        density = number(params, "density")
        pairs = zip(task_vectors(tensors, base), generators, strict=True)
        deltas = torch.stack([drop_and_rescale(delta, density, generator) for delta, generator in pairs])
        return base + number(params, "scale") * self.combine(deltas)


class DARELinear(_DARE):
    """DARE with task arithmetic: theta = theta_base + scale * sum_k m_k * delta_k / density.

    Args:
        density: Share of entries that survive the random drop (1 - p in the paper), within (0, 1].
        scale: The factor of the summed task vectors. For both: a number fixes it, a pair is searched.
    """

    def combine(self, deltas: Tensor) -> Tensor:
        """Return the sum of the sparse task vectors."""
        return deltas.sum(dim=0)


class DARETIES(_DARE):
    """DARE with the sign consensus of TIES: the disjoint mean of the m_k * delta_k / density.

    Args:
        density: Share of entries that survive the random drop (1 - p in the paper), within (0, 1].
        scale: The factor of the merged task vector. For both: a number fixes it, a pair is searched.
    """

    def combine(self, deltas: Tensor) -> Tensor:
        """Return the mean of the entries that have the elected sign."""
        return disjoint_mean(deltas)
