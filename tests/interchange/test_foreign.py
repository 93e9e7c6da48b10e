"""Files of other programs: told apart, read with the models' own configs, refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from interchange_cases import Families
from test_genotype import CANDIDATES, genotype

from tailorlib.exceptions import ModelError, RecipeError
from tailorlib.interchange import read_foreign
from tailorlib.models.family import ModelFamily
from tailorlib.recipe import check_recipe, read_recipe
from tailorlib.tailoring import BASE, LayerPlan, LayerSource


def write(folder: Path, text: str, name: str = "file") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_genotype_takes_the_number_of_layers_from_the_bases_config(llama: ModelFamily, tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(genotype()))
    imported = read_foreign(path, base=llama.references[BASE], candidates=CANDIDATES)
    assert imported == read_foreign(path, base=llama.references[BASE], candidates=CANDIDATES, num_layers=6)
    recipe = read_recipe(write(tmp_path, imported.recipe(), "recipe.yaml"))
    assert list(recipe) == ["family"] and check_recipe(recipe) == []


def test_a_mergekit_configuration_is_read_with_its_models_tensors(families: Families, tmp_path: Path) -> None:
    folder = families("gpt2").references["a"]
    rules = "[{filter: mlp.c_proj, value: 0.5}]"
    text = f"merge_method: passthrough\nmodels: [{{model: {folder}, parameters: {{scale: {rules}}}}}]"
    imported = read_foreign(write(tmp_path, text))
    assert imported.tailoring.layers[2] == LayerPlan((LayerSource(BASE, 2),), mlp_scale=0.5)
    assert imported.notes == ()


def test_models_that_are_not_here_are_not_fetched_for_slices(tmp_path: Path) -> None:
    text = "merge_method: passthrough\nslices: [{sources: [{model: no/where, layer_range: [0, 2]}]}]"
    assert read_foreign(write(tmp_path, text)).base == "no/where"
    text = "merge_method: passthrough\nmodels: [{model: no/where}]"
    with pytest.raises(ModelError, match="number of layers of 'no/where' can't be found"):
        read_foreign(write(tmp_path, text))
    assert len(read_foreign(write(tmp_path, text), num_layers=3).tailoring.layers) == 3


def test_json_can_be_a_mergekit_configuration(tmp_path: Path) -> None:
    data = {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a/b", "layer_range": [1, 2]}]}]}
    assert read_foreign(write(tmp_path, json.dumps(data))).tailoring.layers == (
        LayerPlan((LayerSource(BASE, 1),)),
    )
    assert read_foreign(write(tmp_path, "{merge_method: passthrough, models: [{model: a}]}"), num_layers=1)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (json.dumps(genotype()), {}, "give the base, and the candidates"),
        (json.dumps(genotype()), {"base": "b"}, "give the base, and the candidates"),
        ('{"a": 1}', {}, "to import is a genotype"),
        ("merge_method: linear", {"base": "b"}, "names its own models"),
        ("merge_method: linear", {"legacy_base_index": True}, "names its own models"),
        ("nonsense", {}, "is a mapping"),
        ("[" * 100_000, {}, "can't be read|levels"),
        ("{" * 100_000, {}, "can't be read|levels"),
        ('{"layer_0_candidate_0": ' + "[" * 50 + "]" * 50 + "}", {}, "levels"),
    ],
)
def test_what_is_refused(text: str, options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        read_foreign(write(tmp_path, text), **options)  # type: ignore[arg-type]


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="can't be read"):
        read_foreign(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="can't be read"):
        read_foreign(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="can't be read"):
        read_foreign(tmp_path / "binary")
    with pytest.raises(RecipeError, match="at most 8,000,000 bytes"):
        read_foreign(write(tmp_path, " " * 8_000_001))
