"""DARE: drop entries of the task vectors at random, rescale the rest, then merge."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tailorlib_strategies.operations.hyperparameters import Range, fixed
from tailorlib_strategies.operations.sparse import Rescale, SparseTaskVectors
from tailorlib_strategies.operations.sparsify import drop_


class DARELinear(SparseTaskVectors):
    """DARE with task arithmetic (arXiv 2311.03099): theta = theta_base + scale * sum_k w_k m_k delta_k / density.

    m_k ~ Bernoulli(density), entry by entry, drawn from the source's own generator (mergekit 0.1.5: from the
    global one). The rescale is the paper's 1 / density; mergekit's, the factor that restores the L1 norm, differs
    from it by the sampling noise of the mask, and is ``rescale="l1"``.

    Args:
        density: Share of entries that survive the random drop (1 - p in the paper), within (0, 1].
        scale: The factor of the summed task vectors. For both: a number fixes it, a pair is searched.
        weights: The weight w_k of each task vector.
        rescale: What makes up for dropped entries: ``"density"``, ``"l1"`` or ``"none"``.
    """

    def __init__(
        self,
        density: Range = (0.1, 1.0),
        scale: Range = (0.0, 1.0),
        weights: Range = 1.0,
        rescale: Rescale = "density",
    ) -> None:
        super().__init__(density=density, scale=scale, weights=weights, rescale=rescale)

    def sparsify(
        self, delta: Tensor, numbers: Mapping[str, float], generator: torch.Generator, *, unbiased: bool
    ) -> None:
        """Keep each entry with probability ``density``."""
        drop_(delta, numbers["density"], generator, rescale=unbiased)


class DARETIES(DARELinear):
    """DARE with the sign consensus of TIES: the disjoint mean of the m_k delta_k / density.

    Masks and rescale are those of :class:`DARELinear`; mergekit 0.1.5 doesn't normalise unless told to.

    Args:
        density: Share of entries that survive the random drop (1 - p in the paper), within (0, 1].
        scale: The factor of the merged task vector. For both: a number fixes it, a pair is searched.
        weights: The weight of each task vector.
        normalize: Whether to divide by the weights that agree; else what agrees is summed.
        rescale: What makes up for dropped entries: ``"density"``, ``"l1"`` or ``"none"``.
    """

    consensus = True

    def __init__(
        self,
        density: Range = (0.1, 1.0),
        scale: Range = (0.0, 1.0),
        weights: Range = 1.0,
        normalize: bool = True,
        rescale: Rescale = "density",
    ) -> None:
        super().__init__(density=density, scale=scale, weights=weights, rescale=rescale)
        self.normalize = fixed(f"{self.name}.normalize", normalize)
