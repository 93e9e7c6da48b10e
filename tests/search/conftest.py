from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tailorlib_strategies.fitness import Perplexity
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.texts import PlainText

from tailorlib.models.family import ModelFamily
from tailorlib.search.evaluator import Evaluator
from tailorlib.search.study import Study, StudySettings
from tailorlib.testing.tiny import write_tiny_family

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from own_code_cases import custom, modules_cache  # noqa: F401 - fixtures

TEXT = "The quick brown fox jumps over the lazy dog. Anna has 3 apples and buys 4 more. " * 12


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    write_tiny_family(folder, candidates=2)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, recipe_in: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A recipe for the tiny family: 6 layers, 2 removed, 2 candidates."""
    return recipe_in(tmp_path)


@pytest.fixture(scope="session")
def recipe_in(family_folder: Path) -> Callable[[Path], dict[str, Any]]:
    """Return a function that makes this recipe for a folder, with its text there."""
    return partial(_tiny_recipe, family_folder=family_folder)


def _tiny_recipe(folder: Path, family_folder: Path) -> dict[str, Any]:
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    text = {"class_path": "PlainText", "init_args": {"path": str(folder / "text.txt")}}
    perplexity = {
        "class_path": "Perplexity",
        "init_args": {"text": text, "context_length": 64, "max_tokens": None},
    }
    return {
        "family": {
            "class_path": "ModelFamily",
            "init_args": {
                "base": str(family_folder / "base"),
                "candidates": {name: str(family_folder / name) for name in "ab"},
                "dtype": "float32",
            },
        },
        "search_space": {
            "class_path": "PruningSpace",
            "init_args": {
                "removal": {"class_path": "LayerRemoval", "init_args": {"count": 2}},
                "merges": ["TaskArithmetic", "DARETIES"],
            },
        },
        "optimizer": "Nevergrad",
        "fitness": {"class_path": "WeightedMean", "init_args": {"parts": {"text": perplexity}}},
        "warm_starts": [{"class_path": "BlockInfluence", "init_args": {"text": text, "context_length": 64}}],
        "benchmark": {"fitness": perplexity, "baselines": ["RandomTailoring"]},
        "study": {"directory": str(folder / "run"), "trials": 8},
        "trainer": {"accelerator": "cpu"},
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Write a recipe file and return its path."""

    def write(recipe: dict[str, Any], name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def make(tmp_path: Path, family_folder: Path) -> Callable[..., Evaluator]:
    """Return a function that makes an evaluator of its own engine and family."""

    def make(rank: int = 0, ranks: int = 1, folder: Path | None = None, **settings: Any) -> Evaluator:
        (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
        study = Study(
            family=ModelFamily(
                str(family_folder / "base"), {n: str(family_folder / n) for n in "ab"}, dtype="float32"
            ),
            space=PruningSpace(LayerRemoval(count=2), merges=[TaskArithmetic()]),
            optimizer=RandomSearch(),
            fitness=Perplexity(PlainText(str(tmp_path / "text.txt")), context_length=16, max_tokens=None),
            settings=StudySettings(**settings),
        )
        engine = study.prepare(torch.device("cpu"))
        study.family.load(torch.device("cpu"))
        return Evaluator(study, engine, rank=rank, ranks=ranks, folder=folder)

    return make
