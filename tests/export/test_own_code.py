"""Exports of models with own code: the code goes along where it was trusted, and is run when it is loaded."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
import yaml
from model_cases import CPU, logits
from own_code_cases import AUTO_MAP, LAYERS, PLUGIN, edit
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.export import export_model, verify_export
from tailorlib.export.command import export_command
from tailorlib.interchange import to_mergekit
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_model

CODE = ["configuration_tiny.py", "modeling_tiny.py", "scaling_tiny.py"]
WITHOUT = Tailoring.whole("base", LAYERS, without=[1])


def family_of(folder, *listed):
    family = ModelFamily(str(folder), dtype="float32", trust_remote_code=list(listed))
    family.load(CPU)
    return family


def forget_code(folder):
    """Make a later load of a folder's code import it anew, as another process does."""
    for name in [n for n in sys.modules if n.startswith(f"transformers_modules.{folder.name}.")]:
        del sys.modules[name]


def test_an_export_loads_with_its_own_code_and_computes_the_same(custom, row, tmp_path):
    family = family_of(custom["base"], "base")
    out = export_model(family, WITHOUT, tmp_path / "out")
    assert sorted(file.name for file in out.glob("*.py")) == CODE
    assert json.loads((out / "config.json").read_text())["auto_map"] == AUTO_MAP
    expected = logits(family.stitch(WITHOUT))
    shutil.rmtree(custom["base"])
    forget_code(out)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=True)
    assert type(loaded).__name__ == "TinyForCausalLM"
    assert loaded.config.num_hidden_layers == LAYERS - 1
    assert torch.equal(logits(loaded.eval()), expected)


def test_an_export_is_verified_with_its_own_code(custom, row, tmp_path):
    family = family_of(custom["base"], "base")
    out = export_model(family, WITHOUT, tmp_path / "out")
    assert len(verify_export(family, WITHOUT, out).checks) == 8
    (out / "scaling_tiny.py").write_text("def scaled(logits, factor):\n    return -factor * logits\n")
    forget_code(out)
    with pytest.raises(TailorError, match="logits, as stored: on 5 tokens they differ"):
        verify_export(family, WITHOUT, out)
    (out / "scaling_tiny.py").unlink()
    forget_code(out)
    with pytest.raises(TailorError, match="transformers can't load it"):
        verify_export(family, WITHOUT, out)


def test_an_export_can_be_the_base_of_another_search(custom, row, tmp_path):
    out = export_model(family_of(custom["base"], "base"), WITHOUT, tmp_path / "out")
    with pytest.raises(RecipeError, match="Read that code, then list the model"):
        family_of(out)
    again = Tailoring.whole("base", LAYERS - 1, without=[0])
    family = family_of(out, "base")
    assert verify_export(family, again, export_model(family, again, tmp_path / "again"))


def test_the_card_says_that_the_model_needs_its_code(custom, row, tmp_path):
    card = (export_model(family_of(custom["base"], "base"), WITHOUT, tmp_path / "out") / "README.md").read_text()
    assert 'from_pretrained("path/to/this/folder", dtype="auto", trust_remote_code=True)' in card
    assert 'AutoTokenizer.from_pretrained("path/to/this/folder", trust_remote_code=True)' in card
    assert "needs `trust_remote_code=True`" in card
    assert "configuration\\_tiny.py, modeling\\_tiny.py, scaling\\_tiny.py" in card


@pytest.mark.parametrize("listed", [(), ("base",)])
def test_a_model_without_own_code_has_none_when_it_is_listed(folders, tmp_path, listed):
    out = export_model(family_of(folders["base"], *listed), Tailoring.whole("base", 6), tmp_path / "out")
    assert not list(out.rglob("*.py"))
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert "trust_remote_code" not in (out / "README.md").read_text()


def test_code_that_was_not_trusted_stays_behind(custom, tmp_path):
    folder = write_tiny_model(tmp_path / "known", num_layers=LAYERS)
    for name in CODE:
        shutil.copy(custom["base"] / name, folder)
    edit(folder / "config.json", auto_map=AUTO_MAP)
    out = export_model(family_of(folder), WITHOUT, tmp_path / "out")
    assert not list(out.rglob("*.py"))
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert not custom["base ran"].exists()


def test_a_tokenizer_of_own_code_goes_along_with_the_file_that_it_reads(own_tokenizer, tmp_path):
    family = family_of(own_tokenizer, "base")
    out = export_model(family, WITHOUT, tmp_path / "out")
    assert {"tokenization_tiny.py", "own.tokens"} <= {file.name for file in out.iterdir()}
    ids = AutoTokenizer.from_pretrained(out, trust_remote_code=True)("a + b")["input_ids"]
    assert ids == family.tokenizer("a + b")["input_ids"]
    assert "trust_remote_code=True" in (out / "README.md").read_text()


def test_mergekit_knows_no_type_of_one_s_own(custom, row):
    with pytest.raises(RecipeError, match="lists no architecture of the type 'tinycustom'"):
        to_mergekit(WITHOUT, family_of(custom["base"], "base"))


def test_the_recipe_of_a_run_keeps_the_setting_for_its_export(custom, row, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "rows.py").write_text(PLUGIN)
    settings = {"base": str(custom["base"]), "trust_remote_code": ["base"]}
    recipe = {
        "plugins": [str(tmp_path / "rows.py")],
        "family": {"class_path": "ModelFamily", "init_args": settings},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (run / "tailoring.yaml").write_text(WITHOUT.to_yaml())
    assert export_command(["--run", str(run), "--verify", "true"])
    assert sorted(file.name for file in (run / "model").glob("*.py")) == CODE
