"""Compatibility: whatever changes what a layer computes is refused, or told."""

from __future__ import annotations

import pytest
from model_cases import CASES, LAYERS
from transformers import CONFIG_MAPPING

from tailorlib.exceptions import ModelError
from tailorlib.models.compatibility import config_differences
from tailorlib.testing.tiny import tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def config_of(case, **changed):
    settings = {**CASES[case], **changed}
    return tiny_config(settings.pop("model_type"), num_layers=LAYERS, tokenizer=TOKENIZER, **settings)


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_compatible_with_itself(case):
    assert config_differences(config_of(case), config_of(case)) == ([], [])


@pytest.mark.parametrize(
    ("case", "entry", "value"),
    [
        ("llama", "num_attention_heads", 2),
        ("llama", "num_key_value_heads", 4),
        ("llama", "hidden_act", "relu"),
        ("gemma2", "attn_logit_softcapping", None),
        ("gemma2", "query_pre_attn_scalar", 8),
        ("gemma2", "hidden_activation", "relu"),
        ("granite", "residual_multiplier", 1.0),
        ("granite", "attention_multiplier", 1.0),
        ("cohere", "use_qk_norm", False),
        ("gpt_neox", "use_parallel_residual", False),
        ("gpt2", "num_attention_heads", 2),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "scale_attn_weights", False),
        ("falcon", "alibi", True),
        ("falcon", "parallel_attn", False),
        ("falcon", "multi_query", False),
        ("falcon", "activation", "relu"),
        ("falcon-new", "num_kv_heads", 4),
        ("falcon-new", "new_decoder_architecture", False),
        ("mixtral", "num_experts_per_tok", 1),
        ("mixtral", "num_local_experts", 8),
        ("qwen3_moe", "num_experts_per_tok", 1),
        ("qwen3_moe", "num_experts", 8),
        ("qwen3_moe", "norm_topk_prob", False),
        ("qwen3_moe", "moe_intermediate_size", 32),
    ],
)
def test_layers_that_compute_something_else_are_refused(case, entry, value):
    base, other = config_of(case), config_of(case, **{entry: value})
    hard, _ = config_differences(base, other)
    named = {"num_experts": "num_local_experts"}.get(entry, entry)
    assert f"{named} {getattr(other, entry)!r} (base: {getattr(base, entry)!r})" in hard


@pytest.mark.parametrize(
    ("case", "entry", "value"),
    [
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
        ("gpt_neox", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("llama", "rms_norm_eps", 1e-5),
        ("llama", "max_position_embeddings", 512),
        ("starcoder2", "norm_epsilon", 1e-6),
        ("gpt2", "layer_norm_epsilon", 1e-6),
        ("cohere", "layer_norm_eps", 1e-6),
        ("mistral", "sliding_window", None),
        ("granite", "embedding_multiplier", 1.0),
        ("granite", "logits_scaling", 1.0),
        ("cohere", "logit_scale", 1.0),
        ("gemma2", "final_logit_softcapping", None),
        ("gpt2", "reorder_and_upcast_attn", True),
    ],
)
def test_what_the_stitched_model_takes_from_the_base_is_told(case, entry, value):
    base, other = config_of(case), config_of(case, **{entry: value})
    hard, soft = config_differences(base, other)
    assert hard == []
    assert soft == [f"{entry} {getattr(other, entry)!r} (base: {getattr(base, entry)!r})"]


def test_an_entry_that_nobody_foresaw_is_told():
    base, other = config_of("llama"), config_of("llama")
    other.attention_temperature = 0.5
    assert config_differences(base, other) == ([], ["attention_temperature 0.5 (base: None)"])
    assert config_differences(other, base) == ([], ["attention_temperature None (base: 0.5)"])


@pytest.mark.parametrize(
    ("case", "entries"),
    [
        ("qwen2", {"max_window_layers": 2}),
        ("qwen3", {"layer_types": ["sliding_attention", *["full_attention"] * 5]}),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 0, 0, 0]}),
        ("qwen3_moe", {"mlp_only_layers": []}),
        ("qwen3_moe", {"decoder_sparse_step": 1}),
    ],
)
def test_layers_of_other_kinds_are_refused(case, entries):
    hard, _ = config_differences(config_of(case), config_of(case, **entries))
    assert hard == ["layers of other types than the base's"]


def test_what_concerns_no_evaluated_layer_is_passed_over():
    changed = {
        "attention_dropout": 0.1,
        "bos_token_id": 3,
        "initializer_range": 0.5,
        "use_cache": False,
        "pretraining_tp": 2,
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float16",
        "max_window_layers": 3,
    }
    assert config_differences(config_of("llama"), config_of("llama", **changed)) == ([], [])
    unused = config_of("qwen2.5", max_window_layers=2)  # no window: the number says nothing
    assert config_differences(config_of("qwen2.5"), unused) == ([], [])


def test_a_candidate_whose_layers_depend_on_their_depth_is_refused():
    other = config_of("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match="scale_attn_by_inverse_layer_idx"):
        config_differences(config_of("gpt2"), other)


def test_every_covered_type_is_one_of_transformers():
    assert {case["model_type"] for case in CASES.values()} <= set(CONFIG_MAPPING)
