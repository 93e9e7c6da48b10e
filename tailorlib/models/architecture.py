"""Architectures: where the parts of a model live, and which config entries go with its layers.

Everything that stitching must know of a ``model_type`` is a row of :data:`ARCHITECTURES`. A model type without a
row is refused by name: a model cut by guesswork often loads without an error and computes something else.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tailorlib.exceptions import ModelError
from tailorlib.tailoring import LayerPlan

FULL_ATTENTION = "full_attention"


@dataclass(frozen=True)
class Architecture:
    """Where one kind of decoder keeps its parts, by module name.

    Args:
        model_type: The ``model_type`` of its transformers config.
        layers: The list of decoder layers.
        embeddings: The token embeddings (and position embeddings, if any).
        norm: The final norm.
        head: The language-model head.
        stored_head: The head's name in checkpoint files, where it is another one.
        per_layer: Config entries that are lists with one item per decoder layer.
        full_attention_until: Config entry that counts the leading full-attention layers, if any.
        obsolete: Pattern of tensors that old checkpoints hold and no model reads (matched at a name's end).
    """

    model_type: str
    layers: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    norm: str = "model.norm"
    head: str = "lm_head"
    stored_head: str = "lm_head"
    per_layer: tuple[str, ...] = ()
    full_attention_until: str | None = None
    obsolete: str = r"rotary_emb\.inv_freq"

    def layer_prefix(self, layer: int) -> str:
        """Return what the names of a layer's tensors begin with."""
        return f"{self.layers}.{layer}."

    def stored_name(self, name: str) -> str:
        """Return a tensor's name in checkpoint files, given its name in the model."""
        return re.sub(rf"^{re.escape(self.head)}\.", f"{self.stored_head}.", name)

    def ignores(self, name: str) -> bool:
        """Say whether a tensor of a checkpoint is of no use: obsolete, or a head (which may be tied)."""
        return name.startswith(f"{self.stored_head}.") or re.search(rf"\.({self.obsolete})$", name) is not None


ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("llama"),
        Architecture("mistral"),
        Architecture("qwen2", per_layer=("layer_types",), full_attention_until="max_window_layers"),
        Architecture("qwen3", per_layer=("layer_types",), full_attention_until="max_window_layers"),
        Architecture("gemma3_text", per_layer=("layer_types",)),
        Architecture(
            "gpt_neox",
            layers="gpt_neox.layers",
            embeddings=("gpt_neox.embed_in",),
            norm="gpt_neox.final_layer_norm",
            stored_head="embed_out",
            obsolete=r"rotary_emb\.inv_freq|attention\.(bias|masked_bias)",
        ),
    )
}


def architecture_of(config: Any) -> Architecture:
    """Return the architecture of a transformers config.

    Raises:
        ModelError: If its ``model_type`` is not understood.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"tailorlib cuts models of the types {', '.join(sorted(ARCHITECTURES))}; got {model_type!r}. To add "
            "it, write a row of tailorlib.models.architecture.ARCHITECTURES (where its layers, embeddings, norm "
            "and head live, and its per-layer config lists) and let the tests in tests/models run over it."
        )
    return ARCHITECTURES[model_type]


def layer_types(config: Any) -> tuple[str, ...]:
    """Return the type of each decoder layer; all ``"full_attention"`` if the config names none."""
    types = getattr(config, "layer_types", None)
    return tuple(types) if types else (FULL_ATTENTION,) * int(config.num_hidden_layers)


def layer_signature(config: Any, layer: int) -> tuple[Any, ...]:
    """Return all per-layer config values of a layer: layers can replace each other if these are equal."""
    lists = (getattr(config, name, None) for name in architecture_of(config).per_layer)
    return tuple(values[layer] for values in lists if values is not None)


def slot_index(plan: LayerPlan) -> int:
    """Return the source layer whose per-layer config values a plan's layer takes."""
    return plan.base.layer if plan.base is not None else plan.sources[0].layer


def cut_config(config: Any, source: Any, kept: Sequence[int]) -> None:
    """Make ``config`` describe the kept layers of the model that ``source`` describes.

    Per-layer lists are sliced, never made anew from a pattern: the pattern of fewer layers is another one.

    Args:
        config: The config to change, in place; it may have been cut before.
        source: The config of the whole model; left alone.
        kept: Index of the source layer that each new layer stands for, from bottom to top.
    """
    architecture = architecture_of(source)
    config.num_hidden_layers = len(kept)
    for name in architecture.per_layer:
        values = getattr(source, name, None)
        if values is not None:
            setattr(config, name, [values[i] for i in kept])
    count = architecture.full_attention_until
    if count is not None and getattr(source, "use_sliding_window", False):
        # transformers reads the sliced layer_types; other programs read only this number
        types = [layer_types(source)[i] for i in kept]
        setattr(config, count, types.index("sliding_attention") if "sliding_attention" in types else len(types))


def tailored_config(config: Any, kept: Sequence[int]) -> Any:
    """Return a deep copy of a transformers config that describes the kept layers.

    Args:
        config: The config of the whole model.
        kept: Index of the source layer that each new layer stands for, from bottom to top.

    Raises:
        ModelError: If the model type is not understood, or an index is out of range.
    """
    number = int(config.num_hidden_layers)
    outside = [i for i in kept if not 0 <= i < number]
    if outside:
        raise ModelError(f"A kept layer is one of 0 to {number - 1}, got {outside}.")
    copied = copy.deepcopy(config)
    cut_config(copied, config, kept)
    return copied
