"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tailorlib_strategies.operations.hyperparameters import Range
from tailorlib_strategies.operations.sparse import L1, SparseTaskVectors
from tailorlib_strategies.operations.sparsify import trim_


class TIES(SparseTaskVectors):
    """TIES-Merging (arXiv 2306.01708): theta = theta_base + scale * tau_m.

    Each task vector keeps its largest entries (trim), every entry takes the sign of the larger total mass
    (elect), and tau_m is the weighted mean of the entries that have it (disjoint merge). Of entries tied at the
    trim's threshold those that come first survive (mergekit 0.1.5: any, by an unstable sort).

    Args:
        density: Share of each task vector's entries that survive the trim, within (0, 1].
        scale: The factor of the merged task vector (lambda). For both: a number fixes it, a pair is searched.
        weights: The weight of each task vector.
        normalize: Whether to divide by the weights that agree; else tau_m is the weighted sum.
        rescale: ``"l1"`` gives each trimmed task vector back its L1 norm.
    """

    consensus = True
    rescales = ("none", "l1")

    def __init__(
        self,
        density: Range = (0.2, 1.0),
        scale: Range = (0.0, 1.5),
        weights: Range = 1.0,
        normalize: bool = True,
        rescale: L1 = "none",
    ) -> None:
        super().__init__(density=density, scale=scale, weights=weights, rescale=rescale, normalize=normalize)

    def sparsify(
        self, delta: Tensor, numbers: Mapping[str, float], generator: torch.Generator, *, unbiased: bool
    ) -> None:
        """Keep the entries of largest magnitude."""
        trim_(delta, numbers["density"])
