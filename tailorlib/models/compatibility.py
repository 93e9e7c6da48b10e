"""Compatibility: whether a candidate's layers can stand in the base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailorlib.models.architecture import Architecture, layer_kinds
from tailorlib.models.checkpoint import Checkpoint

_HARD = (
    "model_type",
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "tie_word_embeddings",
    "use_parallel_residual",
    "query_pre_attn_scalar",
)
"""Config entries without which a layer computes something else altogether."""
_SOFT = ("rope_parameters", "rms_norm_eps", "layer_norm_eps", "sliding_window", "rotary_pct")
"""Config entries that differ between fine-tunes in practice; the stitched model runs with the base's."""


def config_differences(base: Any, candidate: Any) -> tuple[list[str], list[str]]:
    """Compare a candidate's config with the base's.

    Returns:
        The differences that forbid stitching, and those worth a warning; each names both values.
    """
    hard = _differences(_HARD, base, candidate)
    if not hard and layer_kinds(base) != layer_kinds(candidate):
        hard.append("layers of other types than the base's")
    return hard, _differences(_SOFT, base, candidate)


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


def _differences(names: tuple[str, ...], base: Any, candidate: Any) -> list[str]:
    pairs = ((n, getattr(base, n, None), getattr(candidate, n, None)) for n in names)
    return [f"{n} {theirs!r} (base: {ours!r})" for n, ours, theirs in pairs if ours != theirs]
