"""Stored weights: plain floats are read, quantised ones refused by that word; no entry of storage is copied."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import RecipeError
from tailorlib.export import export_model
from tailorlib.export.verify import verify_export
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring

Parts = Callable[[str, Tensor], dict[str, Tensor]]


def packed(dtype: torch.dtype, **parts: str) -> Parts:
    """Return what replaces a matrix: its packed numbers, and scales by the ends of their names."""
    (weight, *others) = parts.values()
    return lambda stem, t: {
        stem + weight: torch.zeros(t.numel() // 8, 1, dtype=dtype),
        **{stem + end: torch.ones(1, 4) for end in others},
    }


QUANTISED: dict[str, tuple[dict[str, object], Parts]] = {
    "bitsandbytes 4 bits": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        packed(torch.uint8, weight="weight", a="weight.absmax", q="weight.quant_map"),
    ),
    "bitsandbytes 8 bits": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        packed(torch.int8, weight="weight", s="SCB"),
    ),
    "gptq": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        packed(torch.int32, weight="qweight", z="qzeros", s="scales", g="g_idx"),
    ),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, packed(torch.int32, weight="qweight", s="scales")),
    "fp8": (
        {"quantization_config": {"quant_method": "fp8"}},
        packed(torch.float8_e4m3fn, weight="weight", s="weight_scale_inv"),
    ),
    "compressed-tensors": (
        {"compression_config": {"format": "pack-quantized"}},
        packed(torch.int32, weight="weight_packed", s="weight_scale", h="weight_shape"),
    ),
    "hqq": ({"quantization_config": {"quant_method": "hqq"}}, packed(torch.uint8, weight="W_q", s="scale")),
    "eetq": (
        {"quantization_config": {"quant_method": "eetq"}},
        packed(torch.int8, weight="weight", s="weight_scales"),
    ),
    "mlx": ({"quantization": {"bits": 4}}, packed(torch.uint32, weight="weight", s="scales", b="biases")),
    "unsaid": ({}, packed(torch.int8, weight="weight")),
    "float8, unsaid": ({}, packed(torch.float8_e5m2, weight="weight")),
}


def changed(source: Path, folder: Path, change: Parts | None = None, **entries: object) -> Path:
    """Return a copy of a model with other entries in its config, and something else for its matrices."""
    shutil.copytree(source, folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entries}))
    if change is not None:
        state = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            is_matrix = "proj" in name
            state |= change(name.removesuffix("weight"), tensor) if is_matrix else {name: tensor}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_refused_by_that_word(folders, tmp_path, kind):
    entries, change = QUANTISED[kind]
    bad = changed(folders["a"], tmp_path / "bad", change, **entries)
    said = next((e.get("quant_method") or e.get("format") for e in entries.values()), None)
    for base, candidates in ((bad, {}), (folders["base"], {"a": str(bad)})):
        with pytest.raises(RecipeError, match=r"are quantised: .*give the 16-bit model") as caught:
            ModelFamily(str(base), candidates).prepare()
        assert said is None or repr(said) in str(caught.value)


LEFTOVERS = {
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "compression_config": {"format": "pack-quantized"},
    "quantization": {"group_size": 64, "bits": 4},
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_plain_weights_say_of_quantisation_is_told_and_not_shipped(folders, tmp_path, caplog, name):
    more = {name: LEFTOVERS[name], "_name_or_path": "a/b", "auto_map": {"AutoConfig": "x.Y"}, "dtype": "float16"}
    folder = {n: changed(folders[n], tmp_path / n, **more) for n in ("base", "a")}
    with caplog.at_level(logging.WARNING, logger="tailorlib"):
        family = ModelFamily(str(folder["base"]), {"a": str(folder["a"])}, dtype="float32")
        family.prepare()
    assert caplog.text.count(f"{name}: ") == 2
    assert "differ" not in caplog.text
    whole = Tailoring.whole("a", family.layout.num_layers)
    out = export_model(family, whole, tmp_path / "out")
    verify_export(family, whole, out)
    entries = json.loads((out / "config.json").read_text())
    assert not {*LEFTOVERS, "_name_or_path", "auto_map"} & entries.keys()
    assert entries["dtype"] == "float32"  # what the file holds, not what the base's config said
    assert type(AutoModelForCausalLM.from_pretrained(out).model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float8_e4m3fn])
def test_whole_numbers_where_floats_belong_are_refused(folders, tmp_path, name, dtype):
    bad = Path(shutil.copytree(folders["a"], tmp_path / "bad"))
    state = load_file(bad / "model.safetensors")
    save_file({**state, name: state[name].to(dtype)}, bad / "model.safetensors", metadata={"format": "pt"})
    for base, candidates in ((bad, {}), (folders["base"], {"a": str(bad)})):
        with pytest.raises(RecipeError, match=rf"{name}.*quantised|quantised.*{name}"):
            ModelFamily(str(base), candidates).prepare()
