"""Which layers and sources matter: a linear model of the fitness with its uncertainty.

The trials of a search are no experiment: an optimizer goes where it was good before, so decisions come in company,
and few of them are tried often. The model says how sure it can be, and how well it predicts what it hasn't seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tailorlib.search_space import FamilyLayout
from tailorlib.tailoring import BASE, SELECT, Tailoring
from tailorlib.trial import Trial

MIN_TRIALS = 10
"""Fewer different candidates than this say nothing."""
MAX_TRIALS = 1000
"""Of more candidates every second, third, ... is taken."""
FOLDS, LARGE = 20, 300
"""Number of folds of the cross-validation, and number of candidates from which on five will do."""
MASS = 0.9
"""Probability of the intervals."""
SIGNALS = np.geomspace(0.05, 5000.0, 21)
"""Ratios of the variance that decisions explain to that of the noise, equally likely beforehand."""

Kind = Literal["removed", "source", "merged", "share"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """Something that a tailoring does or doesn't do, to one layer of the base.

    Args:
        kind: ``"removed"``, ``"source"`` (it draws on a model) or ``"merged"``; ``"share"`` for a part of the
            layers drawn from a model.
        layer: The layer, from 0; -1 for a share.
        model: The model that is drawn on, where that is the decision.
    """

    kind: Kind
    layer: int = -1
    model: str = ""


@dataclass(frozen=True)
class Effect:
    """The mean effect of decisions on the fitness, held against the base's own layer.

    Args:
        decisions: What was always done together, so that nobody can tell which of it mattered.
        mean: Mean difference of the fitness.
        low: Lower end of the 90 % credible interval.
        high: Its upper end.
        trials: Number of candidates that did it.
    """

    decisions: tuple[Decision, ...]
    mean: float
    low: float
    high: float
    trials: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Model:
    """A fitted model.

    Args:
        effects: The largest first.
        r2: Cross-validated share of the fitness's variance that it explains; at most 1, below 0 if the mean of the
            other candidates predicts better.
        folds: Number of folds of that.
    """

    effects: tuple[Effect, ...]
    r2: float
    folds: int


@dataclass(frozen=True)
class Importance:
    """What a study's trials say about layers and sources.

    Args:
        layers: Effects of decisions about single layers; ``None`` if there are too few trials.
        shares: Effects of drawing on a model (or merging, or removing) in 10 % more of the base's layers.
        trials: Number of different candidates that it rests on.
        fidelity: Share of the samples that these were scored on.
        left_out: Why nothing is said, or ``None``.
    """

    layers: Model | None
    shares: Model | None
    trials: int
    fidelity: float
    left_out: str | None = None


def importance(trials: Sequence[Trial], layout: FamilyLayout) -> Importance:
    """Return which decisions the fitness depends on.

    A Bayesian ridge regression (MacKay 1992; Tipping 2001) of the fitness on what each candidate does to each
    layer; the reference is the base's layer as it is. Candidates count once, and only those scored on as many
    samples.

    Args:
        trials: The study's trials.
        layout: The family's layout.
    """
    chosen, fidelity = comparable(trials)
    if len(chosen) < MIN_TRIALS:
        reason = (
            f"There are {len(chosen)} different candidates that were scored on as many samples; "
            f"from {MIN_TRIALS} on effects are estimated."
        )
        return Importance(None, None, len(chosen), fidelity, reason)
    fitness = np.array([t.fitness for t in chosen], dtype=np.float64)
    if np.ptp(fitness) == 0:
        return Importance(None, None, len(chosen), fidelity, "All candidates have the same fitness.")
    tailorings = [t.tailoring for t in chosen]
    decisions = [done_to_layers(t) for t in tailorings]
    layers = _model(_table(decisions, layout), fitness)
    shares = _model({(d,): column for d, column in _shares(decisions, layout).items()}, fitness)
    return Importance(layers, shares, len(chosen), fidelity)


def comparable(trials: Sequence[Trial]) -> tuple[list[Trial], float]:
    """Return different candidates scored on equally many samples, and the share of all samples that is.

    It is the largest share that has enough of them, or else the one with the most.
    """
    by_fidelity: dict[float, dict[Tailoring, Trial]] = {}
    for trial in (t for t in trials if t.fitness is not None):
        by_fidelity.setdefault(trial.fidelity, {}).setdefault(trial.tailoring, trial)
    if not by_fidelity:
        return [], 1.0
    enough = [f for f, found in by_fidelity.items() if len(found) >= MIN_TRIALS]
    fidelity = max(enough) if enough else max(by_fidelity, key=lambda f: (len(by_fidelity[f]), f))
    chosen = list(by_fidelity[fidelity].values())
    return chosen[:: -(-len(chosen) // MAX_TRIALS)], fidelity


def done_to_layers(tailoring: Tailoring) -> set[Decision]:
    """Return what a tailoring does to each layer that it keeps: sources other than the base, and merges.

    The base stands for ``Decision("source", layer, "base")``; a layer of which there is nothing was removed.
    """
    done: set[Decision] = set()
    for plan in tailoring.layers:
        merged = plan.operation != SELECT or bool(plan.parts)
        for source in (source for part in plan.plans for source in part.sources):
            done.add(Decision("source", source.layer, source.model))
            if merged:
                done.add(Decision("merged", source.layer))
    return done


def _table(decisions: Sequence[set[Decision]], layout: FamilyLayout) -> dict[tuple[Decision, ...], Array]:
    """Return a column of zeros and ones for each decision that varies.

    Equal columns are one, under all its names. So are opposite ones, under the names of the first: where a layer
    is either removed or merged, the one effect is the other's with its sign turned.
    """
    columns: dict[bytes, tuple[list[Decision], Array]] = {}
    kept = [{d.layer for d in done} for done in decisions]
    for layer in range(layout.num_layers):
        candidates = {Decision("removed", layer): np.array([layer not in alive for alive in kept])}
        for decision in [Decision("source", layer, m) for m in layout.candidates] + [Decision("merged", layer)]:
            candidates[decision] = np.array([decision in done for done in decisions])
        for decision, column in candidates.items():
            if column.any() and not column.all() and (~column).tobytes() not in columns:
                columns.setdefault(column.tobytes(), ([], column.astype(np.float64)))[0].append(decision)
    return {tuple(names): column for names, column in columns.values()}


def _shares(decisions: Sequence[set[Decision]], layout: FamilyLayout) -> dict[Decision, Array]:
    """Return, in tenths of the base's layers, how many draw on each candidate, are merged, or are removed."""

    def tenths(count: Callable[[set[Decision]], int]) -> Array:
        return np.array([10 * count(done) / layout.num_layers for done in decisions])

    columns = {
        Decision("share", model=m): tenths(lambda done, m=m: sum(d.model == m for d in done))  # type: ignore[misc]
        for m in layout.models
        if m != BASE
    }
    columns[Decision("merged")] = tenths(lambda done: sum(d.kind == "merged" for d in done))
    columns[Decision("removed")] = tenths(lambda done: layout.num_layers - len({d.layer for d in done}))
    return {name: column for name, column in columns.items() if np.ptp(column) > 0}


def _model(table: dict[tuple[Decision, ...], Array], fitness: Array) -> Model | None:
    if not table:
        return None
    columns = np.stack(list(table.values()), axis=1)  # [candidates, decisions]
    mean, deviation = fit(columns, fitness)
    reach = NormalDist().inv_cdf((1 + MASS) / 2) * deviation
    effects = [
        Effect(names, float(m), float(m - r), float(m + r), int(np.count_nonzero(column)))
        for names, column, m, r in zip(table, columns.T, mean, reach, strict=True)
    ]
    folds = min(len(fitness), FOLDS if len(fitness) <= LARGE else 5)
    effects.sort(key=lambda e: -abs(e.mean))
    return Model(tuple(effects), cross_validated(columns, fitness, folds), folds)


def fit(columns: Array, fitness: Array) -> tuple[Array, Array]:
    """Return the posterior means and standard deviations of the coefficients of a Bayesian ridge regression.

    The coefficients w are normal around 0 with the variance t² s², where s² is that of the noise (Jeffreys'
    prior). How t is chosen decides how wide the intervals are. Its likeliest value is often next to 0 where there
    are few candidates, and all effects would then be surely nothing. So t is averaged over, by its marginal
    likelihood, from the least to the largest signal of :data:`SIGNALS` (Gelman et al., Bayesian Data Analysis, 3rd
    edition, section 14.8; the marginal likelihood is the evidence of MacKay 1992 with s² integrated out).

    Args:
        columns: What each candidate does, [candidates, decisions].
        fitness: Their fitness, [candidates].
    """
    x, y = columns - columns.mean(axis=0), fitness - fitness.mean()
    left, sizes, right = np.linalg.svd(x, full_matrices=False)  # x = left diag(sizes) right
    along, freedom = left.T @ y, len(y) - 1
    rest = max(0.0, float(y @ y - along @ along))  # what no decision explains
    spread = float((x**2).sum()) / len(y)
    evidence, means, variances = [], [], []
    for scale in SIGNALS / spread:  # t²
        shrunk = 1 + scale * sizes**2
        residual = float((along**2 / shrunk).sum()) + rest
        evidence.append(-0.5 * float(np.log(shrunk).sum()) - 0.5 * freedom * np.log(max(residual, 1e-300)))
        noise = residual / max(1, freedom - 2)  # mean of s² given t
        means.append(right.T @ (scale * sizes / shrunk * along))
        variances.append(noise * scale * (1 - (right**2).T @ (scale * sizes**2 / shrunk)))
    weights = np.exp(np.array(evidence) - max(evidence))
    weights /= weights.sum()
    mean = weights @ np.stack(means)
    variance = weights @ (np.stack(variances) + np.stack(means) ** 2) - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0))


def cross_validated(columns: Array, fitness: Array, folds: int) -> float:
    """Return R² of predictions for candidates left out, against the mean of the others.

    Args:
        columns: What each candidate does, [candidates, decisions].
        fitness: Their fitness, [candidates].
        folds: Number of parts that are left out in turn; every ``folds``-th candidate is in the same.
    """
    places = np.arange(len(fitness)) % folds
    error, spread = 0.0, 0.0
    for fold in range(folds):
        out, rest = places == fold, places != fold
        centre, average = columns[rest].mean(axis=0), fitness[rest].mean()
        varies = np.ptp(columns[rest], axis=0).any()
        effects = fit(columns[rest], fitness[rest])[0] if varies else np.zeros(columns.shape[1])
        predicted = average + (columns[out] - centre) @ effects
        error += float(((fitness[out] - predicted) ** 2).sum())
        spread += float(((fitness[out] - average) ** 2).sum())
    return 1 - error / spread if spread else 0.0
