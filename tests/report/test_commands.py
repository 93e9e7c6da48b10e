"""``tailor list``, ``show`` and ``diff``: what people read, and what scripts do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorlib import LayerPlan, LayerSource, Tailoring, Trial
from tailorlib.console import speaking
from tailorlib.exceptions import JournalError, RecipeError
from tailorlib.journal import Journal
from tailorlib.report.commands import diff, list_runs, report, show
from tailorlib.report.difference import recipe_difference, tailoring_difference

MakeRun = Callable[..., Path]
Machine = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def machine(capsys: pytest.CaptureFixture[str]) -> Machine:
    """Call a verb with ``--json``, and read the lines."""

    def call(verb: Callable[..., None], *args: Any) -> list[dict[str, Any]]:
        with speaking(["--json"]):
            verb(*args)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


def test_list_tells_the_state_of_every_run(
    make_run: MakeRun,
    trials: tuple[Trial, ...],
    tmp_path: Path,
    machine: Machine,
) -> None:
    make_run("b/finished", trials)
    make_run("a", trials[:2])
    held = make_run("held", trials[:3])
    make_run("empty", [], dense=None)
    damaged = make_run("damaged", trials) / "journal.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b'"kind":"trial"', b'"kind":"tri', 1))
    (tmp_path / "loop").symlink_to(tmp_path)
    journal = Journal.open(held)
    found = {Path(line["run"]).name: line for line in machine(list_runs, str(tmp_path))}
    journal.close()
    states = {name: line["state"] for name, line in found.items()}
    assert states == {
        "finished": "finished",
        "a": "interrupted",
        "held": "running",
        "empty": "interrupted",
        "damaged": "damaged",
    }
    a = found["a"]
    assert (a["trials"], a["asked"], a["best_fitness"], a["layers"], a["best_trial"]) == (2, 5, 0.3, 4, 0)
    assert a["retained"] == pytest.approx(0.375)
    assert found["empty"]["best_fitness"] is None


def test_list_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_runs(str(tmp_path))
    assert "There is no study" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="tailor list FOLDER"):
        list_runs(str(tmp_path / "nowhere"))


def test_show_a_study_and_a_trial(
    make_run: MakeRun, trials: tuple[Trial, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_run("x", trials))
    show(folder)
    text = capsys.readouterr().out
    assert "trial 3, fitness 0.5 (dense 0.8, 62.5 % retained)" in text
    assert "code  ·▓×·▓×" in text
    show(folder, 2)
    text = capsys.readouterr().out
    assert "loss is NaN" in text and "failed" in text
    show(folder, 3)
    text = capsys.readouterr().out
    assert "the study's result" in text
    assert "TaskArithmetic of code:1 and math:1 over base:1 (scale 0.35)" in text
    assert "20.0 % of the base's parameters" in text
    with pytest.raises(RecipeError, match="the trials 0 to 4, got trial 5"):
        show(folder, 5)


def test_names_with_markup_and_control_characters_are_shown_as_they_are(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = LayerPlan((LayerSource("[red]m[/]\x1b[2J", 0),))
    trial = Trial(0, {}, Tailoring((plan,)), "complete", 0.5, origin="[bold]o")
    folder = str(make_run("[blue]x", [trial]))
    show(folder)
    show(folder, 0)
    diff(folder, folder)
    list_runs(str(Path(folder).parent))
    text = capsys.readouterr().out
    assert "\x1b[2J" not in text
    assert "[red]m[/]" in text and "[bold]o" in text and "[blue]x" in text


def test_diff_stands_by_the_base_layer(
    make_run: MakeRun,
    trials: tuple[Trial, ...],
    tmp_path: Path,
    machine: Machine,
) -> None:
    folder = make_run("x", trials)
    other = Tailoring((LayerPlan((LayerSource("base", 0),)), LayerPlan((LayerSource("math", 2),))), head="math")
    (tmp_path / "other.yaml").write_text(other.to_yaml())
    (found,) = machine(diff, f"{folder}@3", str(tmp_path / "other.yaml"))
    lines = {line["what"]: (line["first"], line["second"]) for line in found["lines"] if not line["same"]}
    assert lines == {
        "layer 1": ("TaskArithmetic of code:1 and math:1 over base:1 (scale 0.35)", "removed"),
        "layer 2": ("removed", "math:2"),
        "layer 3": ("math:3", "removed"),
        "layer 4": ("TaskArithmetic of code:4 and math:4 over base:4 (scale 1)", "removed"),
        "head": ("base", "math"),
    }
    assert [line["what"] for line in found["lines"] if line["same"]] == [
        "layer 0", "layer 5", "embeddings", "norm", "seed",
    ]  # fmt: skip
    assert not found["same"]
    assert machine(diff, str(folder), f"{folder}@3")[0]["same"]


def test_diff_says_what_is_none(make_run: MakeRun, tmp_path: Path, make_trial: Callable[..., Trial]) -> None:
    folder = str(make_run("x", [make_trial(0, None)]))
    for name, error in ((str(tmp_path / "no"), RecipeError), (folder, JournalError), (f"{folder}@7", RecipeError)):
        with pytest.raises(error):
            diff(name, name)


def test_layers_in_another_order_differ() -> None:
    plans = [LayerPlan((LayerSource("base", i),)) for i in range(3)]
    lines = tailoring_difference(Tailoring(tuple(plans)), Tailoring(tuple(plans[::-1])))
    assert [(x.what, x.first, x.second) for x in lines if not x.same] == [("order", "0, 1, 2", "2, 1, 0")]


def test_recipes_differ_in_settings_at_any_depth() -> None:
    first = {"a": {"b": [{"c": 1}, {"c": 2}]}, "same": 1}
    second = {"a": {"b": [{"c": 1}, {"c": 3, "d": None}]}, "same": 1}
    assert recipe_difference([first, second]) == [("a.b.1.c", ["2", "3"]), ("a.b.1.d", ["–", "None"])]


def test_report_tells_scripts_where_it_is(make_run: MakeRun, trials: tuple[Trial, ...], machine: Machine) -> None:
    folder = make_run("x", trials)
    (line,) = machine(report, [str(folder)])
    assert (line["kind"], line["output"]) == ("report", str(folder / "report.html"))


def test_looking_needs_neither_lightning_nor_transformers_nor_matplotlib() -> None:
    code = "import sys, tailorlib.report.commands; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["lightning", "transformers", "matplotlib", "scipy", "sklearn", "nevergrad", "jinja2"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
