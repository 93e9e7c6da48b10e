"""StructuredBayes: a Bayesian linear model of what each layer and each source is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorlib import Optimizer, Params
from tailorlib.distributions import Categorical, Distribution, ParamValue, Subset
from tailorlib.exceptions import RecipeError
from tailorlib.search_space import SearchSpace
from tailorlib.trial import Trial
from tailorlib_strategies.optimizers.variation import Genome, Variation

Vector = NDArray[np.float64]


class Features:
    """What a linear model sees of an assignment.

    A subset gives an indicator for each member and one for each pair of neighbours that are both members; a
    choice gives an indicator for each of its values but the first; a number gives its place in its range, and
    that squared. What is inactive gives zeros. So a coefficient is what removing a layer, taking a source or
    moving a number is worth.

    Args:
        space: The search space, set up.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._distributions = space.distributions()
        self._start: dict[str, int] = {}
        groups: list[int] = []
        for name, distribution in self._distributions.items():
            self._start[name] = len(groups)
            groups += _groups(distribution)
        self.groups = np.array(groups, dtype=np.int64)
        """Which prior each feature has, [features]."""

    def __call__(self, params: Params) -> Vector:
        """Return the features of active parameters, [features]."""
        found = np.zeros(len(self.groups))
        for name, value in params.items():
            distribution, at = self._distributions[name], self._start[name]
            if isinstance(distribution, Subset):
                assert isinstance(value, tuple)
                members = [int(i) for i in value]
                found[[at + i for i in members]] = 1.0
                pairs = [i for i in members if i + 1 in members]
                found[[at + distribution.n + i for i in pairs]] = 1.0
            elif (levels := _levels(distribution)) is not None:
                level = round(distribution.encode(value)[0] * levels - 0.5)
                if level:
                    found[at + level - 1] = 1.0
            else:
                x = distribution.encode(value)[0] - 0.5
                found[at], found[at + 1] = x, x * x
        return found


_LEVELS = 16
"""Whole numbers with more values than that are places in a range."""
_SUBSET, _PAIR, _CHOICE, _NUMBER = range(4)


def _groups(distribution: Distribution) -> list[int]:
    if isinstance(distribution, Subset):
        return [_SUBSET] * distribution.n + [_PAIR] * max(0, distribution.n - 1)
    levels = _levels(distribution)
    return [_NUMBER] * 2 if levels is None else [_CHOICE] * (levels - 1)


def _levels(distribution: Distribution) -> int | None:
    """Return the number of values of a choice; ``None`` for a number."""
    count = distribution.cardinality
    return count if count is not None and (count <= _LEVELS or isinstance(distribution, Categorical)) else None


@dataclass
class _Prior:
    """Variances of a linear model: one for each group of features, of the noise, and of the constant."""

    groups: Vector
    noise: float

    @classmethod
    def first(cls) -> _Prior:
        return cls(np.array([0.3, 0.05, 0.1, 0.1]), 0.05)


class StructuredBayes(Optimizer):
    """Thompson sampling with a Bayesian linear model over layers, neighbouring layers and sources.

    What a tailoring loses is nearly a sum over its layers and sources, so few trials tell much. After each trial
    the posterior of a linear model is known in closed form; its prior variances are those of largest evidence
    (Bishop, Pattern Recognition and Machine Learning, sections 3.3 and 3.5). A proposal takes one draw of it and
    goes downhill from one of the best candidates by typed steps, at most ``radius`` of them: in hundreds of
    dimensions a draw is wrong far away. The radius grows after a success and shrinks after failures, as in TuRBO
    (arXiv 1910.01739).

    Args:
        starts: Number of trials before the model is used; those that warm starts don't fill are mutations of the
            best.
        radius: Largest number of steps from a known candidate, at first.
        tries: Number of steps that are tried for each that is taken.
        elite: Number of candidates to start from.
        swap: Probability that a tried step exchanges a removed layer.
        nudge: Probability of the other steps that they move a number.

    Raises:
        RecipeError: If a number is out of range.
    """

    supports = frozenset({"conditional", "subset", "batch"})

    def __init__(
        self,
        starts: int = 8,
        radius: int = 4,
        tries: int = 64,
        elite: int = 3,
        swap: float = 0.35,
        nudge: float = 0.25,
    ) -> None:
        least = {"starts": starts, "radius": radius, "tries": tries, "elite": elite}
        faults = [f"StructuredBayes.{k} is at least 1, got {v}." for k, v in least.items() if v < 1]
        faults += [
            f"StructuredBayes.{k} is a probability, got {v}."
            for k, v in (("swap", swap), ("nudge", nudge))
            if not 0 <= v <= 1
        ]
        if faults:
            raise RecipeError(faults)
        self.starts, self.radius, self.tries, self.elite = starts, radius, tries, elite
        self.swap, self.nudge = swap, nudge

    def _setup(self, space: SearchSpace, seed: int) -> None:
        self._variation = Variation(space, self.swap, self.nudge)
        self._features = Features(space)
        self._rows: list[Vector] = []
        self._losses: list[float] = []
        self._genomes: list[Genome] = []
        self._seen: set[frozenset[tuple[str, ParamValue]]] = set()
        self._prior, self._fitted = _Prior.first(), 0
        self._reach, self._failures = float(self.radius), 0

    def _tell(self, trial: Trial) -> None:
        best = min(self._losses, default=math.inf)
        self._seen.add(frozenset(trial.params.items()))
        self._rows.append(self._features(trial.params))
        self._losses.append(trial.loss)
        self._genomes.append(self._variation.genome(trial.params))
        if trial.loss < best:
            self._reach, self._failures = min(2 * self._reach, 4.0 * self.radius), 0
        else:
            self._failures += 1
            if self._failures >= 4:
                self._reach, self._failures = max(1.0, self._reach / 2), 0

    def _ask(self) -> Params:
        finite = [i for i, loss in enumerate(self._losses) if math.isfinite(loss)]
        if len(finite) < 2:
            return self.space.sample(self.rng)
        best = sorted(finite, key=lambda i: (self._losses[i], i))[: self.elite]
        weights = self._draw(finite) if len(finite) >= self.starts else np.zeros(len(self._features.groups))
        for attempt in range(8):  # a known candidate teaches nothing: go further each time
            start = dict(self._genomes[best[int(self.rng.integers(len(best)))]])
            params = self.space.active(self._descend(start, weights, attempt))
            key = frozenset(params.items())
            if key not in self._seen:
                break
        self._seen.add(key)
        return params

    def _descend(self, genome: Genome, weights: Vector, further: int) -> Genome:
        """Take steps that a draw of the model likes; the first one in any case."""
        here = float(self._features(self.space.active(genome)) @ weights)
        for taken in range(1 + further + int(self.rng.integers(max(1, round(self._reach))))):
            found, least = None, here if taken else math.inf
            for _ in range(self.tries if weights.any() else 1):
                other = dict(genome)
                self._variation.step(other, self.rng)
                value = float(self._features(self.space.active(other)) @ weights)
                if value < least:
                    found, least = other, value
            if found is None:
                break
            genome, here = found, least
        return genome

    # -- The model ------------------------------------------------------------------------------------------------

    def _draw(self, finite: Sequence[int]) -> Vector:
        """Return one draw of the posterior of the weights, [features]."""
        rows = np.stack([self._rows[i] for i in finite])
        losses = np.array([self._losses[i] for i in finite])
        best, middle = losses.min(), float(np.median(losses))
        losses = np.minimum(losses, best + 4 * (middle - best) + 1e-12)  # what is hopeless need not be told apart
        targets = (losses - losses.mean()) / (losses.std() or 1.0)
        kernels = np.stack([_gram(rows[:, self._features.groups == g]) for g in range(4)])
        if len(targets) >= 1.2 * self._fitted:
            self._prior, self._fitted = _fit(kernels, targets, self._prior), len(targets)
        variances = self._prior.groups[self._features.groups]
        # a draw of the prior, corrected by what was measured (Matheron's rule)
        prior = self.rng.standard_normal(len(variances)) * np.sqrt(variances)
        constant = self.rng.standard_normal()
        noise = self.rng.standard_normal(len(targets)) * math.sqrt(self._prior.noise)
        residual = np.linalg.solve(_covariance(kernels, self._prior), targets - rows @ prior - constant - noise)
        drawn: Vector = prior + variances * (rows.T @ residual)
        return drawn


def _gram(rows: Vector) -> Vector:
    product: Vector = rows @ rows.T
    return product


def _covariance(kernels: Vector, prior: _Prior) -> Vector:
    covariance: Vector = np.tensordot(prior.groups, kernels, 1) + 1.0  # the constant has variance 1
    covariance[np.diag_indices_from(covariance)] += prior.noise
    return covariance


def _fit(kernels: Vector, targets: Vector, prior: _Prior) -> _Prior:
    """Return the variances of about largest evidence, found one after the other."""
    logs = np.log(np.append(prior.groups, prior.noise))
    best = _evidence(kernels, targets, logs)
    for size in (1.5, 0.7):
        for at in range(len(logs)):
            for step in (size, -size):
                moved = logs.copy()
                moved[at] = np.clip(moved[at] + step, -9.0, 3.0)
                found = _evidence(kernels, targets, moved)
                if found > best:
                    logs, best = moved, found
                    break
    return _Prior(np.exp(logs[:-1]), float(np.exp(logs[-1])))


def _evidence(kernels: Vector, targets: Vector, logs: Vector) -> float:
    """Return the logarithm of the evidence, less a constant, given the variances' logarithms."""
    covariance = _covariance(kernels, _Prior(np.exp(logs[:-1]), float(np.exp(logs[-1]))))
    return float(-0.5 * (targets @ np.linalg.solve(covariance, targets) + np.linalg.slogdet(covariance)[1]))
