"""Breadcrumbs: drop the outliers of the task vectors as well as what is small, then merge."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tailorlib import Distribution
from tailorlib_strategies.operations.hyperparameters import Range, fixed, searched
from tailorlib_strategies.operations.sparse import L1, SparseTaskVectors
from tailorlib_strategies.operations.sparsify import trim_both_ends_


class Breadcrumbs(SparseTaskVectors):
    """Model Breadcrumbs (arXiv 2312.06795): theta = theta_base + scale * sum_k w_k m_k delta_k.

    m_k drops the share gamma of largest magnitude and keeps the share density that comes next. A positive density
    keeps one entry at least (mergekit 0.1.5 keeps none of a tensor with fewer than 1 / density), and of tied
    entries those that come first rank higher (mergekit: any, by an unstable sort).

    Args:
        density: Share of each task vector's entries that survive, within (0, 1].
        gamma: Share of each task vector's entries dropped from the top.
        scale: The factor of the summed task vectors (alpha). For all: a number fixes it, a pair is searched.
        weights: The weight w_k of each task vector.
        rescale: ``"l1"`` gives each sparse task vector back its L1 norm.
    """

    rescales = ("none", "l1")

    def __init__(
        self,
        density: Range = (0.2, 0.95),
        gamma: Range = 0.01,
        scale: Range = (0.0, 1.0),
        weights: Range = 1.0,
        rescale: L1 = "none",
    ) -> None:
        super().__init__(density=density, scale=scale, weights=weights, rescale=rescale)
        self.gamma = searched(f"{self.name}.gamma", gamma, low=0.0, high=1.0)

    def sparsity(self) -> Mapping[str, Distribution]:
        """Return the ranges of ``density`` and ``gamma``."""
        return {"density": self.density, "gamma": self.gamma}

    def sparsify(
        self, delta: Tensor, numbers: Mapping[str, float], generator: torch.Generator, *, unbiased: bool
    ) -> None:
        """Drop the largest entries, keep the next."""
        trim_both_ends_(delta, numbers["density"], numbers["gamma"])


class BreadcrumbsTIES(Breadcrumbs):
    """Model Breadcrumbs with the sign consensus of TIES: the disjoint mean of the m_k delta_k.

    The masks are those of :class:`Breadcrumbs`; mergekit 0.1.5 doesn't normalise unless told to.

    Args:
        density: Share of each task vector's entries that survive, within (0, 1].
        gamma: Share of each task vector's entries dropped from the top.
        scale: The factor of the merged task vector. For all: a number fixes it, a pair is searched.
        weights: The weight of each task vector.
        normalize: Whether to divide by the weights that agree; else what agrees is summed.
        rescale: ``"l1"`` gives each sparse task vector back its L1 norm.
    """

    consensus = True

    def __init__(
        self,
        density: Range = (0.2, 0.95),
        gamma: Range = 0.01,
        scale: Range = (0.0, 1.0),
        weights: Range = 1.0,
        normalize: bool = True,
        rescale: L1 = "none",
    ) -> None:
        super().__init__(density=density, gamma=gamma, scale=scale, weights=weights, rescale=rescale)
        self.normalize = fixed(f"{self.name}.normalize", normalize)
