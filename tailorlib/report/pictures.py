"""Pictures of a study: the search history and the layer map of the best tailoring.

Figures are made with matplotlib's objects and the Agg canvas, never with pyplot: nothing global changes, no
display is needed, and several studies can draw at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from rich.text import Text

from tailorlib.distributions import ParamValue
from tailorlib.files import replace_file
from tailorlib.report.history import draw_history
from tailorlib.report.names import clean, label
from tailorlib.report.palette import BLUE, GREY, INK, LIGHT, ORANGE
from tailorlib.search_space import FamilyLayout
from tailorlib.tailoring import SELECT, LayerPlan, Tailoring
from tailorlib.trial import Trial, incumbent

WIDTH, DPI = 16.0, 100
"""Figure width in inches and resolution: 1600 pixels."""
ROW_HEIGHT = 0.34
"""Height of a row of the layer map, in inches."""
LABEL = 40
"""Most characters of a merge's label."""

SELECTED, MERGED, REMOVED, UNUSED = "selected", "merged", "removed", "unused"
CELL_COLOURS = {SELECTED: BLUE, MERGED: ORANGE, REMOVED: LIGHT, UNUSED: "white"}
CELL_GLYPHS = {SELECTED: ("█", "blue"), MERGED: ("▓", "yellow"), REMOVED: ("×", "bright_black"), UNUSED: ("·", "")}


def draw_study(
    trials: Sequence[Trial],
    layout: FamilyLayout,
    path: Path,
    *,
    dense_fitness: float | None,
    title: str,
    best: Trial | None = None,
) -> None:
    """Write a PNG, 1600 pixels wide, with the search history and the best trial's layer map.

    Args:
        trials: The study's trials.
        layout: The family's layout.
        path: File to write.
        dense_fitness: Fitness of the dense base model, for a reference line.
        title: Title of the picture.
        best: The study's result; the incumbent by default.
    """
    figure = study_figure(trials, layout, dense_fitness=dense_fitness, title=title, best=best)
    write_picture(figure, path)


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        OSError: If it can't be written.
    """
    content = BytesIO()
    figure.savefig(content, dpi=DPI, format="png")
    replace_file(path, content.getvalue())


def study_figure(
    trials: Sequence[Trial],
    layout: FamilyLayout,
    *,
    dense_fitness: float | None,
    title: str,
    best: Trial | None = None,
) -> Figure:
    """Return the figure that :func:`draw_study` writes."""
    best = best or incumbent(trials)
    labels = {} if best is None else merge_labels(best.tailoring)
    map_height = 1.0 + ROW_HEIGHT * (len(layout.models) + 1 + label_rows(labels, layout))
    figure = Figure(figsize=(WIDTH, 4.4 + map_height), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(label(title, 120), fontsize=15, color=INK)
    history, layer_map = figure.subplots(2, 1, height_ratios=[4.0, map_height])
    draw_history(history, trials, dense_fitness=dense_fitness)
    if best is None:
        layer_map.set_axis_off()
        layer_map.text(0.5, 0.5, "No trial is complete: there is no layer map.", ha="center", fontsize=12)
    else:
        draw_layer_map(layer_map, best.tailoring, layout, heading=_map_heading(best, layout, dense_fitness))
    return figure


def draw_layer_map(axes: Axes, tailoring: Tailoring, layout: FamilyLayout, *, heading: str | None) -> None:
    """Draw one row per model and one column per original layer; below, new positions and merge operations.

    Args:
        axes: Where to draw.
        tailoring: The candidate.
        layout: The family's layout.
        heading: Title; ``None`` for neither title nor legend.
    """
    cells, labels = layer_cells(tailoring, layout), merge_labels(tailoring)
    models, layers = layout.models, layout.num_layers
    for row, model in enumerate(models):
        for layer in range(layers):
            kind = cells[model, layer]
            axes.add_patch(
                Rectangle(
                    (layer - 0.44, row - 0.4), 0.88, 0.8, facecolor=CELL_COLOURS[kind],
                    edgecolor=GREY if kind in (REMOVED, UNUSED) else INK, linewidth=0.6,
                    hatch="////" if kind == REMOVED else None, gid=f"{clean(model)}:{layer}:{kind}",
                )
            )  # fmt: skip
    size, below = _font_size(layout), len(models) + 0.6
    for layer, positions in _positions(tailoring).items():
        text = ",".join(map(str, positions))
        axes.text(layer, len(models), text, ha="center", va="center", fontsize=size, gid=f"position:{layer}")
    for layer, text in labels.items():
        axes.text(
            layer,
            below,
            label(text, LABEL),
            ha="center",
            va="top",
            rotation=90,
            fontsize=size,
            gid=f"merge:{layer}",
        )
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_ylim(below + label_rows(labels, layout), -0.6)
    axes.set_xticks(range(layers), [str(i) for i in range(layers)], fontsize=size)
    axes.xaxis.tick_top()
    rows = [*map(label, models), "new position", *([label(_merge_heading(tailoring))] if labels else [])]
    axes.set_yticks([*range(len(models) + 1), *([below + 0.3] if labels else [])], rows, fontsize=11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if heading is None:
        return
    axes.set_title(label(heading, 240), loc="left", fontsize=12, color=INK, pad=12)
    axes.legend(
        handles=_map_legend(),
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=11,
        handlelength=1.6,
    )


def layer_cells(tailoring: Tailoring, layout: FamilyLayout) -> dict[tuple[str, int], str]:
    """Return for each (model, original layer) whether it is selected, merged, unused, or the layer removed.

    A layer is removed where no model's layer of that index is used.
    """
    used: dict[tuple[str, int], str] = {}
    for plan in tailoring.layers:
        kind = MERGED if _is_merge(plan) else SELECTED
        for source in (source for part in plan.plans for source in part.sources):
            used[source.model, source.layer] = (
                MERGED if MERGED in (kind, used.get((source.model, source.layer))) else kind
            )
    alive = {layer for _, layer in used}
    return {
        (model, layer): used.get((model, layer), UNUSED if layer in alive else REMOVED)
        for model in layout.models
        for layer in range(layout.num_layers)
    }


def merge_labels(tailoring: Tailoring) -> dict[int, str]:
    """Return a short label of each merge, such as ``"TIES density=0.5 scale=1"``, by its (first) original layer.

    Where every merge is of one operation its name is left out; the row's heading tells it. The branches' scales
    stand behind, such as ``"attention x0.9"``.
    """
    merges = [part for plan in tailoring.layers for part in plan.plans if part.operation != SELECT]
    named = len({plan.operation for plan in merges}) > 1 or any(not plan.params for plan in merges)
    labels: dict[int, str] = {}
    for plan in (plan for plan in tailoring.layers if not plan.is_selection):
        label = _plan_label(plan, named=named)
        layer = _anchor(plan)
        labels[layer] = f"{labels[layer]}; {label}" if layer in labels else label
    return dict(sorted(labels.items()))


def layer_map_text(tailoring: Tailoring, layout: FamilyLayout, *, columns: int = 60) -> Text:
    """Return the layer map for a terminal: a line per model, a character per original layer, and a legend.

    Args:
        tailoring: The candidate.
        layout: The family's layout.
        columns: Largest number of layers in a line; deeper models take several blocks.
    """
    cells = layer_cells(tailoring, layout)
    width = max(len(clean(model)) for model in layout.models)
    text = Text()
    for start in range(0, layout.num_layers, columns):
        layers = range(start, min(start + columns, layout.num_layers))
        text.append(f"{'':{width}}  " + "".join(f"{i:<10}" for i in layers[::10]).rstrip() + "\n", style="dim")
        for model in layout.models:
            text.append(f"{clean(model):{width}}  ")
            for layer in layers:
                text.append(*CELL_GLYPHS[cells[model, layer]])
            text.append("\n")
    text.append(" " * (width + 2))
    for kind in (kind for kind in CELL_GLYPHS if kind in cells.values()):
        text.append(*CELL_GLYPHS[kind]).append(f" {kind}   ")
    text.rstrip()
    return text


def _positions(tailoring: Tailoring) -> dict[int, list[int]]:
    """Where each original layer stands in the tailored model."""
    positions: dict[int, list[int]] = {}
    for new, plan in enumerate(tailoring.layers):
        positions.setdefault(_anchor(plan), []).append(new)
    return positions


def _is_merge(plan: LayerPlan) -> bool:
    return plan.operation != SELECT or bool(plan.parts)


def _plan_label(plan: LayerPlan, *, named: bool) -> str:
    values = [f"{name}={_value(value)}" for name, value in plan.params if not isinstance(value, bool | str)]
    if named or not _is_merge(plan):
        values = [plan.operation if _is_merge(plan) else "", *values]
    values += [f"{name}:({_plan_label(part, named=True) or part.sources[0]})" for name, part in plan.parts]
    branches = {"attention": plan.attention_scale, "mlp": plan.mlp_scale}
    values += [f"{name} x{_value(scale)}" for name, scale in branches.items() if scale != 1]
    values += [f"+{term}" for term in plan.term_texts]
    return " ".join(filter(None, values))


def _anchor(plan: LayerPlan) -> int:
    """The column of a plan: its first source's layer, which stands for all where a merge crosses depths."""
    return plan.sources[0].layer


def _merge_heading(tailoring: Tailoring) -> str:
    plans = (part for plan in tailoring.layers for part in plan.plans)
    operations = {plan.operation for plan in plans if plan.operation != SELECT}
    return operations.pop() if len(operations) == 1 else "merge"


def _value(value: ParamValue) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_value, value))
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _font_size(layout: FamilyLayout) -> float:
    """Points that let two digits fit into a column."""
    return max(6.5, min(10.0, 580 / layout.num_layers))


def label_rows(labels: Mapping[int, str], layout: FamilyLayout) -> float:
    """Height of the rotated labels in rows of the map; a character is about 0.57 of its size wide."""
    inches = 0.57 * _font_size(layout) / 72 * min(LABEL, max(map(len, labels.values()), default=0))
    return 0.2 + inches / ROW_HEIGHT


def _map_heading(best: Trial, layout: FamilyLayout, dense_fitness: float | None) -> str:
    t = best.tailoring
    share = (
        f" = {best.fitness / dense_fitness:.1%} of dense"
        if best.fitness and dense_fitness and dense_fitness > 0
        else ""
    )
    return (
        f"Layer map of the best trial: number {best.number} ({best.origin}), fitness {best.fitness:.4g}{share}, "
        f"{len(t.layers)} of {layout.num_layers} layers; embeddings {t.embeddings}, norm {t.norm}, head {t.head}"
    )


def _map_legend() -> list[Patch | Line2D]:
    return [
        Patch(facecolor=BLUE, edgecolor=INK, label="selected"),
        Patch(facecolor=ORANGE, edgecolor=INK, label="merged"),
        Patch(facecolor=LIGHT, edgecolor=GREY, hatch="////", label="removed"),
        Patch(facecolor="white", edgecolor=GREY, label="not used"),
    ]
