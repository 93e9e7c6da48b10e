"""Pictures of a study one by one, for reports and loggers; each is (trials, layout, ...) -> Figure.

Every function gives a figure, whatever the trials are: where there is nothing to draw, it says so. Nothing global
is used or changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tailorlib.pareto import front
from tailorlib.report.front import draw_front_axes
from tailorlib.report.history import AXES, Across, best_so_far, draw_history, spent
from tailorlib.report.importance import Effect, Importance, importance
from tailorlib.report.names import decision_text, label
from tailorlib.report.palette import BLUE, GREY, INK, LIGHT, ORANGE, SERIES, VERMILION
from tailorlib.report.pictures import ROW_HEIGHT, draw_layer_map, label_rows, merge_labels
from tailorlib.search_space import FamilyLayout
from tailorlib.trial import Trial, incumbent

ROWS = 20
"""Largest number of effects in a picture."""
MARKS = {"removed": (VERMILION, "s"), "source": (BLUE, "o"), "share": (BLUE, "o"), "merged": (ORANGE, "D")}
"""Colour and mark of each kind of decision."""


def history_figure(
    trials: Sequence[Trial],
    layout: FamilyLayout | None = None,
    *,
    dense_fitness: float | None = None,
    across: Across = "trials",
    width: float = 7.2,
) -> Figure:
    """Return the fitness of each trial and the best so far.

    Args:
        trials: The study's trials.
        layout: Not used; all figures take it.
        dense_fitness: Fitness of the dense base model, for a reference line.
        across: What the horizontal axis counts: trials, samples that were scored, or seconds of evaluation.
        width: In inches.
    """
    if not any(t.fitness is not None for t in trials):
        return _nothing("No trial is complete: there is no history.", width)
    figure = _figure(width, 3.6)
    axes = figure.add_subplot()
    draw_history(axes, trials, dense_fitness=dense_fitness, across=across, beside=False)
    _legend_above(figure, axes)
    return figure


def layer_map_figure(
    trials: Sequence[Trial],
    layout: FamilyLayout,
    *,
    trial: Trial | None = None,
    heading: str | None = None,
) -> Figure:
    """Return the layer map of a trial.

    Args:
        trials: The study's trials.
        layout: The family's layout.
        trial: Whose map to draw; the fittest trial's by default.
        heading: Title; ``None`` for neither title nor legend.
    """
    chosen = trial or incumbent(trials)
    if chosen is None:
        return _nothing("No trial is complete: there is no layer map.", 7.2)
    rows = len(layout.models) + 1 + label_rows(merge_labels(chosen.tailoring), layout)
    names = max(map(len, [*map(label, layout.models), "new position"]))
    figure = _figure(max(5.0, 0.26 * layout.num_layers + 0.085 * names + 0.3), 0.6 + ROW_HEIGHT * rows)
    draw_layer_map(figure.add_subplot(), chosen.tailoring, layout, heading=heading)
    return figure


def front_figure(trials: Sequence[Trial], layout: FamilyLayout | None = None) -> Figure:
    """Return the first objective against each of the others, with the Pareto front.

    Args:
        trials: The study's trials.
        layout: Not used; all figures take it.
    """
    best = front(trials)
    names = list(best[0].objectives) if best else []
    if len(names) < 2:
        return _nothing("No trial has several objectives: there is no front.", 7.2)
    figure = _figure(7.2, 3.8 * (len(names) - 1))
    for axis, name in zip(figure.subplots(len(names) - 1, 1, squeeze=False)[:, 0], names[1:], strict=True):
        draw_front_axes(axis, trials, name, names[0])
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def importance_figure(trials: Sequence[Trial], layout: FamilyLayout, *, found: Importance | None = None) -> Figure:
    """Return the largest effects of removing, selecting and merging layers, with their 90 % intervals.

    Args:
        trials: The study's trials.
        layout: The family's layout.
        found: What :func:`~tailorlib.report.importance.importance` says of them, if it is known already.
    """
    found = importance(trials, layout) if found is None else found
    if found.layers is None:
        return _nothing(found.left_out or "All candidates do the same to each layer.", 7.2)
    return effects_figure(found.layers.effects[:ROWS])


def effects_figure(effects: Sequence[Effect]) -> Figure:
    """Return effects with their intervals, the first on top; a mark is filled where zero is left out."""
    figure = _figure(7.2, 0.8 + 0.25 * len(effects))
    axes = figure.add_subplot()
    for row, effect in enumerate(effects):
        colour, mark = MARKS[effect.decisions[0].kind]
        axes.plot([effect.low, effect.high], [row, row], color=colour, linewidth=1.6, zorder=2)
        face = colour if effect.is_clear else "white"
        axes.plot([effect.mean], [row], mark, color=colour, markerfacecolor=face, markersize=6, zorder=3)
    axes.axvline(0, color=GREY, linewidth=1, zorder=1)
    axes.set_yticks(range(len(effects)), [label(decision_text(e.decisions, 18), 42) for e in effects], fontsize=9)
    axes.set_ylim(len(effects) - 0.5, -0.5)
    axes.set_xlabel("effect on the fitness (mean and 90 % interval)")
    axes.grid(axis="x", color=LIGHT)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def comparison_figure(runs: Mapping[str, Sequence[Trial]], *, across: Across) -> Figure:
    """Return the best so far of several studies in one picture, by what they had spent.

    Args:
        runs: Trials of each study, by its name.
        across: What the horizontal axis counts.
    """
    figure = _figure(7.2, 3.6)
    axes = figure.add_subplot()
    longest = max(runs.values(), key=lambda trials: sum(t.seconds for t in trials))
    _, unit = spent(sorted(longest, key=lambda t: t.number), across)
    scale = {"hours": 3600.0, "minutes": 60.0}.get(unit, 1.0)
    for i, (name, trials) in enumerate(runs.items()):
        ordered = sorted(trials, key=lambda t: t.number)
        if not any(t.fitness is not None for t in ordered):
            continue
        places, own = spent(ordered, across)
        factor = {"hours": 3600.0, "minutes": 60.0}.get(own, 1.0) / scale
        x, y = best_so_far(ordered, [factor * p for p in places])
        colour, mark = SERIES[i % len(SERIES)]
        last = factor * places[-1]
        axes.step([*x, last], [*y, y[-1]], where="post", color=colour, label=label(name, 48), linewidth=1.8)
        axes.plot([last], [y[-1]], mark, color=colour, markersize=7)
    axes.set_xlabel(AXES[across].format(unit=unit))
    axes.set_ylabel("best fitness so far")
    axes.grid(color=LIGHT)
    axes.spines[["top", "right"]].set_visible(False)
    _legend_above(figure, axes)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    FigureCanvasAgg(figure)
    return figure


def _nothing(why: str, width: float) -> Figure:
    figure = _figure(width, 0.9)
    figure.text(0.5, 0.5, why, ha="center", va="center", color=INK)
    return figure


def _legend_above(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 3 if max(map(len, labels)) < 24 else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)
