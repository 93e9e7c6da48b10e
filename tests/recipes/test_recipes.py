"""Every recipe that the project ships is parsed by the real command line and runs on a tiny stand-in family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tailorlib.cli import main
from tailorlib.journal import read_trials
from tailorlib.recipe import check_recipe, missing_sections, read_recipe
from tailorlib.testing.tiny import write_tiny_model

ROOT = Path(__file__).parents[2]
RECIPES = [p for p in sorted((ROOT / "recipes").rglob("*.yaml")) if "task" not in read_recipe(p)]
"""The recipes; a YAML file with the key ``task`` is an lm-eval task."""


def test_all_recipes_are_found() -> None:
    assert [str(p.relative_to(ROOT)) for p in RECIPES] == ["recipes/quickstart.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_has_no_fault(path: Path) -> None:
    recipe = read_recipe(path)
    assert check_recipe(recipe) + missing_sections(recipe) == []


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
        "init_args": {"base": str(base), "candidates": candidates, "dtype": "float32"},
    }
    recipe["study"] |= {"directory": str(tmp_path / "run"), "trials": 10}
    recipe["trainer"] = {**recipe.get("trainer", {}), "accelerator": "cpu", "devices": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(ROOT)  # where a recipe's own relative paths start
    assert main(["search", "--config", str(tmp_path / "recipe.yaml")]) == 0
    assert [t.state for t in read_trials(tmp_path / "run")[1]] == ["complete"] * 10
    assert (tmp_path / "run" / "model" / "config.json").exists()
