"""``tailor init``: what it writes runs; what can't be is said at once, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tailorlib.cli import main
from tailorlib.journal import read_trials
from tailorlib.testing.tiny import write_tiny_family, write_tiny_model


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    write_tiny_family(folder, candidates=2)
    return folder


def test_the_recipe_runs_as_it_is(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine.yaml"
    base, first, second = (str(family / name) for name in ("base", "a", "b"))
    assert main(["init", base, f"math={first}", second, "--output", str(output), "--ratio", "0.3"]) == 0
    recipe = yaml.safe_load(output.read_text(encoding="utf-8"))
    assert recipe["family"]["init_args"] == {"base": base, "candidates": {"math": first, "b": second}}
    assert "# 2 of 6 layers go." in output.read_text(encoding="utf-8")  # ceil(0.3 * 6)
    assert f"tailor search --config {output}" in capsys.readouterr().out
    run = tmp_path / "run"
    shrunk = ["--study.directory", str(run), "--study.trials", "7", "--trainer.accelerator", "cpu"]
    assert main(["search", "--config", str(output), *shrunk]) == 0
    trials = read_trials(run)[1]
    assert {t.state for t in trials} == {"complete"}
    assert sum(t.costs["samples"] for t in trials) >= 7 * max(t.samples for t in trials)
    assert {len(t.tailoring.layers) for t in trials} == {4}
    assert (run / "model" / "config.json").exists()


def test_tasks_become_a_part_of_the_fitness(family: Path, tmp_path: Path) -> None:
    output = tmp_path / "recipe.yaml"
    argv = ["init", str(family / "base"), str(family / "a"), "--output", str(output), "--tasks", "arc_easy, piqa"]
    assert main(argv) == 0
    parts = yaml.safe_load(output.read_text(encoding="utf-8"))["fitness"]["init_args"]["parts"]
    assert parts["tasks"] == {"class_path": "LMEval", "init_args": {"tasks": ["arc_easy", "piqa"], "limit": 100}}


def test_names_that_yaml_would_take_for_something_else_stay_names(family: Path, tmp_path: Path) -> None:
    output = tmp_path / "recipe.yaml"
    assert (
        main(["init", str(family / "base"), f"on={family / 'a'}", f"1e3={family / 'b'}", "--output", str(output)])
        == 0
    )
    candidates = yaml.safe_load(output.read_text(encoding="utf-8"))["family"]["init_args"]["candidates"]
    assert list(candidates) == ["on", "1e3"]


def test_all_faults_come_in_one_message_and_nothing_is_written(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_model(tmp_path / "other", num_layers=5)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    output = tmp_path / "recipe.yaml"
    base = str(family / "base")
    argv = ["init", base, f"deep={other}", f"gone={tmp_path / 'nowhere'}", f"lora={adapter}", "--ratio", "1.5"]
    assert main([*argv, "--output", str(output)]) == 2
    message = capsys.readouterr().err
    assert "--ratio is a share of the layers between 0 and 1, got 1.5" in message
    assert "deep: a candidate has the base's number of layers, 6" in message
    assert "gone: A model is a folder" in message
    assert "lora" not in message  # an adapter is a candidate
    assert main(["init", str(adapter), f"m={base}", "--output", str(output)]) == 2
    assert "Name the model that it was trained on" in capsys.readouterr().err
    assert main(["init", base, base, base, "--output", str(output)]) == 2
    assert "got 'base', which is the base's" in capsys.readouterr().err
    assert not output.exists()


def test_a_file_that_is_there_stays(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "recipe.yaml"
    output.write_text("mine", encoding="utf-8")
    argv = ["init", str(family / "base"), str(family / "a"), "--output", str(output)]
    assert main(argv) == 2
    assert "exists" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "mine"
    assert main([*argv, "--overwrite", "true"]) == 0


def test_a_command_line_without_models_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 2
    assert "Traceback" not in capsys.readouterr().err
