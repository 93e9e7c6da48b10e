"""The course of a study: each trial's fitness and the best so far, against trials or what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tailorlib.report.palette import BLUE, GREY, INK, LIGHT, ORANGE, VERMILION
from tailorlib.trial import Trial

Across = Literal["trials", "samples", "seconds"]
AXES = {"trials": "trial", "samples": "sample evaluations", "seconds": "{unit} of evaluation"}
SHOWN = 600
"""Largest number of points of a kind in a picture."""

T = TypeVar("T")


def draw_history(
    axes: Axes,
    trials: Sequence[Trial],
    *,
    dense_fitness: float | None,
    across: Across = "trials",
    beside: bool = True,
) -> None:
    """Draw each trial's fitness by its origin, the best so far, and the dense model's fitness.

    Args:
        axes: Where to draw.
        trials: The study's trials.
        dense_fitness: Fitness of the dense base model, or ``None`` for no line.
        across: What the horizontal axis counts: trials, samples that were scored, or seconds of evaluation.
        beside: Put a title above and the legend beside the points.
    """
    ordered = sorted(trials, key=lambda t: t.number)
    places, unit = spent(ordered, across)
    complete = [(x, t.fitness, t) for x, t in zip(places, ordered, strict=True) if t.fitness is not None]
    most = max((t.fidelity for *_, t in complete), default=1.0)
    for label, colour, marker, chosen in (
        ("warm start", ORANGE, "D", [p for p in complete if p[2].origin != "optimizer" and p[2].fidelity == most]),
        ("optimizer", BLUE, "o", [p for p in complete if p[2].origin == "optimizer" and p[2].fidelity == most]),
        ("on part of the samples", GREY, ".", [p for p in complete if p[2].fidelity < most]),
    ):
        if chosen:
            x, y = zip(*((x, y) for x, y, _ in every(chosen)), strict=True)
            axes.plot(
                x, y, marker, color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.8,
                label=label, zorder=3,
            )  # fmt: skip
    failed = [x for x, t in zip(places, ordered, strict=True) if t.fitness is None]
    if failed:  # they have no fitness: a cross on the lower edge
        axes.plot(
            every(failed), [0.03] * len(every(failed)), "x", color=VERMILION, markersize=8, markeredgewidth=2,
            label="failed", transform=axes.get_xaxis_transform(), zorder=4,
        )  # fmt: skip
    if complete:
        known, best = best_so_far(ordered, places)
        axes.step([*known, places[-1]], [*best, best[-1]], where="post", color=INK, label="best so far", zorder=2)
    if dense_fitness is not None:
        axes.axhline(
            dense_fitness, color=GREY, ls="--", lw=1.5, label=f"dense model ({dense_fitness:.4g})", zorder=1
        )
    _frame(axes, [y for _, y, _ in complete], dense_fitness, [x for x, *_ in complete])
    axes.set_xlabel(AXES[across].format(unit=unit), fontsize=11 if beside else None)
    if beside:
        axes.set_title("Search history", loc="left", fontsize=12, color=INK)
    if beside and axes.get_legend_handles_labels()[0]:
        # Beside the points, never over them: where a search ends up is not known beforehand.
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=11)


def best_so_far(ordered: Sequence[Trial], places: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return where and how the best fitness was known, after each trial that is complete.

    Only trials on as many samples as any count: scores on fewer don't compare.
    """
    pairs = [(x, t) for x, t in zip(places, ordered, strict=True) if t.fitness is not None]
    most = max((t.fidelity for _, t in pairs), default=1.0)
    known = [(x, t.fitness) for x, t in pairs if t.fidelity == most and t.fitness is not None]
    x, y = [x for x, _ in known], list(accumulate((f for _, f in known), max))
    turns = [i for i in range(len(y)) if len(y) <= SHOWN or i in (0, len(y) - 1) or y[i] != y[i - 1]]
    return [x[i] for i in turns], [y[i] for i in turns]


def spent(ordered: Sequence[Trial], across: Across) -> tuple[list[float], str]:
    """Return what was spent when each trial was done, and the unit where it is time."""
    if across == "trials":
        return [t.number for t in ordered], ""
    if across == "samples":
        return list(accumulate(t.costs.get("samples", 0.0) for t in ordered)), ""
    seconds = list(accumulate(t.seconds for t in ordered))
    total = seconds[-1] if seconds else 0.0
    unit, name = (3600.0, "hours") if total >= 7200 else (60.0, "minutes") if total >= 120 else (1.0, "seconds")
    return [s / unit for s in seconds], name


def every(points: Sequence[T]) -> list[T]:
    """Return at most :data:`SHOWN` of the points, evenly, with the first and the last."""
    if len(points) <= SHOWN:
        return list(points)
    return [points[round(i)] for i in np.linspace(0, len(points) - 1, SHOWN)]


def _frame(axes: Axes, fitness: Sequence[float], dense: float | None, places: Sequence[float]) -> None:
    """Set the limits; candidates far below the others get marks at the edge, and not half of the picture."""
    axes.set_ylabel("fitness (higher is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02, y=0.1)
    axes.grid(axis="y", color=LIGHT)
    axes.spines[["top", "right"]].set_visible(False)
    if len(fitness) < 4:
        return
    low, middle, high = np.quantile(fitness, [0.25, 0.5, 0.75])
    floor = low - 3 * max(high - low, abs(middle) * 1e-3)
    below = [x for x, y in zip(places, fitness, strict=True) if y < floor]
    if below:
        inside = [y for y in fitness if y >= floor] + ([] if dense is None else [dense])
        margin = 0.08 * ((max(inside) - min(inside)) or abs(middle) or 1.0)
        axes.set_ylim(min(inside) - 2 * margin, max(inside) + margin)
        axes.plot(
            every(below), [0.03] * len(every(below)), "v", color=GREY, markersize=6, label="far below",
            transform=axes.get_xaxis_transform(), zorder=4,
        )  # fmt: skip
