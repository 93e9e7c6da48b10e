"""Configs that make no sense: refused with one message, in no time and little memory, before anything is built."""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailorlib.exceptions import RecipeError
from tailorlib.models.family import ModelFamily
from tailorlib.testing.tiny import write_tiny_model

MOST_SECONDS, MOST_BYTES = 10, 50_000_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("entries")
    kinds: dict[str, dict[str, Any]] = {
        "llama": {},
        "gemma3_text": {"sliding_window": 8},
        "qwen3_moe": {"decoder_sparse_step": 2},
        "gpt2": {},
    }
    return {k: write_tiny_model(root / k, model_type=k, num_layers=2, **more) for k, more in kinds.items()}


def with_entries(source: Path, folder: Path, entries: dict[str, Any]) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return folder


def fault(base: Path, **candidates: Path) -> str:
    """Return what a family says of models that make no sense; nothing slow, large or long."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(RecipeError) as caught:
            ModelFamily(str(base), {n: str(f) for n, f in candidates.items()}).prepare()
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < MOST_SECONDS
    assert len(str(caught.value)) < 2500
    return str(caught.value)


BAD_COUNTS = (1_000_000_000, 10**30, 0, -1, "2", 2.0, True, [], {"a": 1}, 3)


@pytest.mark.parametrize("value", BAD_COUNTS)
def test_a_number_of_layers_that_the_weights_have_not(models, tmp_path, value):
    bad = with_entries(models["llama"], tmp_path / "bad", {"num_hidden_layers": value})
    assert "num_hidden_layers" in fault(bad)
    assert "num_hidden_layers" in fault(models["llama"], a=bad)
    bad = with_entries(models["gpt2"], tmp_path / "gpt2", {"n_layer": value})
    assert "num_hidden_layers" in fault(bad)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("llama", "vocab_size", 1e12),
        ("llama", "vocab_size", 10**12),
        ("llama", "vocab_size", 100),
        ("llama", "hidden_size", 10**9),
        ("llama", "hidden_size", 64),
        ("llama", "head_dim", 2**30),
        ("llama", "intermediate_size", -5),
        ("llama", "num_attention_heads", 0),
        ("llama", "num_attention_heads", 3),
        ("llama", "num_key_value_heads", 7),
        ("llama", "max_position_embeddings", -1),
        ("llama", "max_position_embeddings", 10**15),
        ("llama", "hidden_act", "no_such_activation"),
        ("llama", "hidden_act", 7),
        ("llama", "rope_parameters", {"rope_type": "no such", "rope_theta": 1.0}),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": -3.0}),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": "big"}),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 0}),
        ("llama", "rope_parameters", [1, 2]),
        ("llama", "rms_norm_eps", "small"),
        ("llama", "layer_types", ["full_attention"] * 50),
        ("gemma3_text", "layer_types", ["full_attention"]),
        ("gemma3_text", "layer_types", ["full_attention", 7]),
        ("gemma3_text", "layer_types", ["full_attention", "no such attention"]),
        ("gemma3_text", "layer_types", "full_attention"),
        ("gemma3_text", "sliding_window", -8),
        ("qwen3_moe", "num_local_experts", 10**9),
        ("qwen3_moe", "num_local_experts", 5),
        ("qwen3_moe", "num_experts_per_tok", 10**7),
        ("qwen3_moe", "decoder_sparse_step", 0),
        ("qwen3_moe", "mlp_only_layers", "all"),
        ("gpt2", "n_positions", 10**7),
        ("gpt2", "n_embd", 10**8),
        ("gpt2", "n_head", 0),
        ("llama", "model_type", ["llama"]),
        ("llama", "model_type", None),
        ("llama", "model_type", "opt"),
    ],
)
def test_an_entry_that_makes_no_sense(models, tmp_path, kind, name, value):
    bad = with_entries(models[kind], tmp_path / "bad", {name: value})
    fault(bad)
    if name not in (
        "rope_parameters",
        "num_local_experts",
    ):  # told: the base's count
        fault(models[kind], a=bad)


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", "{", "", "\x00", '{"a": ' * 5000 + "1" + "}" * 5000])
def test_a_config_that_is_none(models, tmp_path, text):
    bad = Path(shutil.copytree(models["llama"], tmp_path / "bad"))
    (bad / "config.json").write_text(text)
    assert "config" in fault(bad)
    (bad / "config.json").unlink()
    assert "has no config.json" in fault(bad)


def test_a_tensor_without_entries_lends_no_size(models, tmp_path):

    bad = with_entries(models["llama"], tmp_path / "bad", {"hidden_size": 10**9})
    state = load_file(bad / "model.safetensors")
    save_file({**state, "model.empty.weight": torch.empty(10**10, 0)}, bad / "model.safetensors")
    assert "hidden_size is 1,000,000,000" in fault(bad)


def test_a_sound_config_of_each_kind_is_read(models):
    for folder in models.values():
        ModelFamily(str(folder), {"a": str(folder)}).prepare()
