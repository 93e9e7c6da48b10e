"""The command line's way from and to mergekit, and from the paper's genotypes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tailorlib import LayerPlan, LayerSource, Tailoring
from tailorlib.cli import main


@pytest.fixture
def recipe_file(family_folder: Path, tmp_path: Path) -> Path:
    """A recipe with nothing but a family."""
    names = {n: str(family_folder / n) for n in ("a", "b")}
    settings = {"base": str(family_folder / "base"), "candidates": names}
    path = tmp_path / "family.yaml"
    path.write_text(yaml.safe_dump({"family": {"class_path": "ModelFamily", "init_args": settings}}))
    return path


@pytest.fixture
def tailoring_file(tmp_path: Path) -> Path:
    def layer(i: int, *models: str) -> LayerPlan:
        sources = tuple(LayerSource(model, i) for model in models)
        merge = {"operation": "TaskArithmetic", "params": (("scale", 0.5),), "base": LayerSource("base", i)}
        return LayerPlan(sources, **(merge if len(sources) > 1 else {}))

    path = tmp_path / "tailoring.yaml"
    tailoring = Tailoring((layer(0, "base"), layer(1, "a", "b"), layer(3, "b"), layer(5, "a", "b")))
    path.write_text(tailoring.to_yaml())
    return path


def test_a_model_goes_to_mergekits_words_and_back(
    recipe_file: Path, tailoring_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", "--config", str(recipe_file), "--tailoring", str(tailoring_file)]
    merge, back = tmp_path / "merge.yaml", tmp_path / "imported"
    assert main([*given, "--output", str(tmp_path / "direct"), "--verify", "true"]) == 0
    assert main([*given, "--format", "mergekit", "--output", str(merge)]) == 0
    assert f"mergekit-yaml {merge}" in "".join(capsys.readouterr().out.split("\n"))
    assert main(["import", str(merge), "--output", str(back)]) == 0
    assert main(["export", str(back)]) == 0
    direct, again = (load_file(f / "model.safetensors") for f in (tmp_path / "direct", back / "model"))
    assert direct.keys() == again.keys()
    for name, tensor in direct.items():
        assert float((again[name] - tensor).abs().max()) <= 1e-5 * float(tensor.abs().max()), name


def test_a_genotype_becomes_a_model(family_folder: Path, tmp_path: Path) -> None:
    genotype = {f"remove_idx_{i}": layer for i, layer in enumerate((2, 4))}
    genotype |= {f"layer_{i}_candidate_{j}": int(i == 1) for i in range(6) for j in range(2)}
    genotype |= {f"layer_{i}_merge_scale_factor": 0.5 for i in range(6)}
    file, out = tmp_path / "genotype.json", tmp_path / "imported"
    file.write_text(json.dumps(genotype))
    models = ["--base", str(family_folder / "base")]
    models += ["--candidates", json.dumps([str(family_folder / n) for n in "ab"])]
    assert main(["import", str(file), *models, "--output", str(out)]) == 0
    tailoring = Tailoring.load(out / "tailoring.yaml")
    assert [plan.sources[0].layer for plan in tailoring.layers] == [0, 1, 3, 5]
    assert main(["export", str(out)]) == 0
    assert (out / "model" / "model.safetensors").is_file()


def test_mistakes_are_one_message_and_leave_nothing(
    recipe_file: Path, tailoring_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("merge_method: teleport\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n")
    assert main(["import", str(bad), "--output", str(tmp_path / "out")]) == 2
    assert "teleport" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    taken = tmp_path / "taken.yaml"
    taken.write_text("mine")
    given = ["export", "--config", str(recipe_file), "--tailoring", str(tailoring_file), "--format", "mergekit"]
    assert main([*given, "--output", str(taken)]) == 2
    assert "exists" in capsys.readouterr().err
    assert taken.read_text() == "mine"
    assert main(["export", "--tailoring", str(tailoring_file), "--output", str(tmp_path / "x")]) == 2
    assert "needs the section 'family'" in capsys.readouterr().err
