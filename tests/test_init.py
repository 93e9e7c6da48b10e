"""``tailor init``: what it writes runs; what can't be is said at once, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from tailorlib.cli import main
from tailorlib.init import Described
from tailorlib.journal import read_trials
from tailorlib.model_names import named_models
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
        main(["init", str(family / "base"), f"on={family / 'a'}", f"1={family / 'b'}", "--output", str(output)])
        == 0
    )
    candidates = yaml.safe_load(output.read_text(encoding="utf-8"))["family"]["init_args"]["candidates"]
    assert list(candidates) == ["on", "1"]


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
    assert (
        main(
            [
                "init",
                base,
                base,
                f"base={other}",
                f"1e3={adapter}",
                f"x={adapter}",
                str(adapter),
                "--output",
                str(output),
            ]
        )
        == 2
    )
    message = capsys.readouterr().err
    assert "A candidate is another model than the base" in message
    assert "got 'base', which is the base's" in message
    assert "A candidate is given once" in message
    assert "A name is no number, got '1e3'" in message
    assert main(["init", base, f"x={adapter}", "--ratio", "0.9", "--output", str(output)]) == 2
    assert "--ratio keeps a layer or more, got 0.9 of 6 layers" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("base", "references", "names"),
    [
        (
            "Qwen/Qwen2.5-7B",
            ["Qwen/Qwen2.5-Math-7B", "Qwen/Qwen2.5-Coder-7B-Instruct"],
            ["math", "coder-instruct"],
        ),
        ("Qwen/Qwen2.5-Math-7B", ["Qwen/Qwen2.5-Math-7B-Instruct", "Qwen/Qwen2.5-7B"], ["instruct", "qwen2-5-7b"]),
        (
            "meta-llama/Llama-2-13b-hf",
            ["WizardLM/WizardLM-13B-V1.2", "x/llama-2-13b-code-alpaca"],
            ["wizardlm-v1-2", "code-alpaca"],
        ),
        ("org/m", ["alice/m-chat", "bob/m-chat", "bob/m-chat@v2"], ["chat", "bob-chat", "chat-v2"]),
        (
            "org/m",
            ["a/base", "b/1", "c/No", "d/null", "e/13b", "f/---", "g/true"],
            ["model-base", "model-1", "model-no", "model-null", "model-13b", "model", "model-true"],
        ),
        (
            "package:smol/SmolLM2-135M.Q8_0.gguf",
            ["package:smol/SmolLM2-135M-Instruct.Q4_K_M.gguf", "/x/Smol-Code-F16.gguf#sha256=1"],
            ["instruct", "smol-code"],
        ),
        ("org/m", ["./runs/m chat/", "../other/", "/a/b=c/d"], ["chat", "other", "d"]),
        ("org/m", ["mine=x/y", "z/mine", "=q/mine"], ["mine", "z-mine", "q-mine"]),
        (
            "org/m",
            ["/h/models--org--m-chat/snapshots/0a1b2c", "o/" + "long-" * 30],
            ["chat", "-".join(["long"] * 8)],
        ),
    ],
)
def test_names_are_short_unique_and_no_words_of_yaml(base: str, references: list[str], names: list[str]) -> None:
    found, faults = named_models(base, references)
    assert faults == []
    assert list(found) == names
    assert list(yaml.safe_load("\n".join(f"{name}: 0" for name in found))) == names


def test_whatever_is_written_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hostile names of models, files and tasks: the search's parser takes the recipe, and gives it back."""
    monkeypatch.setattr(
        "tailorlib.init._describe", lambda reference: Described(reference, "llama", layers=200, parameters=10**6)
    )
    monkeypatch.chdir(tmp_path)
    base = "models/ba: #se {x}\n---\n'\"[b]"
    given = [
        "a/Qwen2.5-Math-7B",
        "a/Qwen2.5-Coder-7B",
        "no=./x: y",
        "null=- z",
        "1=@",
        "2.5=!!python/x y",
        "b/&anchor",
        "c/null",
    ]
    line = [
        "init",
        base,
        *given,
        "--tasks",
        "a]b,null, c: d",
        "--ratio",
        "1e-05",
        "--output",
        "my re:cipe\n1.yaml",
    ]
    assert main(line) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"^0$"):  # as --help does
        main(["search", "--config", "my re:cipe\n1.yaml", "--print_config"])
    read = yaml.safe_load(capsys.readouterr().out)
    family = read["family"]["init_args"]
    assert family["base"] == base
    assert list(family["candidates"].items()) == [
        ("qwen2-5-math-7b", given[0]),
        ("qwen2-5-coder-7b", given[1]),
        *(tuple(spec.split("=", 1)) for spec in given[2:6]),
        ("anchor", given[6]),
        ("model-null", given[7]),
    ]
    tasks = read["fitness"]["init_args"]["parts"]["tasks"]["init_args"]["tasks"]
    assert tasks == ["a]b", "null", "c: d"]
    assert read["study"]["directory"] == "runs/my re:cipe\n1"


def test_a_revision_and_a_slash_at_the_end_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def config_of(name: str, **settings: object) -> object:
        asked.append((name, settings["revision"]))
        return AutoConfig.for_model("llama", num_hidden_layers=4, hidden_size=32, intermediate_size=64)

    monkeypatch.setattr("tailorlib.init.AutoConfig.from_pretrained", config_of)
    output = tmp_path / "recipe.yaml"
    assert main(["init", "org/m@v1/", "org/m-chat/", "--output", str(output)]) == 0
    assert asked == [("org/m", "v1"), ("org/m-chat", None)]
    family = yaml.safe_load(output.read_text(encoding="utf-8"))["family"]["init_args"]
    assert family == {"base": "org/m@v1", "candidates": {"chat": "org/m-chat"}}


def test_a_file_that_is_there_stays(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "recipe.yaml"
    output.write_text("mine", encoding="utf-8")
    argv = ["init", str(family / "base"), str(family / "a"), "--output", str(output)]
    assert main(argv) == 2
    assert "exists" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "mine"
    assert main([*argv, "--overwrite"]) == 0


def test_a_command_line_without_models_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 2
    assert "Traceback" not in capsys.readouterr().err
