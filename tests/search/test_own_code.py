"""A study of models with own code: searched, resumed and exported by the recipe of its run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from own_code_cases import PLUGIN
from transformers import AutoModelForCausalLM

from tailorlib.cli import main
from tailorlib.journal import read_trials
from tailorlib.models.architecture import ARCHITECTURES

Write = Callable[[dict[str, Any]], str]


@pytest.fixture
def own(recipe: dict[str, Any], custom: dict[str, Path], tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The recipe of the tiny family, for models with own code."""
    (tmp_path / "rows.py").write_text(f"# {tmp_path}\n{PLUGIN}")  # the same file would not be run again
    settings = {"base": str(custom["base"]), "candidates": {"a": str(custom["a"])}, "dtype": "float32"}
    recipe["family"]["init_args"] = settings
    recipe["plugins"] = [str(tmp_path / "rows.py")]
    recipe["study"]["trials"] = 3
    del recipe["warm_starts"]
    yield recipe
    ARCHITECTURES.pop("tinycustom", None)


def test_a_search_says_what_to_do_and_runs_nothing(
    own: dict[str, Any], write: Write, custom: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--config", write(own)]) == 2
    assert "family.init_args.trust_remote_code" in capsys.readouterr().err.replace("\n", "")
    own["family"]["init_args"]["trust_remote_code"] = True
    assert main(["search", "--config", write(own)]) == 2
    assert "trust_remote_code is asked for per model" in capsys.readouterr().err
    assert not custom["base ran"].exists()


def test_a_search_is_resumed_and_exported_with_its_recipe(
    own: dict[str, Any], write: Write, custom: dict[str, Path], tmp_path: Path
) -> None:
    own["family"]["init_args"]["trust_remote_code"] = ["base"]
    run = tmp_path / "run"
    assert main(["search", "--config", write(own)]) == 0
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert kept["family"]["init_args"]["trust_remote_code"] == ["base"]
    assert main(["search", "--resume", str(run), "--study.trials", "4"]) == 0
    assert [trial.fitness is not None for trial in read_trials(run)[1]] == [True] * 4
    assert main(["export", str(run), "--output", str(tmp_path / "model"), "--verify", "true"]) == 0
    assert not custom["a ran"].exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert type(loaded).__name__ == "TinyForCausalLM"
    assert loaded.dtype == torch.float32
    assert type(loaded).__module__ in sys.modules
