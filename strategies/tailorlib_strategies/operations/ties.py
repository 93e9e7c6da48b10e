"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.consensus import disjoint_mean
from tailorlib_strategies.operations.hyperparameters import Range, number, searched
from tailorlib_strategies.operations.sparsify import trim
from tailorlib_strategies.operations.task_arithmetic import task_vectors


class TIES(MergeOperation):
    """TIES-Merging (arXiv 2306.01708): theta = theta_base + scale * tau_m.

    Each task vector keeps its largest entries (trim), every entry takes the sign of the larger total mass
    (elect), and tau_m is the mean of the entries that have it (disjoint merge).

    Args:
        density: Share of each task vector's entries that survive the trim, within (0, 1].
        scale: The factor of the merged task vector (lambda). For both: a number fixes it, a pair is searched.
    """

    needs_base = True

    def __init__(self, density: Range = (0.2, 1.0), scale: Range = (0.0, 1.5)) -> None:
        self.density = searched("TIES.density", density, low=1e-6, high=1.0)
        self.scale = searched("TIES.scale", scale)

    def distributions(self) -> Mapping[str, Float]:
        """Return the ranges of ``density`` and ``scale``."""
        return {"density": self.density, "scale": self.scale}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return theta_base + scale * disjoint_mean(trim(delta_k))."""
        assert base is not None
        deltas = torch.stack([trim(d, number(params, "density")) for d in task_vectors(tensors, base)])
        return base + number(params, "scale") * disjoint_mean(deltas)
