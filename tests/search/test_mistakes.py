"""A user's mistake gets one clear message, exit status 2, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorlib.cli import main
from tailorlib.journal import FILE_NAME
from tailorlib.start import main as start
from tailorlib.tailoring import LayerPlan, LayerSource, Tailoring
from tailorlib.testing.tiny import write_tiny_model

Write = Callable[[dict[str, Any]], str]
Recipe = dict[str, Any]


def space(recipe: Recipe) -> Recipe:
    settings: Recipe = recipe["search_space"]["init_args"]
    return settings


def family(recipe: Recipe) -> Recipe:
    settings: Recipe = recipe["family"]["init_args"]
    return settings


def text_of(recipe: Recipe) -> Recipe:
    part: Recipe = recipe["fitness"]["init_args"]["parts"]["text"]["init_args"]["text"]
    return part


def lm_eval_part(recipe: Recipe, **settings: Any) -> None:
    parts = recipe["fitness"]["init_args"]["parts"]
    parts["task"] = {"class_path": "LMEval", "init_args": settings}


def misspelt_class(recipe: Recipe, folder: Path) -> None:
    recipe["optimizer"] = {"class_path": "Nevergard"}


def misspelt_nested_class(recipe: Recipe, folder: Path) -> None:
    space(recipe)["merges"] = ["TIES", "SLRP"]


def misspelt_key(recipe: Recipe, folder: Path) -> None:
    space(recipe)["merge"] = space(recipe).pop("merges")


def misspelt_section(recipe: Recipe, folder: Path) -> None:
    recipe["optimiser"] = recipe.pop("optimizer")


def misspelt_study_setting(recipe: Recipe, folder: Path) -> None:
    recipe["study"]["trails"] = 3


def wrong_type(recipe: Recipe, folder: Path) -> None:
    recipe["study"]["trials"] = "many"


def out_of_range(recipe: Recipe, folder: Path) -> None:
    recipe["study"]["trials"] = 0


def unknown_layer(recipe: Recipe, folder: Path) -> None:
    space(recipe)["removal"]["init_args"]["protect"] = [0, 17]


def everything_removed(recipe: Recipe, folder: Path) -> None:
    space(recipe)["removal"]["init_args"] = {"count": 6}


def another_depth(recipe: Recipe, folder: Path) -> None:
    family(recipe)["candidates"]["b"] = str(write_tiny_model(folder / "deep", num_layers=7))


def another_architecture(recipe: Recipe, folder: Path) -> None:
    family(recipe)["candidates"]["b"] = str(write_tiny_model(folder / "qwen", model_type="qwen2"))


def missing_model(recipe: Recipe, folder: Path) -> None:
    family(recipe)["base"] = "./no/such/folder"


def missing_text(recipe: Recipe, folder: Path) -> None:
    text_of(recipe)["init_args"]["path"] = "no-such-file.txt"


def empty_text(recipe: Recipe, folder: Path) -> None:
    (folder / "empty.txt").write_text(" \n")
    text_of(recipe)["init_args"]["path"] = str(folder / "empty.txt")


def unknown_task(recipe: Recipe, folder: Path) -> None:
    lm_eval_part(recipe, tasks=["hellaswga"])


def unknown_nevergrad(recipe: Recipe, folder: Path) -> None:
    recipe["optimizer"] = {"class_path": "Nevergrad", "init_args": {"optimizer": "TwoPointDE"}}


def planning_without_a_budget(recipe: Recipe, folder: Path) -> None:
    recipe["optimizer"] = {"class_path": "Nevergrad", "init_args": {"optimizer": "NGOpt"}}


def missing_plugin(recipe: Recipe, folder: Path) -> None:
    recipe["plugins"] = ["my_opps.py"]


def missing_section(recipe: Recipe, folder: Path) -> None:
    del recipe["fitness"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (misspelt_class, ["'Nevergard'", "Did you mean 'Nevergrad'?"]),
        (misspelt_nested_class, ["'SLRP'", "Did you mean 'SLERP'?"]),
        (misspelt_key, ["PruningSpace has no setting 'merge'", "Did you mean 'merges'?"]),
        (
            misspelt_section,
            ["no section 'optimiser'", "Did you mean 'optimizer'?", "needs the section 'optimizer'"],
        ),
        (misspelt_study_setting, ["no setting 'trails'", "Did you mean 'trials'?"]),
        (wrong_type, ["study.trials", "many"]),
        (out_of_range, ["study.trials is a whole number from 1", "got 0"]),
        (unknown_layer, ["17", "protect"]),
        (everything_removed, ["6"]),
        (another_depth, ["candidate 'b'", "7", "6"]),
        (another_architecture, ["candidate 'b'", "qwen2", "llama"]),
        (missing_model, ["./no/such/folder"]),
        (missing_text, ["'no-such-file.txt'", "No such file"]),
        (empty_text, ["empty.txt"]),
        (unknown_task, ["hellaswga", "hellaswag"]),
        (unknown_nevergrad, ["'TwoPointDE'", "'TwoPointsDE'"]),
        (planning_without_a_budget, ["NGOpt", "Set budget"]),
        (missing_plugin, ["my_opps.py"]),
        (missing_section, ["needs the section 'fitness'"]),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    spoil: Callable[[Recipe, Path], None],
    said: list[str],
    recipe: Recipe,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(recipe, tmp_path)
    assert main(["search", "--config", write(recipe)]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for words in said:
        assert words in message
    assert not (tmp_path / "run").exists()


def test_all_faults_of_a_recipe_come_in_one_message(
    recipe: Recipe, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for spoil in (misspelt_class, misspelt_key, misspelt_study_setting):
        spoil(recipe, tmp_path)
    recipe["famly"] = 1
    assert main(["search", "--config", write(recipe)]) == 2
    message = capsys.readouterr().err
    assert "has 4 faults" in message
    for words in ("'Nevergard'", "'merge'", "'trails'", "'famly'"):
        assert words in message


def test_faults_of_constructors_and_of_data_come_together_too(
    recipe: Recipe, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space(recipe)["removal"]["init_args"] = {"ratio": 1.5}
    recipe["study"]["trials"] = -1
    unknown_nevergrad(recipe, tmp_path)
    assert main(["search", "--config", write(recipe)]) == 2
    message = capsys.readouterr().err
    for words in ("1.5", "study.trials", "TwoPointDE"):
        assert words in message


def test_missing_data_and_missing_models_come_together(
    recipe: Recipe, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing_text(recipe, tmp_path)
    missing_model(recipe, tmp_path)
    assert main(["search", "--config", write(recipe)]) == 2
    message = capsys.readouterr().err
    assert "no-such-file.txt" in message
    assert "./no/such/folder" in message


def test_a_full_disk_loses_no_trial(
    recipe: Recipe,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tailorlib.journal as journal

    real, calls = os.fsync, []

    def fills_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 11:  # recipe, header and its copy with their folder, session, dense model, three trials
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        assert main(["search", "--config", write(recipe)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert journal.read_trials(tmp_path / "run")[1][-1].number == 2
    assert main(["search", "--resume", str(tmp_path / "run")]) == 0
    assert len(journal.read_trials(tmp_path / "run")[1]) == 8


def test_a_changed_recipe_is_not_resumed(
    recipe: Recipe, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--config", write(recipe), "--study.trials", "4"]) == 0
    before = (tmp_path / "run" / FILE_NAME).read_bytes()
    space(recipe)["merges"] = ["TIES"]
    recipe["study"]["seed"] = 5
    assert main(["search", "--config", write(recipe), "--resume", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "search_space.init_args.merges" in message
    assert "study.seed: was 0, is 5" in message
    assert (tmp_path / "run" / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize(
    "argv", [["search", "--resume", "nowhere"], ["export", "nowhere"], ["evaluate", "nowhere"]]
)
def test_a_folder_that_is_no_run_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layer", "said"),
    [(LayerSource("base", 99), "0 to 5"), (LayerSource("c", 0), "'c'")],
)
def test_a_tailoring_that_does_not_fit_the_family_is_refused(
    layer: LayerSource,
    said: str,
    recipe: Recipe,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "tailoring.yaml"
    file.write_text(Tailoring((LayerPlan((layer,)),)).to_yaml())
    out = tmp_path / "out"
    argv = ["export", "--config", write(recipe), "--tailoring", str(file), "--output", str(out)]
    assert main(argv) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
    assert not list(tmp_path.glob("*out*"))


def test_unknown_options_and_verbs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serch"]) == 2
    assert main(["search", "--studdy.trials", "3"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_misspelt_override_is_answered_like_a_misspelt_recipe(
    recipe: Recipe, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(recipe)
    assert main(["search", "--config", path, "--optimizer.init_args.optimzer", "CMA"]) == 2
    assert "Nevergrad has no setting 'optimzer'. Did you mean 'optimizer'?" in capsys.readouterr().err
    assert main(["search", "--config", path, "--optimizer", "Nevergard"]) == 2
    assert "Did you mean 'Nevergrad'?" in capsys.readouterr().err


def test_flags_before_a_verb_and_values_of_a_wrong_type_are_answered(
    recipe: Recipe, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(["-x", "list"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["search", "--config", write(recipe), "--study.trial_seconds", "abc"]) == 2
    message = capsys.readouterr().err
    assert "study.trial_seconds" in message
    assert "abc" in message
