"""Rungs: the numbers of samples at which candidates are compared."""

from __future__ import annotations

from collections.abc import Sequence

from tailorlib.exceptions import RecipeError


def rungs(name: str, samples: int, least: int, eta: float, min_samples: int | None) -> tuple[int, ...]:
    """Return numbers of samples, ascending, each about ``eta`` times the one before; the last is all of them.

    Args:
        name: Whose settings they are, for messages.
        samples: Number of all samples.
        least: The least number that a measurement can be made of.
        eta: Ratio of a rung to the one below.
        min_samples: The lowest rung is at least that; ``None`` for a 27th of all samples (three steps of three).

    Raises:
        RecipeError: If ``min_samples`` is less than a measurement needs, or more than there are.
    """
    if min_samples is not None and not least <= min_samples <= samples:
        raise RecipeError(
            f"{name}.min_samples is at least {least} (one of each task) and at most {samples} (all of the "
            f"fitness), got {min_samples}."
        )
    low = max(least, round(samples / 27)) if min_samples is None else min_samples
    found = [samples]
    while (below := round(samples / eta ** len(found))) >= low and below < found[-1]:
        found.append(below)
    return tuple(reversed(found))


def check_settings(name: str, eta: float, min_samples: int | None) -> list[str]:
    """Return what is wrong with a scheduler's settings."""
    faults = []
    if not eta > 1:
        faults.append(f"{name}.eta is the ratio of one rung to the next, more than 1, got {eta}.")
    if min_samples is not None and min_samples < 1:
        faults.append(f"{name}.min_samples is a positive number of samples, got {min_samples}.")
    return faults


def check_budget(name: str, cost: float, budget: float, remedy: str) -> None:
    """Refuse a budget that ends within the first round.

    Args:
        name: Whose round it is.
        cost: What it costs, in evaluations on all samples.
        budget: What the study may spend.
        remedy: What to change beside the budget.

    Raises:
        RecipeError: If the budget is smaller.
    """
    if cost > budget + 1e-9:
        raise RecipeError(
            f"{name}'s first round costs {cost:.1f} evaluations on all samples, got study.trials={budget:g}. "
            f"Raise study.trials, or {remedy}."
        )


def best_of(losses: Sequence[tuple[float, int, str]], count: int) -> list[str]:
    """Return the digests of the least losses, at most ``count``; failed candidates are left out."""
    return [digest for loss, _, digest in sorted(losses)[:count] if loss < float("inf")]
