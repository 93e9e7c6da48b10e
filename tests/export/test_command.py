"""``tailor export`` without a Trainer: the same folder, the same mistakes, and the Trainer's part left to it."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch
import yaml
from jsonargparse import ArgumentError
from model_cases import plan
from safetensors.torch import load_file

from tailorlib import start
from tailorlib.exceptions import ModelError, RecipeError, TailorError
from tailorlib.export import export_model
from tailorlib.export.command import export_command
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring

TAILORING = Tailoring((plan("base:0"), plan("a:1", "b:1", operation="TIES", base="base:1"), plan("b:4")))


@pytest.fixture
def recipe(folders):
    candidates = {name: str(folders[name]) for name in "ab"}
    return {
        "family": {
            "class_path": "ModelFamily",
            "init_args": {"base": str(folders["base"]), "candidates": candidates},
        }
    }


@pytest.fixture
def argv(recipe, tmp_path):
    """Return arguments that export :data:`TAILORING`; further sections and options can be given."""

    def arguments(*options, **sections):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **sections}))
        (tmp_path / "tailoring.yaml").write_text(TAILORING.to_yaml())
        files = [f"--config={tmp_path / 'recipe.yaml'}", "--tailoring", str(tmp_path / "tailoring.yaml")]
        return [*files, "--output", str(tmp_path / "out"), *options]

    return arguments


def test_a_file_is_exported_as_by_the_library(argv, folders, tmp_path, capsys):
    assert export_command(argv())
    assert "Model written to" in capsys.readouterr().out
    family = ModelFamily(str(folders["base"]), {n: str(folders[n]) for n in "ab"})
    family.prepare()
    expected = export_model(family, TAILORING, tmp_path / "expected") / "model.safetensors"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected.read_bytes()


def test_a_run_folder_stands_for_its_recipe_and_tailoring(argv, tmp_path):
    argv()  # writes both files, as an import does
    (tmp_path / "benchmark.md").write_text("| a table |\n")
    assert export_command([str(tmp_path)])
    assert Tailoring.load(tmp_path / "model" / "tailoring.yaml") == TAILORING
    card = (tmp_path / "model" / "README.md").read_text()
    assert "## Scores\n\n| a table |" in card
    assert "class_path: ModelFamily" in card
    assert str(tmp_path) not in card


def test_overwriting_verifying_and_the_size_of_files_are_options(argv, tmp_path, capsys):
    assert export_command(argv())
    with pytest.raises(TailorError, match="exists and isn't empty"):
        export_command(argv())
    assert export_command(argv("--overwrite", "true", "--verify=true", "--max_shard_gb", "0.0001"))
    assert "Verified" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == 2


def test_the_model_whose_chat_settings_are_taken_is_an_option(argv, folders, tmp_path):
    with pytest.raises(RecipeError, match=r"chat_from: .* has none"):
        export_command(argv("--chat_from", "a"))
    (folders["a"] / "chat_template.jinja").write_text("{{ messages }}")
    try:
        assert export_command(argv("--chat_from", "a"))
        assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    finally:
        (folders["a"] / "chat_template.jinja").unlink()


def test_the_configuration_for_mergekit_is_one_option_away(argv, tmp_path, capsys):
    assert export_command(argv("--format", "mergekit"))
    assert {"slices", "modules", "merge_method"} & yaml.safe_load((tmp_path / "out").read_text()).keys()
    assert "mergekit configuration written to" in capsys.readouterr().out


def test_sections_of_a_study_do_not_matter_and_are_not_built(argv, tmp_path):
    assert export_command(
        argv(optimizer={"class_path": "NoSuchThing"}, study={"trials": 3}, trainer={"max_time": "1"})
    )
    assert load_file(tmp_path / "out" / "model.safetensors")


def test_settings_of_the_family_can_be_overridden(argv, folders, tmp_path):
    assert export_command(argv(f"--family.init_args.candidates={{a: {folders['b']}, b: {folders['b']}}}"))
    found, b = (load_file(f / "model.safetensors") for f in (tmp_path / "out", folders["b"]))
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(found[name.format(2)], b[name.format(4)])


def test_what_concerns_the_trainer_is_left_to_it(argv, tmp_path):
    assert not export_command(argv("--trainer.accelerator", "cpu"))
    assert not export_command(argv("--help"))
    assert not export_command(argv(trainer={"accelerator": "gpu"}))
    assert not (tmp_path / "out").exists()
    assert export_command(argv(trainer={"accelerator": "cpu", "devices": 1}))


def test_mistakes_are_told_as_by_every_verb(argv, recipe, tmp_path):
    with pytest.raises(RecipeError, match="needs the section 'family'"):
        export_command(["--output", str(tmp_path / "out")])
    with pytest.raises(RecipeError, match=r"A run folder has a recipe\.yaml; 'nowhere' has none"):
        export_command(["nowhere"])
    with pytest.raises(RecipeError, match="no setting 'basis'"):
        export_command(argv(family={"class_path": "ModelFamily", "init_args": {"basis": "x"}}))
    with pytest.raises(RecipeError, match="Name one model"):
        export_command(argv("--run", str(tmp_path)))
    with pytest.raises(ArgumentError, match="max_shard_gb"):
        export_command(argv("--max_shard_gb", "much"))
    (tmp_path / "bad.yaml").write_text(Tailoring((plan("c:0"),)).to_yaml())
    with pytest.raises(ModelError, match="no model of the family"):
        export_command(argv("--tailoring", str(tmp_path / "bad.yaml")))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match="needs a place"):
        export_command(
            ["--config", str(tmp_path / "recipe.yaml"), "--tailoring", str(tmp_path / "tailoring.yaml")]
        )
    assert not (tmp_path / "out").exists()


def test_plugins_of_the_recipe_and_of_the_command_line_are_found(argv, folders, tmp_path):
    for name in ("First", "Second"):
        (tmp_path / f"{name}.py").write_text(
            "from tailorlib.models.family import ModelFamily\n\n\n"
            f"class {name}ExportFamily(ModelFamily):\n    pass\n"
        )
    init_args = {"base": str(folders["base"]), "candidates": {name: str(folders[name]) for name in "ab"}}
    first, second = ({"class_path": f"{name}ExportFamily", "init_args": init_args} for name in ("First", "Second"))
    assert export_command(argv(family=first, plugins=[str(tmp_path / "First.py")]))
    assert export_command(argv("--plugins", str(tmp_path / "Second.py"), "--overwrite", "true", family=second))


def test_the_way_in_collects_garbage_again_after_its_imports(capsys):
    try:
        assert start.main(["--version"]) == 0
        assert gc.isenabled()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
    assert capsys.readouterr().out.startswith("tailorlib ")


def test_writing_a_model_imports_neither_lightning_nor_an_optimizer(argv):
    code = (
        "import sys; from tailorlib.export.command import export_command; assert export_command(sys.argv[1:]);"
        "heavy = {'lightning', 'nevergrad', 'lm_eval', 'torchmetrics', 'peft', 'datasets'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv()], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
