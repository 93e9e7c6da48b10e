"""An outline has the names, shapes and data types that a model has once it is there, and no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch

from tailorlib.exceptions import ModelError, RecipeError
from tailorlib.models import gguf as conversion
from tailorlib.models import source
from tailorlib.models.family import ModelFamily
from tailorlib.testing.tiny import tiny_tokenizer, write_tiny_family, write_tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(file: Path, *, tied: bool) -> Path:
    """Write a random Llama with two layers as llama.cpp's converter names its tensors."""
    tokenizer = tiny_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(len(vocabulary))
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    numbers = np.random.Generator(np.random.PCG64(0))
    shapes = {"token_embd.weight": (len(vocabulary), 32), "output_norm.weight": (32,)}
    shapes |= {} if tied else {"output.weight": (len(vocabulary), 32)}
    of_layer = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    of_layer |= {"ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48)}
    of_layer |= {"attn_norm": (32,), "ffn_norm": (32,)}
    shapes |= {f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in of_layer.items()}
    for name, shape in shapes.items():
        writer.add_tensor(name, numbers.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def of_all(family: ModelFamily) -> dict[str, Any]:
    checkpoint, assembly = family.checkpoints["base"], family.assembly
    names = [n for n in checkpoint.keys() if ".layers." in n]  # noqa: SIM118
    return {
        "tensors": {name: (checkpoint.shape(name), checkpoint.dtype(name)) for name in names},
        "outer": list(assembly.outer_shapes()),
        "layout": family.layout,
        "tokens": family.tokenizer("def add(a, b)")["input_ids"],
        "tied": family.config.tie_word_embeddings,
        "bytes": checkpoint.file_bytes(),
    }


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_outlined_as_it_is_converted(tmp_path, monkeypatch, tied):
    file = write_gguf(tmp_path / "tiny.gguf", tied=tied)
    convert = conversion._convert
    monkeypatch.setattr(conversion, "_convert", lambda *_: pytest.fail("an outline converts nothing"))
    family = ModelFamily(str(file))
    family.outline()
    assert family.first == ("base is converted first, once",)
    outlined = of_all(family)
    with pytest.raises(ModelError, match="planned and not there yet"):
        family.checkpoints["base"].tensor("model.norm.weight")
    monkeypatch.setattr(conversion, "_convert", convert)
    family.prepare()
    assert not family.first
    assert of_all(family) == outlined
    monkeypatch.setattr(conversion, "_outline", lambda *_: pytest.fail("the conversion is in the cache"))
    again = ModelFamily(str(file))
    again.outline()
    assert not again.first
    assert of_all(again) == outlined


def test_a_file_that_is_no_gguf_is_refused_by_an_outline_too(tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(RecipeError, match=r"no\.gguf' can't be converted"):
        ModelFamily(str(tmp_path / "no.gguf")).outline()


def test_weights_on_the_hub_are_not_fetched(tmp_path, monkeypatch):
    folders = write_tiny_family(tmp_path / "hub", candidates=1, num_layers=2, dtype=torch.bfloat16)
    lora = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]}
    asked: list[str] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.extend(allow_patterns)
        found = tmp_path / "snapshots" / name
        found.mkdir(parents=True, exist_ok=True)
        if name == "some/lora":
            (found / "adapter_config.json").write_text(json.dumps(lora))
            return str(found)
        for file in folders[name.rpartition("/")[2]].iterdir():
            if file.suffix != ".safetensors":
                (found / file.name).write_bytes(file.read_bytes())
        return str(found)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    family = ModelFamily("some/base", {"a": "some/a", "lora": "some/lora"})
    family.outline()
    assert not [pattern for pattern in asked if "safetensors" in pattern and "index" not in pattern]
    assert family.first == tuple(f"{name} is fetched first, once" for name in ("base", "a", "lora"))
    there = ModelFamily(str(folders["base"]), {"a": str(folders["a"])})
    there.prepare()
    assert of_all(family)["tensors"] == of_all(there)["tensors"]
    assert family.checkpoints["a"].file_bytes() == there.checkpoints["a"].file_bytes()
    # rank 3, float32: q is 32 to 32, v is 32 to 16
    assert family.checkpoints["lora"].file_bytes() == 2 * 4 * 3 * ((32 + 32) + (32 + 16))


def test_models_that_are_there_are_opened_as_ever(tmp_path):
    folders = write_tiny_family(tmp_path, candidates=1, num_layers=2)
    family, other = (ModelFamily(str(folders["base"]), {"a": str(folders["a"])}) for _ in range(2))
    family.outline()
    other.prepare()
    assert not family.first
    assert of_all(family) == of_all(other)
    assert family.sources == other.sources
    before = family.assembly
    other.outline()  # of one that is prepared nothing changes
    assert family.assembly is before
    assert source._has_weights(folders["base"])


def test_shards_are_there_when_all_are(tmp_path):
    folder = write_tiny_model(tmp_path / "model", num_layers=2)
    (folder / "model.safetensors").unlink()
    assert not source._has_weights(folder)
    index = {"weight_map": {"one": "model-1-of-2.safetensors", "two": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1-of-2.safetensors").write_bytes(b"")
    assert not source._has_weights(folder)
    (folder / "model-2-of-2.safetensors").write_bytes(b"")
    assert source._has_weights(folder)
