"""The Pareto front of a study, as a picture and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tailorlib.pareto import front, hypervolume, knee
from tailorlib.report.history import every
from tailorlib.report.names import clean, label
from tailorlib.report.palette import BLUE, GREY, INK, VERMILION
from tailorlib.report.pictures import write_picture
from tailorlib.trial import Trial

SHOWN = 20
"""Largest number of rows of the table."""


def draw_front(trials: Sequence[Trial], path: Path, *, title: str) -> None:
    """Write a PNG: the first objective against each of the others, the front and the balanced trial marked.

    Args:
        trials: Trials with two or more objectives, one of them complete.
        path: File to write.
        title: Title of the picture.
    """
    write_picture(front_figure(trials, title=title), path)


def front_figure(trials: Sequence[Trial], *, title: str) -> Figure:
    """Return the figure that :func:`draw_front` writes."""
    names = list(front(trials)[0].objectives)
    figure = Figure(figsize=(8.0 * (len(names) - 1), 6.0), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(f"{label(title, 80)}: hypervolume {hypervolume(trials):.4g}", fontsize=15, color=INK)
    axes = figure.subplots(1, len(names) - 1, squeeze=False)[0]
    for axis, name in zip(axes, names[1:], strict=True):
        draw_front_axes(axis, trials, name, names[0])
    return figure


def front_table(trials: Sequence[Trial]) -> Table:
    """Return the front for a terminal, by the first objective; the exported trial is marked."""
    best, chosen = front(trials), knee(trials)
    table = Table(title="Pareto front", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.caption_justify = "left"
    table.add_column("trial", justify="right")
    table.add_column("layers", justify="right")
    for name in best[0].objectives:
        table.add_column(Text(f"{clean(name)} ↑"), justify="right")
    table.add_column("")
    step = max(1, -(-len(best) // SHOWN))
    shown = [t for i, t in enumerate(best) if i % step == 0 or t is chosen]
    for trial in shown:
        scores = [f"{score:.4f}" for score in trial.objectives.values()]
        mark = "← best balance, exported" if trial is chosen else ""
        table.add_row(str(trial.number), str(len(trial.tailoring.layers)), *scores, mark)
    left = f" {len(best) - len(shown)} more are in the picture." if len(shown) < len(best) else ""
    table.caption = f"Another one: tailor export RUN --trial N.{left}"
    return table


def draw_front_axes(axis: Axes, trials: Sequence[Trial], across: str, up: str) -> None:
    """Draw one objective against another, with the front and the balanced trial."""
    best, chosen = front(trials), knee(trials)
    complete = [t for t in trials if t.fitness is not None and t.fidelity == best[0].fidelity]
    axis.scatter(*_points(every(complete), across, up), s=18, color=GREY, alpha=0.6, linewidths=0, label="trial")
    order = sorted(best, key=lambda t: t.objectives[across])
    line = "-" if len(order[0].objectives) == 2 else "none"  # a projection of a surface is no line
    axis.plot(*_points(order, across, up), color=BLUE, marker="o", linestyle=line, label="Pareto front")
    if chosen is not None:
        axis.scatter(
            *_points([chosen], across, up),
            s=160,
            facecolors="none",
            edgecolors=VERMILION,
            linewidths=2,
            label=f"best balance (trial {chosen.number})",
        )
    axis.set_xlabel(f"{label(across)}, higher is better")
    axis.set_ylabel(f"{label(up)}, higher is better")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)


def _points(trials: Sequence[Trial], across: str, up: str) -> tuple[list[float], list[float]]:
    return [t.objectives[across] for t in trials], [t.objectives[up] for t in trials]
