"""Quantised families: what is computed is what bitsandbytes' own dequantised weights compute."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tailorlib import LayerPlan, LayerSource, Tailoring
from tailorlib.exceptions import RecipeError
from tailorlib.export import export_model
from tailorlib.models.family import ModelFamily
from tailorlib.testing.tiny import write_tiny_family, write_tiny_model

IDS = torch.arange(4, 40)[None]
TRANSPOSED = "c_"  # GPT-2's matrices are [in, out]


def nf4(matrix: Tensor) -> Tensor:
    return bnb.dequantize_4bit(*bnb.quantize_4bit(matrix, compress_statistics=True, quant_type="nf4"))


def fp4(matrix: Tensor) -> Tensor:
    return bnb.dequantize_4bit(*bnb.quantize_4bit(matrix, compress_statistics=True, quant_type="fp4"))


def int8(matrix: Tensor) -> Tensor:
    rows = matrix.half().float()
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    return (rows / scale).round() * scale


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3_text"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 4}
    return write_tiny_family(
        tmp_path_factory.mktemp(request.param), candidates=2, model_type=request.param, **sizes
    )


def family_of(folders: dict[str, Path], **settings: str) -> ModelFamily:
    family = ModelFamily(str(folders["base"]), {n: str(folders[n]) for n in "ab"}, dtype="float32", **settings)
    family.load(torch.device("cpu"))
    return family


def plan(*sources: str, **settings: object) -> LayerPlan:
    parsed = (source.split(":") for source in sources)
    return LayerPlan(tuple(LayerSource(model, int(layer)) for model, layer in parsed), **settings)


TAILORING = Tailoring(
    (plan("a:0"), plan("a:1", "b:1", operation="Linear"), plan("b:2", mlp_scale=0.5), plan("b:2"), plan("b:2"))
)


@pytest.mark.parametrize(
    ("kind", "rounded", "tolerance"), [("nf4", nf4, 1e-5), ("fp4", fp4, 1e-5), ("int8", int8, 0.02)]
)
def test_matrices_are_rounded_as_bitsandbytes_rounds_them(
    folders: dict[str, Path], tmp_path: Path, kind: str, rounded: Callable[[Tensor], Tensor], tolerance: float
) -> None:
    family = family_of(folders, quantization=kind)
    exported = export_model(family, TAILORING, tmp_path / "out")  # of the stored weights, merges included
    plain = AutoModelForCausalLM.from_pretrained(exported).eval()
    layers = plain.get_submodule(family.architecture.layers)
    with torch.inference_mode():
        for name, parameter in layers.named_parameters():
            if parameter.dim() == 2:
                flip = TRANSPOSED in name
                matrix = rounded(parameter.T.contiguous() if flip else parameter)
                parameter.copy_(matrix.T if flip else matrix)
        expected = plain(IDS).logits
        live = family.stitch(TAILORING)
        found, again = live(IDS).logits, family.stitch(TAILORING)(IDS).logits
    assert torch.equal(found, again)
    assert float((found - expected).norm() / expected.norm()) < tolerance  # int8 rounds activations, too


def test_four_bits_take_half_a_byte_per_parameter(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", num_layers=1, hidden_size=256, intermediate_size=1024)
    family = ModelFamily(str(base), dtype="float32", quantization="nf4")
    family.load(torch.device("cpu"))
    whole = Tailoring.whole("base", 1)
    family.stitch(whole)
    shapes = [shape for _, shape, _ in family.assembly.layer_shapes(whole.layers[0])]
    matrices = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    plain = sum(math.prod(shape) for shape in shapes if len(shape) == 1)
    plain += sum(math.prod(shape) for _, shape, _ in family.assembly.outer_shapes())
    assert 0.5 * matrices < family.stitcher.memory()["base"] - 4 * plain <= 0.6 * matrices


def test_a_quantised_family_exports_what_a_plain_one_does(folders: dict[str, Path], tmp_path: Path) -> None:
    written = [
        export_model(family_of(folders, **settings), TAILORING, tmp_path / name) / "model.safetensors"
        for name, settings in {"plain": {}, "four": {"quantization": "nf4"}}.items()
    ]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_unknown_kinds_and_a_missing_package_are_explained(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="none, nf4, fp4, int8, got 'nf3'"):
        family_of(folders, quantization="nf3")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RecipeError, match="pip install 'tailorlib\\[quantization\\]'"):
        family_of(folders, quantization="nf4")
