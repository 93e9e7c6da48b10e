"""DELLA: drop small entries of the task vectors more often than large ones, rescale the rest, then merge."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tailorlib import Distribution
from tailorlib_strategies.operations.hyperparameters import Range, fixed, searched
from tailorlib_strategies.operations.sparse import Rescale, SparseTaskVectors
from tailorlib_strategies.operations.sparsify import drop_by_rank_


class DELLALinear(SparseTaskVectors):
    """DELLA (arXiv 2406.11617) without sign consensus: theta = theta_base + scale * sum_k w_k m_k delta_k / p_k.

    m_k ~ Bernoulli(p_k), entry by entry. p_k runs from density - epsilon to density + epsilon with the rank of the
    entry's magnitude in its row. Each survivor is divided by its own p_k, as in the paper; mergekit 0.1.5 restores
    the L1 norm (``rescale="l1"``), draws from the global generator, refuses an epsilon that leaves (0, 1) (here it
    is cut to what fits), and fails on rows of one entry (here their p_k is the density).

    Args:
        density: Mean share of entries that survive, within (0, 1].
        epsilon: Half the width of the probabilities, as in mergekit; the paper's epsilon is the whole.
        scale: The factor of the summed task vectors. For all: a number fixes it, a pair is searched.
        weights: The weight w_k of each task vector.
        rescale: What makes up for dropped entries: ``"density"``, ``"l1"`` or ``"none"``.
    """

    def __init__(
        self,
        density: Range = (0.3, 0.9),
        epsilon: Range = 0.1,
        scale: Range = (0.0, 1.0),
        weights: Range = 1.0,
        rescale: Rescale = "density",
    ) -> None:
        super().__init__(density=density, scale=scale, weights=weights, rescale=rescale)
        self.epsilon = searched(f"{self.name}.epsilon", epsilon, low=0.0, high=0.5)

    def sparsity(self) -> Mapping[str, Distribution]:
        """Return the ranges of ``density`` and ``epsilon``."""
        return {"density": self.density, "epsilon": self.epsilon}

    def sparsify(
        self, delta: Tensor, numbers: Mapping[str, float], generator: torch.Generator, *, unbiased: bool
    ) -> None:
        """Keep each entry with a probability that grows with its rank."""
        drop_by_rank_(delta, numbers["density"], numbers["epsilon"], generator, rescale=unbiased)


class DELLA(DELLALinear):
    """DELLA (arXiv 2406.11617): the disjoint mean of TIES over randomly dropped, rescaled task vectors.

    Masks and rescale are those of :class:`DELLALinear`.

    Args:
        density: Mean share of entries that survive, within (0, 1].
        epsilon: Half the width of the probabilities, as in mergekit; the paper's epsilon is the whole.
        scale: The factor of the merged task vector. For all: a number fixes it, a pair is searched.
        weights: The weight of each task vector.
        normalize: Whether to divide by the weights that agree; else what agrees is summed.
        rescale: What makes up for dropped entries: ``"density"``, ``"l1"`` or ``"none"``.
    """

    consensus = True

    def __init__(
        self,
        density: Range = (0.3, 0.9),
        epsilon: Range = 0.1,
        scale: Range = (0.0, 1.0),
        weights: Range = 1.0,
        normalize: bool = True,
        rescale: Rescale = "density",
    ) -> None:
        super().__init__(density=density, epsilon=epsilon, scale=scale, weights=weights, rescale=rescale)
        self.normalize = fixed(f"{self.name}.normalize", normalize)
