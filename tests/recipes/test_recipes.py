"""Every recipe that the project ships is parsed by the real command line and runs on a tiny stand-in family."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailorlib.cli import main
from tailorlib.evaluation.tasks import check_tasks
from tailorlib.journal import read_trials
from tailorlib.recipe import check_recipe, missing_sections, read_recipe
from tailorlib.testing.tiny import write_tiny_family

sys.path.insert(0, str(Path(__file__).parent))

from stand_ins import (
    RECIPES,
    ROOT,
    comment_of,
    family_of,
    fitnesses,
    plan_of,
    shape_of,
    with_family,
    with_tasks,
)

TRIALS = 8
"""Trials of a smoke run: warm starts, and some that the optimizer proposes."""


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, Path]]:
    """Makes a tiny base and three fine-tunes of an architecture and depth, each family once."""

    @cache
    def make(model_type: str, depth: int) -> dict[str, Path]:
        return write_tiny_family(
            tmp_path_factory.mktemp(model_type),
            candidates=3,
            model_type=model_type,
            num_layers=depth,
            max_position_embeddings=512,
        )

    return make


def test_all_recipes_are_found() -> None:
    assert [p.stem for p in RECIPES] == [
        "depth-integration",
        "eight-gpus",
        "gemma-3-1b",
        "layer-fusion",
        "light",
        "llama-3-8b",
        "mistral-7b",
        "one-gpu-24gb",
        "paper-llama-2-13b",
        "paper-llama-2-7b",
        "quickstart",
        "qwen2.5-7b",
        "removal-only",
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
    asked = {}
    for settings in fitnesses(read_recipe(path)):
        asked.setdefault(settings.get("include_path"), set()).update(settings["tasks"])
    for folder, names in asked.items():
        check_tasks(sorted(names), folder)


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
def test_search_and_report_name_no_task_or_text_twice(path: Path) -> None:
    recipe = read_recipe(path)
    judged = [
        recipe["benchmark"]["fitness"],
        *([recipe["validation"]["fitness"]] if "validation" in recipe else []),
    ]
    searched, *others = (set(data_of(section)) for section in (recipe["fitness"], *judged))
    assert searched
    for i, other in enumerate(others):
        assert other, path
        assert not other & searched.union(*others[i + 1 :])
    started = set(data_of(recipe.get("warm_starts", [])))
    assert not started & set().union(*others)  # what a search starts from may be what it searches on


def data_of(section: Any) -> Iterator[str]:
    """Yield the names of all tasks of a section, and its texts with their splits."""
    for settings in fitnesses(section):
        yield from (task if isinstance(task, str) else task["task"] for task in settings["tasks"])
    for text in ("PydocTopics", "StandardLibraryCode", "ArithmeticProblems"):
        yield from (f"{text} {settings['split']}" for settings in fitnesses(section, text))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_says_what_tailor_plan_says(path: Path, tmp_path: Path) -> None:
    rows = plan_of(path, tmp_path)
    published, config = shape_of(read_recipe(path))
    assert rows["parameters"].split(" M dense")[0] == f"{published / 1e6:.1f}"  # the shape is the true one
    assert rows["layers"].split(",")[0] == str(config["num_hidden_layers"])
    text = path.read_text(encoding="utf-8")
    said = dict(re.findall(r"^#   (\w+) +(.+)$", text.partition("\nfamily:")[0], flags=re.MULTILINE))
    for name, line in comment_of(path, rows).items():
        assert said[name] == line, "python tests/benchmarks/plan_of_recipe.py --write RECIPE mends it"


def test_the_memory_of_a_recipe_is_that_of_its_models_and_of_what_may_be_merged() -> None:
    model, layer = 8_030_261_248, 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    norms, outer, gib = 2 * 4096, 2 * 128256 * 4096 + 4096, 2**30
    assert 32 * (layer + norms) + outer == model
    said = {
        # embeddings and head are the base's; 24 merged layers are more than a GiB
        "llama-3-8b": (4 * 2 * 32 * (layer + norms) + 2 * outer, 24 * 2 * (layer + norms) + gib),
        "one-gpu-24gb": (
            3 * 32 * (0.52 * layer + 2 * norms) + 2 * outer,
            24 * (0.52 * layer + 2 * norms) + gib / 4,
        ),
    }
    for name, (family, caches) in said.items():
        text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        assert re.search(
            rf"^#   memory +{family / 1e9:.2f} GB .* {caches / 1e9:.2f} GB$", text, flags=re.MULTILINE
        )


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_gallery_has_a_recipe_and_its_memory(path: Path) -> None:
    page = (ROOT / "docs" / "recipe-gallery.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{path.name}`")]
    memory = re.search(
        r"^#   memory +([\d.]+) GB.* ([\d.]+) GB$", path.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert memory is not None
    assert f"{memory[1]} + {memory[2]}" in row


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_runs_on_a_stand_in_family(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    families: Callable[[str, int], dict[str, Path]],
) -> None:
    recipe = read_recipe(path)
    removal = recipe["search_space"]["init_args"].get("removal") or {"init_args": {}}
    depth = max(12, *removal["init_args"].get("protect", []), 0) + 1
    base, *others = families(shape_of(recipe)[1]["model_type"], depth).values()
    with_family(recipe, base, dict(zip(family_of(recipe)[1], others, strict=False)), "float32")
    with_tasks(recipe, tmp_path / "tasks")
    for text in (text for kind in ("Perplexity", "KLDivergence") for text in fitnesses(recipe, kind)):
        text["max_tokens"] = 128
    for questions in fitnesses(recipe):
        questions["limit"] = 12
    if "compensation" in recipe:
        recipe["compensation"]["init_args"]["calibration"] |= {"tokens": 1500, "context_length": 64}
    recipe["study"] |= {"directory": str(tmp_path / "run"), "trials": TRIALS}
    one = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
    recipe["trainer"] = {**recipe.get("trainer", {}), **one}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(ROOT)  # where a recipe's own relative paths start
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    assert main(["search", "--config", str(tmp_path / "recipe.yaml")]) == 0
    assert "will flatter" not in capsys.readouterr().out  # search, calibration and report share data
    trials = read_trials(tmp_path / "run")[1]
    assert {t.state for t in trials} == {"complete"}
    assert sum(t.costs["samples"] for t in trials) >= TRIALS * max(t.samples for t in trials)
    assert len(trials) == TRIALS or "scheduler" in recipe
    assert {t.origin for t in trials} - {"optimizer"}  # the recipe's warm starts lie in its space
    rows = json.loads((tmp_path / "run" / "benchmark.json").read_text())["rows"]
    baselines = recipe["benchmark"].get("baselines", [])
    assert len(rows) == 2 + bool(others and family_of(recipe)[1]) + len(baselines)
    assert (tmp_path / "run" / "model" / "config.json").exists()
