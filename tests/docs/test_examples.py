"""Examples of the pages run for real on a tiny family: the five minutes, one's own task, 4 bits, loggers."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tailorlib.cli import main
from tailorlib.journal import read_trials
from tailorlib.recipe import check_recipe, missing_sections, read_recipe
from tailorlib.testing.tiny import write_tiny_model

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the models that the examples name."""
    base = write_tiny_model(tmp_path / "models" / "base", num_layers=8)
    for seed, name in enumerate(("chat", "math"), start=1):
        write_tiny_model(tmp_path / "models" / name, num_layers=8, seed=seed, noise_from=base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> int:
    with torch.random.fork_rng(devices=[]):  # Lightning's data loader draws a seed
        return main([*args])


def search(recipe: dict[str, Any]) -> int:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return run("search", "--config", "recipe.yaml", "--trainer.accelerator", "cpu")


def small() -> dict[str, Any]:
    """The recipe of the five minutes, without what takes time."""
    recipe = read_recipe(EXAMPLES / "start.yaml")
    recipe["family"]["init_args"]["dtype"] = "float32"
    recipe["optimizer"] = "RandomSearch"
    recipe["study"] |= {"trials": 2, "export": False}
    return {key: value for key, value in recipe.items() if key not in ("warm_starts", "benchmark")}


def test_every_example_is_accepted() -> None:
    found = sorted(EXAMPLES.rglob("*.yaml"))
    assert [p.name for p in found] == ["four-bit.yaml", "recipe.yaml", "riddles.yaml", "start.yaml", "track.yaml"]
    for path in found:
        recipe = read_recipe(path)
        assert "task" in recipe or check_recipe(recipe) == [], path
    assert missing_sections(read_recipe(EXAMPLES / "start.yaml")) == []


def test_the_five_minutes(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(EXAMPLES / "start.yaml", "recipe.yaml")
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    ran = [words[1:] for words in commands if words[0] == "tailor"]
    assert len(ran) == len(commands) - 1 >= 11  # all but pip
    for args in ran:
        quick = ["--trainer.accelerator", "cpu"] if args[0] == "search" else []
        assert run(*args, *quick) == 0, f"{args}: {capsys.readouterr().err}"
    _, trials = read_trials(Path("runs/first"))
    assert len(trials) == 16
    for made in ("model/config.json", "benchmark.md", "study.png", "report.html", "mergekit.yaml"):
        assert Path("runs/first", made).is_file(), made
    assert Path("another-model/config.json").is_file()
    assert check_recipe(read_recipe("mine.yaml")) == []
    assert len(trials[3].tailoring.layers) == 6
    capsys.readouterr()
    runpy.run_path(str(EXAMPLES / "load.py"))
    assert capsys.readouterr().out.startswith("The opposite of hot is")
    runpy.run_path(str(EXAMPLES / "figures.py"))
    assert Path("history.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path("map.svg").read_text(encoding="utf-8")


def test_a_task_and_a_text_of_ones_own(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(models / "datasets"))
    shutil.copytree(EXAMPLES, models / "docs" / "examples")
    recipe = {**small(), **read_recipe(EXAMPLES / "own-task" / "recipe.yaml")}
    assert search(recipe) == 0, capsys.readouterr().err
    _, trials = read_trials(Path("runs/first"))
    assert {"riddles/riddles/acc", "story/perplexity"} <= set(trials[0].metrics), set(trials[0].metrics)
    assert 6 * trials[0].metrics["riddles/riddles/acc"] == pytest.approx(
        round(6 * trials[0].metrics["riddles/riddles/acc"])
    )


def test_four_bits(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {**small(), **read_recipe(EXAMPLES / "four-bit.yaml")}
    assert search(recipe) == 0, capsys.readouterr().err
    _, trials = read_trials(Path("runs/first"))
    assert [t.state for t in trials] == ["complete", "complete"]


def test_loggers_beside_each_other(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = read_recipe(EXAMPLES / "track.yaml")["trainer"]["logger"]
    assert [logger["class_path"] for logger in loggers] == ["CSVLogger", "TensorBoardLogger"]
    loggers[0]["init_args"]["save_dir"] = "runs/first"
    assert search({**small(), "trainer": {"logger": loggers[:1]}}) == 0, capsys.readouterr().err
    head = Path("runs/first/metrics/metrics.csv").read_text().splitlines()[0]
    page = (ROOT / "docs" / "track.md").read_text(encoding="utf-8")
    for name in ("fitness", "best_fitness", "samples", "fidelity", "seconds", "layers", "failed"):
        assert name in head.split(",") and f"`{name}`" in page
