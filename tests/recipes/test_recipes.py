"""Every recipe that the project ships is parsed by the real command line and runs on a tiny stand-in family."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailorlib.cli import main
from tailorlib.evaluation.tasks import check_tasks
from tailorlib.journal import read_trials
from tailorlib.recipe import check_recipe, missing_sections, read_recipe
from tailorlib.testing.tiny import write_tiny_model

ROOT = Path(__file__).parents[2]
RECIPES = [p for p in sorted((ROOT / "recipes").rglob("*.yaml")) if "task" not in read_recipe(p)]
"""The recipes; a YAML file with the key ``task`` is an lm-eval task."""


KEPT = ("dtype", "quantization")
"""Settings of a family that its stand-in has, too."""


def fitnesses(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of each LMEval, at any depth."""
    if isinstance(value, dict):
        if value.get("class_path") == "LMEval":
            yield value["init_args"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from fitnesses(item)


def stand_in_tasks(folder: Path, names: list[str]) -> Path:
    """Write tasks of the given names with three questions."""
    folder.mkdir()
    questions = [{"question": f"What is {n} and {n}?", "choices": [str(n), str(2 * n)]} for n in (2, 3, 4)]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(question) for question in questions))
    for name in names:
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": 1,
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_all_recipes_are_found() -> None:
    assert [p.stem for p in RECIPES] == [
        "eight-gpus",
        "paper-llama-2-13b",
        "quickstart",
        "size-against-quality",
        "slurm",
    ]
    assert all(p.parent == ROOT / "recipes" for p in RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_has_no_fault(path: Path) -> None:
    recipe = read_recipe(path)
    assert check_recipe(recipe) + missing_sections(recipe) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_command_line_reads_a_recipe_and_its_trainer(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", "--config", str(path), "--print_config"])
    assert ended.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    trainer = read_recipe(path).get("trainer", {})
    assert {key: resolved["trainer"][key] for key in trainer} == trainer


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_tasks_of_a_recipe_are_lm_evals_or_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for settings in fitnesses(read_recipe(path)):
        check_tasks(settings["tasks"], settings.get("include_path"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_has_work_for_each_of_its_devices(path: Path) -> None:
    recipe = read_recipe(path)
    trainer, study = recipe.get("trainer", {}), recipe["study"]
    ranks = trainer.get("num_nodes", 1) * trainer.get("devices", 1)
    assert study.get("batch_size", 1) * study.get("shards", 1) >= ranks
    assert trainer.get("strategy") == (None if ranks == 1 else "candidates")


def test_the_slurm_script_asks_for_what_its_recipe_says() -> None:
    script = ROOT / "recipes" / "slurm.sh"
    text = script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, flags=re.MULTILINE))
    (named,) = re.findall(r"--config (\S+)", text)
    recipe = read_recipe(ROOT / named)
    assert int(asked["nodes"]) == recipe["trainer"]["num_nodes"]
    assert int(asked["ntasks-per-node"]) == int(asked["gpus-per-node"]) == recipe["trainer"]["devices"]
    assert recipe["study"]["existing"] == "resume"
    tasks = {task for settings in fitnesses(recipe) for task in settings["tasks"]}
    (fetched,) = re.findall(r"--tasks (\S+)", text)
    assert set(fetched.split(",")) == tasks


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_runs_on_a_stand_in_family(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(path)
    settings: dict[str, Any] = recipe["family"]["init_args"]
    names = list(settings.get("variants") or settings["candidates"])
    base = write_tiny_model(tmp_path / "base", num_layers=8)
    candidates = {
        name: str(write_tiny_model(tmp_path / name, num_layers=8, seed=i, noise_from=base))
        for i, name in enumerate(names, start=1)
    }
    recipe["family"] = {
        "class_path": "ModelFamily",
        "init_args": {
            "base": str(base),
            "candidates": candidates,
            "dtype": "float32",
            **{key: settings[key] for key in KEPT if key in settings},
        },
    }
    of_the_hub = [task for task in fitnesses(recipe) if "include_path" not in task]
    tasks = stand_in_tasks(tmp_path / "tasks", sorted({name for task in of_the_hub for name in task["tasks"]}))
    for task in of_the_hub:
        task["include_path"] = str(tasks)
        task.pop("num_fewshot", None)  # they have three questions
    recipe["study"] |= {"directory": str(tmp_path / "run"), "trials": 10}
    one = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
    recipe["trainer"] = {**recipe.get("trainer", {}), **one}
    scheduled = recipe.get("scheduler")
    if scheduled is not None:
        scheduled["init_args"]["min_samples"] = 2  # of the stand-ins' few
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(ROOT)  # where a recipe's own relative paths start
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    assert main(["search", "--config", str(tmp_path / "recipe.yaml")]) == 0
    trials = read_trials(tmp_path / "run")[1]
    assert {t.state for t in trials} == {"complete"}
    assert sum(t.costs["samples"] for t in trials) >= 10 * max(t.samples for t in trials)
    assert len(trials) == 10 or scheduled is not None
    assert (tmp_path / "run" / "model" / "config.json").exists()
