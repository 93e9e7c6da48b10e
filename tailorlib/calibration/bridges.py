"""Bridges: what a layer's MLP adds beside its own share, so that the layers above find the stream that they knew.

Layer l is kept, and the next kept one is m > l + 1. With the teacher's stream (see :mod:`~.moments`)

    Delta(l -> m) = argmin | R^(1/2) (Z_l D^T - (H_m - H_{l+1})) |^2 + lambda mean(diag G_l) |D|^2
                  = ( (G_l + lambda mean(diag G_l) I)^-1 C_l,m )^T

is added to the matrix that Z_l is multiplied with. Nothing in it depends on a candidate: inputs and targets are
both the teacher's. One factorisation of G_l for each lambda serves all m.

lambda is chosen per bridge on text that is held out of the fit: the one of the least mean error over the domains,
among those that leave no domain with a larger error than no bridge at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError

RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Values of lambda to choose from."""


@dataclass(frozen=True)
class Solution:
    """What is added to a matrix.

    Args:
        delta: Float32, [f, d]: the transpose of what is added to a matrix [d, f]; [d] for a norm's weight.
        ridge: The lambda that was chosen.
        left: Share of the squared error that is left on held-out text, by domain; 1 is no correction at all.
    """

    delta: Tensor
    ridge: float
    left: Mapping[str, float]


class Ridge:
    """Ridge regression on one set of inputs, of any number of targets.

    One Cholesky factorisation for each lambda serves all targets. (An eigendecomposition would serve all lambdas,
    and takes a hundred times as long.)

    Args:
        gram: Z^T Z, float32, [f, f]; its diagonal alone, [f], for regressions of each column by itself.
        held: Inputs on held-out text by domain, [tokens, f].
        where: What the inputs are, for messages.
        ridges: Values of lambda to choose from.
        mapped: A matrix W, [d, f]: the correction is a map of W z then, and not of z itself.

    Raises:
        ModelError: If a sum is not finite.
    """

    def __init__(
        self,
        gram: Tensor,
        held: Mapping[str, Tensor],
        where: str,
        ridges: Sequence[float] = RIDGES,
        mapped: Tensor | None = None,
    ) -> None:
        if not bool(torch.isfinite(gram).all()):
            raise ModelError(
                f"The activations of {where} on the calibration text hold NaN or Inf. Compute in another data "
                "type, or take another teacher."
            )
        self.ridges, self.where, self.mapped = tuple(ridges), where, mapped
        if mapped is not None:
            gram = mapped @ gram @ mapped.T
            held = {domain: z @ mapped.T for domain, z in held.items()}
        self.gram, self.held = gram, held
        diagonal = gram if gram.dim() == 1 else gram.diagonal()
        self.mean = max(float(diagonal.mean()), 1e-30)

    def solve(
        self, crosses: Mapping[int, Tensor], targets: Mapping[int, Mapping[str, Tensor]]
    ) -> dict[int, Solution]:
        """Return the regressions of some targets, each with the lambda that is best for it.

        Args:
            crosses: Z^T Y of each target, [f, d]; [d] where the Gram matrix is a diagonal.
            targets: Y of each on held-out text by domain, [tokens, d].

        Raises:
            ModelError: If there is no solution.
        """
        if self.mapped is not None:
            crosses = {key: self.mapped @ cross for key, cross in crosses.items()}
        best: dict[int, tuple[tuple[bool, float], Solution]] = {}
        for ridge in self.ridges:
            for key, delta in self._solved(ridge, crosses):
                left = self._left(delta, targets[key])
                worst = max(left.values(), default=0.0)
                sound = worst <= 1  # no domain is worse than without
                rank = (not sound, _mean(left) if sound else worst)
                if bool(torch.isfinite(delta).all()) and (key not in best or rank < best[key][0]):
                    best[key] = rank, Solution(delta, ridge, left)
        if len(best) < len(crosses):
            raise ModelError(f"The correction of {self.where} has no finite solution. Give more calibration text.")
        found = {key: solution for key, (_, solution) in best.items()}
        if self.mapped is None:
            return found
        return {key: replace(solution, delta=self.mapped.T @ solution.delta) for key, solution in found.items()}

    def _solved(self, ridge: float, crosses: Mapping[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Yield the solution of each target for one lambda; none if the system is singular."""
        if self.gram.dim() == 1:
            scales = 1 / (self.gram + ridge * self.mean)
            yield from ((key, cross * scales) for key, cross in crosses.items())
            return
        padded = self.gram.clone()
        padded.diagonal().add_(ridge * self.mean)
        factor, fault = torch.linalg.cholesky_ex(padded)
        if int(fault) == 0:
            yield from ((key, torch.cholesky_solve(cross, factor)) for key, cross in crosses.items())

    def _left(self, delta: Tensor, targets: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the share of the squared error that is left on each held-out domain."""
        found = {}
        for domain, target in targets.items():
            z = self.held[domain]
            reached = z * delta if self.gram.dim() == 1 else z @ delta
            before = float(target.square().sum(dtype=torch.float64))
            after = float((target - reached).square().sum(dtype=torch.float64))
            found[domain] = after / max(before, 1e-30)
        return found


def _mean(left: Mapping[str, float]) -> float:
    """Return the mean over domains of the logarithm of what is left."""
    values = [math.log(max(value, 1e-12)) for value in left.values()] or [0.0]
    return math.fsum(values) / len(values)
