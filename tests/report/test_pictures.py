"""Pictures, tested by the artists of their figures rather than by pixels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from tailorlib import FamilyLayout, LayerPlan, LayerSource, Tailoring, Trial
from tailorlib.report.pictures import draw_study, layer_cells, layer_map_text, merge_labels, study_figure


def figure_of(trials: tuple[Trial, ...], layout: FamilyLayout, dense_fitness: float | None = 0.8) -> Figure:
    return study_figure(trials, layout, dense_fitness=dense_fitness, title="a study")


def lines_of(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]
        for line in figure.axes[0].get_lines()
    }


def texts_of(figure: Figure, kind: str) -> dict[int, str]:
    texts = [t for t in figure.axes[1].findobj(Text) if (t.get_gid() or "").startswith(f"{kind}:")]
    return {int(str(t.get_gid()).partition(":")[2]): t.get_text() for t in texts}


def test_history_shows_points_by_origin_and_the_incumbent(trials: tuple[Trial, ...], layout: FamilyLayout) -> None:
    lines = lines_of(figure_of(trials, layout))
    assert lines["warm start"] == [(0, 0.3)]
    assert lines["optimizer"] == [(1, 0.2), (3, 0.5), (4, 0.4)]
    assert [x for x, _ in lines["failed"]] == [2]
    assert lines["best so far"] == [(0, 0.3), (1, 0.3), (3, 0.5), (4, 0.5), (4, 0.5)]
    assert {y for _, y in lines["dense model (0.8)"]} == {0.8}


def test_history_has_no_line_for_what_is_not_there(layout: FamilyLayout, make_trial: Callable[..., Trial]) -> None:
    lines = lines_of(figure_of((make_trial(0, 0.5),), layout, dense_fitness=None))
    assert set(lines) == {"optimizer", "best so far"}


def test_layer_map_has_one_cell_per_model_and_layer(trials: tuple[Trial, ...], layout: FamilyLayout) -> None:
    axes = figure_of(trials, layout).axes[1]
    cells = [p.get_gid() for p in axes.patches if isinstance(p, Rectangle) and p.get_gid()]
    assert len(cells) == 3 * 6
    assert {"base:0:selected", "code:0:unused", "code:1:merged", "math:1:merged", "base:1:unused"} <= set(cells)
    assert {"base:2:removed", "code:2:removed", "math:5:removed"} <= set(cells)


def test_layer_map_is_labelled(trials: tuple[Trial, ...], layout: FamilyLayout) -> None:
    figure = figure_of(trials, layout)
    axes = figure.axes[1]
    assert texts_of(figure, "merge") == {1: "scale=0.35", 4: "scale=1"}
    assert texts_of(figure, "position") == {0: "0", 1: "1", 3: "2", 4: "3"}
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "base",
        "code",
        "math",
        "new position",
        "TaskArithmetic",
    ]
    assert [t.get_text() for t in axes.get_xticklabels()] == list("012345")
    heading = axes.get_title(loc="left")
    assert "number 3 (optimizer), fitness 0.5 = 62.5% of dense, 4 of 6 layers" in heading
    assert "embeddings base, norm base, head base" in heading


def test_removed_cells_differ_by_hatching_not_only_by_colour(
    trials: tuple[Trial, ...], layout: FamilyLayout
) -> None:
    axes = figure_of(trials, layout).axes[1]
    hatched = {str(p.get_gid()) for p in axes.patches if p.get_hatch()}
    assert hatched == {f"{model}:{layer}:removed" for model in layout.models for layer in (2, 5)}


def test_a_study_without_a_complete_trial_is_drawn(layout: FamilyLayout, make_trial: Callable[..., Trial]) -> None:
    figure = figure_of((make_trial(0, None),), layout)
    assert "No trial is complete" in figure.axes[1].texts[0].get_text()
    assert study_figure((), layout, dense_fitness=None, title="").axes


def test_merges_by_several_operations_are_named(mixed_merges: Tailoring) -> None:
    assert merge_labels(mixed_merges) == {0: "TaskArithmetic scale=0.35", 2: "DARETIES density=0.12 scale=1"}


def test_layers_merged_across_depths_are_all_shown(layout: FamilyLayout) -> None:
    plan = LayerPlan((LayerSource("base", 1), LayerSource("base", 2)), "Linear", (("weight", 0.5),))
    again = LayerPlan((LayerSource("base", 1),))
    cells = layer_cells(Tailoring((plan, again)), layout)
    assert cells["base", 1] == cells["base", 2] == "merged"
    assert cells["base", 0] == "removed"


@pytest.mark.parametrize("num_layers", [30, 80])
def test_labels_do_not_run_into_each_other(num_layers: int, make_trial: Callable[..., Trial]) -> None:
    layout = FamilyLayout(("code", "math"), num_layers, ("full_attention",) * num_layers)
    merged = [
        LayerPlan((LayerSource("code", i), LayerSource("math", i)), "TIES", (("scale", 0.25),))
        for i in range(num_layers)
    ]
    trial = Trial(0, {}, Tailoring(tuple(merged)), "complete", 0.5)
    figure = figure_of((trial,), layout)
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[1]
    labels = [t for t in axes.findobj(Text) if str(t.get_gid() or "").startswith(("merge:", "position:"))]
    labels += list(axes.get_xticklabels())
    boxes = [t.get_window_extent() for t in labels]
    assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_the_file_is_a_picture_1600_pixels_wide(
    trials: tuple[Trial, ...], layout: FamilyLayout, tmp_path: Path
) -> None:
    draw_study(trials, layout, tmp_path / "study.png", dense_fitness=0.8, title="a study")
    height, width, _ = imread(tmp_path / "study.png").shape
    assert width == 1600
    assert 500 < height < 1400


def test_drawing_uses_no_global_state(trials: tuple[Trial, ...], layout: FamilyLayout) -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = list(pyplot.get_fignums()) if pyplot else None
    figure_of(trials, layout)
    assert (sys.modules.get("matplotlib.pyplot") is None) == (pyplot is None)
    assert before is None or (pyplot is not None and pyplot.get_fignums() == before)


def test_terminal_map_has_a_character_per_layer(tailoring: Tailoring, layout: FamilyLayout) -> None:
    assert layer_map_text(tailoring, layout).plain.splitlines() == [
        "      0",
        "base  █·×··×",
        "code  ·▓×·▓×",
        "math  ·▓×█▓×",
        "      █ selected   ▓ merged   × removed   · unused",
    ]


def test_terminal_map_of_a_deep_model_takes_several_blocks() -> None:
    layout = FamilyLayout((), 45, ("full_attention",) * 45)
    lines = layer_map_text(Tailoring.whole("base", 45), layout, columns=20).plain.splitlines()
    base = ["base  " + "█" * 20, "base  " + "█" * 20, "base  " + "█" * 5]
    rulers = ["      0         10", "      20        30", "      40"]
    assert lines == [*(line for pair in zip(rulers, base, strict=True) for line in pair), "      █ selected"]
