"""Pareto fronts: what no other trial beats in every objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tailorlib.trial import Trial, incumbent


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Say whether losses ``a`` are nowhere worse than ``b``, and better somewhere."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def front(trials: Iterable[Trial]) -> list[Trial]:
    """Return the complete trials that no other one dominates, by the first objective; of equals the earliest.

    Trials on fewer samples than others don't count: their scores don't compare.
    """
    complete = [t for t in trials if t.fitness is not None]
    most = max((t.fidelity for t in complete), default=1.0)
    distinct: dict[tuple[float, ...], Trial] = {}
    for trial in sorted((t for t in complete if t.fidelity == most), key=lambda t: t.number):
        distinct.setdefault(trial.losses, trial)
    best = [t for own, t in distinct.items() if not any(dominates(other, own) for other in distinct)]
    return sorted(best, key=lambda t: t.losses)


def hypervolume(trials: Iterable[Trial]) -> float:
    """Return the volume of scores that the front dominates, down to a score of 0 in each objective.

    Scores below 0 add nothing. Computed by nevergrad (algorithm of Fonseca, Paquete and Lopez-Ibanez 2006).
    """
    from nevergrad.optimization.multiobjective.hypervolume import HypervolumeIndicator  # takes a second to import

    points = [list(t.losses) for t in front(trials) if max(t.losses) < 0]
    if not points:
        return 0.0
    return float(HypervolumeIndicator([0.0] * len(points[0])).compute(points))


def knee(trials: Iterable[Trial]) -> Trial | None:
    """Return the trial of the front with the best balance, or ``None``: the one that a study exports.

    Each objective is scaled to [0, 1] over the front, and the largest sum of scores wins; the first objective
    decides among equals.
    """
    best = front(trials)
    if not best:
        return None
    columns = list(zip(*(t.losses for t in best), strict=True))
    ranges = [(min(column), (max(column) - min(column)) or 1.0) for column in columns]

    def balance(trial: Trial) -> tuple[float, tuple[float, ...]]:
        scaled = [(loss - low) / width for loss, (low, width) in zip(trial.losses, ranges, strict=True)]
        return round(sum(scaled), 12), trial.losses

    return min(best, key=balance)


def study_result(trials: Sequence[Trial], validated: Mapping[int, float] | None = None) -> Trial | None:
    """Return what a study ends with: the best in validation, else the trial of the best balance, or the fittest
    one.

    Args:
        trials: The study's trials.
        validated: What validation found, by the number of the trial.
    """
    known = [(-validated[t.number], t.number, t) for t in trials if t.number in validated] if validated else []
    if known:
        return min(known, key=lambda entry: entry[:2])[2]
    return knee(trials) if any(trial.objectives for trial in trials) else incumbent(trials)
