"""The front as a table and as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
from rich.console import Console

from tailorlib.report.front import SHOWN, draw_front, front_table
from tailorlib.tailoring import LayerPlan, LayerSource, Tailoring
from tailorlib.trial import Trial


def trials(*scores: tuple[float, ...]) -> list[Trial]:
    return [
        Trial(
            i,
            {},
            Tailoring(tuple(LayerPlan((LayerSource("base", k),)) for k in range(i % 5 + 1))),
            "complete",
            own[0],
            objectives=dict(zip(("quality", "parameters_removed", "speed"), own, strict=False)),
        )
        for i, own in enumerate(scores)
    ]


def shown(found: list[Trial]) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(front_table(found))
    return console.export_text()


def test_the_table_has_the_front_and_marks_what_is_exported() -> None:
    found = shown(trials((0.2, 0.1), (1.0, 0.0), (0.9, 0.4), (0.1, 0.5), (0.3, 0.3)))
    rows = [line.split() for line in found.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:4] for row in rows] == [
        ["1", "2", "1.0000", "0.0000"],
        ["2", "3", "0.9000", "0.4000"],
        ["3", "4", "0.1000", "0.5000"],
    ]
    assert ["exported" in row for row in rows] == [False, True, False]


def test_a_long_front_is_thinned_out_but_never_loses_what_is_exported() -> None:
    found = trials(*((1 - i / 100, (i / 100) ** 0.5) for i in range(90)))
    text = shown(found)
    rows = [line for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) <= SHOWN + 1 and sum("exported" in row for row in rows) == 1
    assert f"{90 - len(rows)} more are in the picture" in text


def test_the_picture_has_a_panel_for_each_further_objective(tmp_path: Path) -> None:
    draw_front(trials((0.2, 0.1), (1.0, 0.0), (0.9, 0.4)), tmp_path / "two.png", title="run")
    draw_front(trials((0.2, 0.1, 0.5), (1.0, 0.0, 0.1), (0.9, 0.4, 0.0)), tmp_path / "three.png", title="run")
    two, three = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("two", "three"))
    assert three.shape[1] == 2 * two.shape[1] and three.shape[0] == two.shape[0]
    assert (two[..., :3].min(axis=2) < 0.5).sum() > 1000  # something is drawn
