"""LinearModel: Bayesian linear regression whose features have prior variances by group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


class LinearModel:
    """Bayesian linear regression in its dual form: what grows with a row is a kernel, never the weights' matrix.

    Weights are independent normal, of a variance for each group of features; the constant has variance 1; the
    noise of a row is normal. Variances are those of largest evidence (Bishop, Pattern Recognition and Machine
    Learning, sections 3.3 and 3.5).

    Args:
        groups: The group of each feature, [features].
        variances: The first variance of each group, and of the noise last, [groups + 1].
    """

    def __init__(self, groups: NDArray[np.int64], variances: Sequence[float]) -> None:
        self.groups, self.variances = groups, np.array(variances, dtype=np.float64)
        self._columns = [np.flatnonzero(groups == g) for g in range(len(variances) - 1)]
        self._count, self._fitted = 0, 0
        self._rows = np.zeros((64, len(groups)))
        self._kernels = np.zeros((len(self._columns), 64, 64))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    @property
    def rows(self) -> Vector:
        """The features of all rows, [rows, features]."""
        return self._rows[: self._count]

    def add(self, cells: Iterable[tuple[int, float]]) -> None:
        """Add a row, given its features as (index, value); an index can come several times."""
        n = self._count
        if n == len(self._rows):
            self._rows = np.pad(self._rows, ((0, n), (0, 0)))
            self._kernels = np.pad(self._kernels, ((0, 0), (0, n), (0, n)))
        for at, value in cells:
            self._rows[n, at] += value
        self._count = n + 1
        for g, columns in enumerate(self._columns):
            products = self.rows[:, columns] @ self._rows[n, columns]
            self._kernels[g, n, : n + 1] = self._kernels[g, : n + 1, n] = products

    def fit(self, targets: Vector, noise: Vector) -> None:
        """Find the variances anew, if there are a fifth more rows than when they were found last.

        Args:
            targets: What is to be explained, [rows].
            noise: Variance of the noise of each row, relative to the common one, [rows].
        """
        if self._count < 1.2 * self._fitted:
            return
        self._fitted = self._count
        logs = np.log(self.variances)
        best = self.evidence(targets, noise, np.exp(logs))
        for size in (1.6, 0.8):
            for at in range(len(logs)):
                for step in (size, -size):
                    moved = logs.copy()
                    moved[at] = np.clip(moved[at] + step, -12.0, 3.0)
                    found = self.evidence(targets, noise, np.exp(moved))
                    if found > best:
                        logs, best = moved, found
                        break
        self.variances = np.exp(logs)

    def evidence(self, targets: Vector, noise: Vector, variances: Vector) -> float:
        """Return the logarithm of the evidence of variances, less a constant."""
        factor = np.linalg.cholesky(self._covariance(noise, variances))
        white = np.linalg.solve(factor, targets)
        return float(-0.5 * white @ white - np.log(np.diag(factor)).sum())

    def draw(self, targets: Vector, noise: Vector, rng: np.random.Generator, temper: float = 1.0) -> Vector:
        """Return weights drawn from the posterior, [features].

        Args:
            targets: What is to be explained, [rows].
            noise: Variance of the noise of each row, relative to the common one, [rows].
            rng: Draws.
            temper: The draw's distance from the posterior mean is multiplied by this; 0 gives the mean.
        """
        # a draw of the prior, corrected by what was measured (Matheron's rule)
        spread = self.variances[self.groups]
        prior = temper * rng.standard_normal(len(spread)) * np.sqrt(spread)
        constant = temper * rng.standard_normal()
        error = temper * rng.standard_normal(self._count) * np.sqrt(self.variances[-1] * noise)
        covariance = self._covariance(noise, self.variances)
        residual = np.linalg.solve(covariance, targets - self.rows @ prior - constant - error)
        drawn: Vector = prior + spread * (self.rows.T @ residual)
        return drawn

    def predicted(self, targets: Vector, noise: Vector) -> Vector:
        """Return the posterior mean of each row, without its noise, [rows]."""
        covariance = self._covariance(noise, self.variances)
        residual = np.linalg.solve(covariance, targets)
        mean: Vector = targets - self._noise(noise, self.variances) * residual
        return mean

    def _noise(self, noise: Vector, variances: Vector) -> Vector:
        added: Vector = variances[-1] * noise + 1e-9
        return added

    def _covariance(self, noise: Vector, variances: Vector) -> Vector:
        n = self._count
        covariance: Vector = np.tensordot(variances[:-1], self._kernels[:, :n, :n], 1) + 1.0
        covariance[np.diag_indices(n)] += self._noise(noise, variances)
        return covariance


def clipped(losses: Vector, times: float) -> Vector:
    """Return losses, none worse than the best by more than some times the median's distance."""
    finite = losses[np.isfinite(losses)]
    best, middle = float(finite.min()), float(np.median(finite))
    result: Vector = np.minimum(losses, best + times * (middle - best) + 1e-12)
    return result


def standardised(losses: Vector) -> Vector:
    """Return losses with mean 0 and standard deviation 1, where they differ."""
    spread = float(losses.std())
    result: Vector = (losses - losses.mean()) / (spread if math.isfinite(spread) and spread > 0 else 1.0)
    return result
