"""GGUF: what llama.cpp's converter looks up, by the package that it shares with everybody.

The converter itself is not on the package index by itself; ``docs/export.md`` has what a run of it gave.
"""

from __future__ import annotations

import re

import gguf
import pytest
import torch
from model_cases import CASES, LAYERS, random_tailoring

from tailorlib.export.export import tensor_specs
from tailorlib.models.architecture import ARCHITECTURES, architecture_of, tailored_config
from tailorlib.models.stitching import build_skeleton
from tailorlib.testing.tiny import tiny_config, tiny_tokenizer

ARCHITECTURE = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "cohere": gguf.MODEL_ARCH.COMMAND_R,
    "glm4": gguf.MODEL_ARCH.GLM4,
    "starcoder2": gguf.MODEL_ARCH.STARCODER2,
    "gpt_neox": gguf.MODEL_ARCH.GPTNEOX,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "falcon": gguf.MODEL_ARCH.FALCON,
}
"""Which of llama.cpp's architectures its converter chooses, by model type."""
KEPT = (0, 2, 3, 5)


def gguf_name(name, model_type, layers):
    """Return a tensor's name in GGUF as the converter finds it, or ``None``; it stacks experts first."""
    stacked = re.sub(r"experts\.\d+\.", "experts.", name)
    names = gguf.get_tensor_name_map(ARCHITECTURE[model_type], layers)
    return names.get_name(stacked, try_suffixes=(".weight", ".bias"))


def test_every_covered_architecture_is_one_of_llama_cpp_s():
    assert set(ARCHITECTURE) == set(ARCHITECTURES)


def unknown(case, kept):
    """Return the names, without layers' numbers, that llama.cpp lacks for a case's model cut to some layers."""
    settings = {"num_layers": LAYERS, "tokenizer": tiny_tokenizer(), **CASES[case]}
    config = tailored_config(tiny_config(settings.pop("model_type"), **settings), kept)
    shapes = {n: tuple(p.shape) for n, p in build_skeleton(config, torch.float32).state_dict().items()}
    if config.tie_word_embeddings:
        shapes = {n: s for n, s in shapes.items() if not n.startswith("lm_head.")}
    names = architecture_of(config).stored_shapes(shapes)
    found = {name: gguf_name(name, config.model_type, len(kept)) for name in names}
    layers = {int(match[1]) for known in found.values() if (match := re.match(r"blk\.(\d+)\.", str(known)))}
    assert layers == set(range(len(kept)))
    return {re.sub(r"\.\d+\.", ".", name) for name, known in found.items() if known is None}


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"falcon-alibi", "qwen3_moe"}))
def test_every_tensor_of_an_export_has_a_name_in_gguf(case):
    assert not unknown(case, KEPT)


def test_what_llama_cpp_has_no_tensors_for():
    norm = "transformer.h.post_attention_layernorm"
    assert unknown("falcon-alibi", KEPT) == {f"{norm}.weight", f"{norm}.bias"}  # Falcon-RW
    dense = {f"model.layers.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert unknown("qwen3_moe", KEPT) == dense  # layers without experts
    assert not unknown("qwen3_moe", (1, 5))


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_neox"])
def test_the_names_are_those_of_a_real_export(case_family, name):
    family = case_family(name)
    tailoring = random_tailoring(family, 2)
    for spec in tensor_specs(family, tailoring):
        assert gguf_name(spec.name, family.config.model_type, len(tailoring.layers)) is not None


def test_a_layer_too_many_has_no_name():
    name = "model.layers.{}.mlp.up_proj.weight"
    assert gguf_name(name.format(3), "llama", 4) == "blk.3.ffn_up.weight"
    assert gguf_name(name.format(4), "llama", 4) is None
