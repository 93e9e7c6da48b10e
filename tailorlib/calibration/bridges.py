"""Bridges: what a layer's MLP adds beside its own share, so that the layers above find the stream that they knew.

Layer l is kept, and the next kept one is m > l + 1. With the teacher's stream (see :mod:`~.moments`)

    Delta(l -> m) = argmin | R^(1/2) (Z_l D^T - (H_m - H_{l+1})) |^2 + lambda mean(diag G_l) |D|^2
                  = ( (G_l + lambda mean(diag G_l) I)^-1 C_l,m )^T

is added to the matrix that Z_l is multiplied with. Nothing in it depends on a candidate: inputs and targets are
both the teacher's. G_l is factorised once (G = U diag(s) U^T), so each lambda and each m costs a product or two.

lambda is chosen per bridge on text that is held out of the fit: the one of the least mean error over the domains,
among those that leave no domain with a larger error than no bridge at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    """Ridge regression on one set of inputs, of any number of targets: the Gram matrix is factorised once.

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
        if gram.dim() == 1:
            self.basis, self.values, self.held = None, gram, dict(held)
        else:
            values, self.basis = torch.linalg.eigh(gram)
            self.values = values.clamp_min(0)
            self.held = {domain: z @ self.basis for domain, z in held.items()}
        self.mean = max(float(self.values.mean()), 1e-30)

    def solve(self, cross: Tensor, targets: Mapping[str, Tensor]) -> Solution:
        """Return the regression of one target.

        Args:
            cross: Z^T Y, [f, d]; [d] where the Gram matrix is a diagonal.
            targets: Y on held-out text by domain, [tokens, d].
        """
        if self.mapped is not None:
            cross = self.mapped @ cross
        turned = cross if self.basis is None else self.basis.T @ cross  # [f, d]
        errors = [self._left(turned * self._scales(ridge), targets) for ridge in self.ridges]
        sound = [i for i, left in enumerate(errors) if max(left.values(), default=0.0) <= 1]
        best = min(sound or range(len(errors)), key=lambda i: _badness(errors[i], worst=not sound))
        scaled = turned * self._scales(self.ridges[best])
        delta = scaled if self.basis is None else self.basis @ scaled
        if self.mapped is not None:
            delta = self.mapped.T @ delta
        if not bool(torch.isfinite(delta).all()):
            raise ModelError(f"The correction of {self.where} holds NaN or Inf. Give more calibration text.")
        return Solution(delta, self.ridges[best], errors[best])

    def _scales(self, ridge: float) -> Tensor:
        scales = 1 / (self.values + ridge * self.mean)
        return scales if self.basis is None else scales[:, None]

    def _left(self, scaled: Tensor, targets: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the share of the squared error that is left on each held-out domain."""
        found = {}
        for domain, target in targets.items():
            z = self.held[domain]
            reached = z * scaled if self.basis is None else z @ scaled
            before = float(target.square().sum(dtype=torch.float64))
            after = float((target - reached).square().sum(dtype=torch.float64))
            found[domain] = after / max(before, 1e-30)
        return found


def _badness(left: Mapping[str, float], *, worst: bool) -> float:
    """Return the mean over domains of the logarithm of what is left, or the largest."""
    values = [math.log(max(value, 1e-12)) for value in left.values()] or [0.0]
    return max(values) if worst else math.fsum(values) / len(values)
