"""Compatibility: whether a candidate's layers can stand in the base model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tailorlib.models.architecture import Architecture, architecture_of, layer_kinds
from tailorlib.models.checkpoint import Checkpoint

_HARD = (
    *("model_type", "num_hidden_layers"),
    *("hidden_size", "intermediate_size", "moe_intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "num_kv_heads"),
    *("hidden_act", "hidden_activation", "activation_function", "activation"),
    *("query_pre_attn_scalar", "attention_multiplier", "scale_attn_weights", "attn_logit_softcapping"),
    *("use_qk_norm", "use_bidirectional_attention", "alibi", "residual_multiplier"),
    *("use_parallel_residual", "parallel_attn", "multi_query", "new_decoder_architecture", "add_cross_attention"),
    *("num_local_experts", "num_experts_per_tok", "norm_topk_prob"),
)
"""Config entries without which a layer computes something else altogether."""
_WITHOUT_EFFECT = re.compile(
    r"_.*|transformers_version|(torch_)?dtype|architectures|auto_map|\w+_token_id|use_cache|is_decoder|return_dict"
    r"|initializer_range|\w*dropout|\w+_pdrop|pretraining_tp|output_\w+|router_(aux_loss_coef|jitter_noise)"
    r"|id2label|label2id|problem_type|chunk_size_feed_forward|task_specific_params|summary_\w+"
    r"|max_window_layers|mlp_only_layers|decoder_sparse_step|no_rope_layer_interval"
    r"|vocab_size|tie_word_embeddings|head_dim|n_inner|ffn_hidden_size|num_ln_in_parallel_attn"
)
"""Config entries that change nothing of what an evaluated layer computes, or that other checks see: which layers
are of which kind, and which tensors there are."""


def config_differences(base: Any, candidate: Any) -> tuple[list[str], list[str]]:
    """Compare a candidate's config with the base's.

    Whatever differs is worth a warning, unless it is known to be without effect.

    Returns:
        The differences that forbid stitching, and those worth a warning; each names both values.
    """
    hard = _differences(_HARD, base, candidate)
    if not hard and layer_kinds(base) != layer_kinds(candidate):
        hard.append("layers of other types than the base's")
    listed = {*_HARD, *architecture_of(base).per_layer}
    soft = (n for n in {**base.to_dict(), **candidate.to_dict()} if not _WITHOUT_EFFECT.fullmatch(n))
    return hard, _differences((n for n in soft if n not in listed), base, candidate)


def shape_differences(
    architecture: Architecture, names: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint
) -> str:
    """Compare a checkpoint with the tensors that the base model has.

    Args:
        architecture: The base's architecture.
        names: Shape of each tensor, by its name in files.
        checkpoint: The checkpoint.

    Returns:
        The first differences in words; empty if there are none.
    """
    wrong = []
    for stored, shape in names.items():
        if stored not in checkpoint:
            wrong.append(f"{stored!r} is missing")
        elif checkpoint.shape(stored) != shape:
            wrong.append(f"{stored!r} has the shape {list(checkpoint.shape(stored))} instead of {list(shape)}")
    # a tensor that the base doesn't have would be lost: a bias, or the parts of a quantised weight
    unread = [n for n in checkpoint.keys() if n not in names and not architecture.ignores(n)]  # noqa: SIM118
    wrong += [f"{name!r} is not in the base's architecture" for name in unread]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def _differences(names: Iterable[str], base: Any, candidate: Any) -> list[str]:
    pairs = ((n, getattr(base, n, None), getattr(candidate, n, None)) for n in names)
    # a switch that is off and one that isn't named are the same
    return [f"{n} {theirs!r} (base: {ours!r})" for n, ours, theirs in pairs if (ours or None) != (theirs or None)]
