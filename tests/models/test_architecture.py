"""Architectures: per-layer config lists follow the kept layers; what is unknown is refused."""

from __future__ import annotations

import json

import pytest
from model_cases import CASES, LAYERS, plan
from transformers import AutoConfig

from tailorlib.exceptions import ModelError
from tailorlib.models.architecture import (
    ARCHITECTURES,
    architecture_of,
    layer_kinds,
    layer_types,
    slot_index,
    tailored_config,
)

SLIDING, FULL = "sliding_attention", "full_attention"


def config_of(model_type, **settings):
    return AutoConfig.for_model(model_type, num_hidden_layers=LAYERS, **settings)


def test_every_covered_architecture_has_a_case():
    assert {case["model_type"] for case in CASES.values()} == set(ARCHITECTURES)


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(ModelError, match=r"got 'opt'.*calls register_architecture"):
        architecture_of(config_of("opt"))


def test_a_layer_that_depends_on_its_depth_is_refused():
    with pytest.raises(ModelError, match="scale_attn_by_inverse_layer_idx set, a layer of 'gpt2' depends"):
        architecture_of(config_of("gpt2", scale_attn_by_inverse_layer_idx=True))
    assert architecture_of(config_of("gpt2")).model_type == "gpt2"


def test_lists_that_a_type_does_not_document_are_cut_too():
    cut = tailored_config(config_of("mistral", layer_types=[SLIDING, FULL] * 3), [0, 3, 4])
    assert cut.layer_types == [SLIDING, FULL, SLIDING]  # the KV cache reads it


@pytest.mark.parametrize(
    ("settings", "experts"),
    [
        ({"decoder_sparse_step": 2}, [1, 3, 5]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, [1, 5]),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 4]}, [1, 2, 3, 5]),
        ({"num_experts": 0}, []),
    ],
)
@pytest.mark.parametrize("kept", [[0, 1, 4, 5], [3, 5, 5, 0], [2]])
def test_experts_follow_the_kept_layers(settings, experts, kept):
    config = config_of("qwen3_moe", **settings)
    assert [i for i, kind in enumerate(layer_kinds(config)) if "experts" in kind] == experts
    cut = tailored_config(config, kept)
    assert [i for i, kind in enumerate(layer_kinds(cut)) if "experts" in kind] == [
        new for new, i in enumerate(kept) if i in experts
    ]
    again = AutoConfig.for_model("qwen3_moe", **{k: v for k, v in cut.to_dict().items() if k != "model_type"})
    assert layer_kinds(again) == layer_kinds(cut)


def test_smollm3_s_rotary_layers_are_a_kind_of_their_own():
    config = config_of("smollm3", no_rope_layers=[1, 0, 1, 1, 0, 1, 1, 0])  # longer than the model
    assert layer_kinds(config)[:2] == (f"{FULL}, no_rope_layers=1", f"{FULL}, no_rope_layers=0")
    assert tailored_config(config, [4, 0]).no_rope_layers == [0, 1]


@pytest.mark.parametrize(
    ("model_type", "attention", "mlp"),
    [
        ("llama", "self_attn.o_proj.bias", "mlp.down_proj.bias"),
        ("gpt2", "attn.c_proj.weight", "mlp.c_proj.bias"),
        ("glm4", "post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"),
        ("mixtral", "self_attn.o_proj.weight", "block_sparse_moe.experts.17.w2.weight"),
        ("qwen3_moe", "self_attn.o_proj.weight", "mlp.experts.3.down_proj.weight"),
    ],
)
def test_tensors_that_carry_a_branch_s_scale(model_type, attention, mlp):
    row = ARCHITECTURES[model_type]
    assert row.branch(attention) == "attention"
    assert row.branch(mlp) == "mlp"
    others = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "block_sparse_moe.experts.0.w1.weight")
    assert {row.branch(name) for name in (*others, "mlp.experts.0.up_proj.weight", "mlp.gate.weight")} == {None}


def test_a_model_without_layer_types_has_full_attention():
    assert layer_types(config_of("llama")) == (FULL,) * LAYERS
    assert layer_kinds(config_of("llama")) == (FULL,) * LAYERS


def test_layer_types_follow_the_kept_layers_and_not_the_pattern(tmp_path):
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=12)
    kept = [i for i in range(12) if i not in (2, 7)]
    cut = tailored_config(config, kept)
    assert cut.layer_types == [config.layer_types[i] for i in kept]
    assert cut.layer_types != AutoConfig.for_model("gemma3_text", num_hidden_layers=10).layer_types
    cut.save_pretrained(tmp_path)  # transformers refuses a list of another length here
    assert AutoConfig.from_pretrained(tmp_path).layer_types == cut.layer_types


def test_cutting_leaves_the_whole_model_s_config_alone():
    config = config_of("gemma3_text", sliding_window_pattern=2)
    before = json.dumps(config.to_dict(), default=str)
    cut = tailored_config(config, [0, 1])
    assert cut.num_hidden_layers == 2
    assert json.dumps(config.to_dict(), default=str) == before


def test_layers_can_be_repeated_and_reordered():
    cut = tailored_config(config_of("gemma3_text", sliding_window_pattern=2), [1, 1, 0])
    assert cut.layer_types == [FULL, FULL, SLIDING]


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(("kept", "until"), [([0, 1, 4, 5], 2), ([0, 1, 2], 3), ([4, 5], 0)])
def test_qwen_s_window_start_follows_the_kept_layers(model_type, kept, until, tmp_path):
    config = config_of(model_type, use_sliding_window=True, sliding_window=8, max_window_layers=3)
    cut = tailored_config(config, kept)
    assert cut.layer_types == [config.layer_types[i] for i in kept]
    assert cut.max_window_layers == until
    cut.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).layer_types == cut.layer_types


@pytest.mark.parametrize(
    ("model_type", "settings", "kept", "left"),
    [
        (
            "gemma3_text",
            {"sliding_window_pattern": 3},
            [0, 1, 2, 3],
            ["_sliding_window_pattern", "sliding_window_pattern"],
        ),
        ("gemma3_text", {"sliding_window_pattern": 3}, [0, 2, 3, 5], []),
        ("gemma3_text", {"layer_types": [SLIDING, SLIDING, FULL] * 2}, [0, 1, 2, 3], []),  # 6 is a default
        ("smollm3", {"no_rope_layer_interval": 2}, [0, 1, 2, 5], ["no_rope_layer_interval"]),
        ("smollm3", {"no_rope_layer_interval": 2}, [0, 1, 3, 5], []),
    ],
)
def test_a_period_that_would_make_other_kinds_is_not_written(model_type, settings, kept, left, tmp_path):
    cut = tailored_config(config_of(model_type, **settings), kept)
    cut.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert sorted(name for name in written if "pattern" in name or "interval" in name) == left
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.layer_types == cut.layer_types
    assert getattr(loaded, "no_rope_layers", None) == getattr(cut, "no_rope_layers", None)


def test_the_layers_before_a_window_are_no_more_than_there_are():
    config = config_of("qwen2", use_sliding_window=False, sliding_window=8, max_window_layers=28)
    assert tailored_config(config, [0, 1, 4]).max_window_layers == 3


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(ModelError, match=r"one of 0 to 5, got \[6\]"):
        tailored_config(config_of("llama"), [0, 6])


def test_a_merged_layer_stands_for_its_first_source():
    assert slot_index(plan("a:2", "b:3", operation="Linear")) == 2
    assert slot_index(plan("a:2", "b:2", operation="TIES", base="base:4")) == 2


@pytest.mark.parametrize("name", CASES)
def test_filters_part_a_layer_into_attention_mlp_and_norms(name, case_family):
    family = case_family(name)
    attention, mlp = family.layout.branches
    for suffixes in family.assembly.layer_suffixes:
        rest = [s for s in suffixes if attention not in s and mlp not in s]
        assert not [s for s in suffixes if attention in s and mlp in s]
        assert all("norm" in s or s.startswith("ln_") for s in rest)
        outputs = [s for s in suffixes if family.architecture.branch(s) and s not in rest]
        assert all((attention in s) == (family.architecture.branch(s) == "attention") for s in outputs)
        assert sum(attention in s for s in suffixes) >= 2
        assert sum(mlp in s for s in suffixes) >= 2
