"""Architectures: where the parts of a model live, and which config entries go with its layers.

Everything that stitching must know of a ``model_type`` is a row of :data:`ARCHITECTURES`. A model type without a
row is refused by name: a model cut by guesswork often loads without an error and computes something else.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError, PluginError, shown
from tailorlib.tailoring import LayerPlan, any_number

FULL_ATTENTION = "full_attention"


@dataclass(frozen=True)
class Experts:
    """Where a mixture of experts keeps its matrices: one by one in files, stacked in the live model.

    The live model holds ``mlp.experts.gate_up_proj`` [E, 2 I, H] and ``mlp.experts.down_proj`` [E, H, I].

    Args:
        stored: Name of the MLP in checkpoint files.
        gate: Name of an expert's gate projection in files, [I, H].
        up: Name of its up projection, [I, H].
        down: Name of its down projection, [H, I].
    """

    stored: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def name(self, expert: int, projection: str) -> str:
        """Return the name of one matrix inside its layer, as files have it."""
        return f"{self.stored}.experts.{expert}.{projection}.weight"

    def unstacked(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return names and shapes as files have them, given a name and a shape of the live layer."""
        if name == "mlp.experts.gate_up_proj":
            matrix = (shape[1] // 2, shape[2])
            return {self.name(e, p): matrix for e in range(shape[0]) for p in (self.gate, self.up)}
        if name == "mlp.experts.down_proj":
            return {self.name(e, self.down): shape[1:] for e in range(shape[0])}
        return {re.sub(r"^mlp\.", f"{self.stored}.", name): shape}

    def stacks(self, name: str) -> bool:
        """Say whether a tensor of a layer is one expert's matrix, given its name as files have it."""
        return re.match(rf"{re.escape(self.stored)}\.experts\.\d+\.", name) is not None

    def stacked(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a live layer's tensors, given those of the files; a layer without experts is left as it is."""
        own = {name for name in tensors if self.stacks(name)}
        live = {re.sub(rf"^{re.escape(self.stored)}\.", "mlp.", n): t for n, t in tensors.items() if n not in own}
        experts = range(sum(name.endswith(f".{self.down}.weight") for name in own))
        if experts:
            pairs = (torch.cat([tensors[self.name(e, p)] for p in (self.gate, self.up)]) for e in experts)
            live["mlp.experts.gate_up_proj"] = torch.stack(list(pairs))
            live["mlp.experts.down_proj"] = torch.stack([tensors[self.name(e, self.down)] for e in experts])
        return live


@dataclass(frozen=True)
class Architecture:
    """Where one kind of decoder keeps its parts, by module name.

    Args:
        model_type: The ``model_type`` of its transformers config.
        layers: The list of decoder layers.
        embeddings: The token embeddings, then the position embeddings, if any.
        norm: The final norm.
        head: The language-model head.
        stored_head: The head's name in checkpoint files, where it is another one.
        branches: Filters that the names of a layer's attention and MLP tensors contain, and no others.
        attention_out: Tensors of a layer that its attention's share of the residual stream is proportional to:
            the output projection, or the norm behind it.
        mlp_out: The same of its MLP; ``*`` stands for a number.
        unit_offset: Whether those are norms that multiply by 1 + weight.
        experts: How experts are stored, in a mixture of experts.
        per_layer: Config entries that are lists with one item per decoder layer; those that a config lacks don't
            count. (Caches read ``layer_types`` of every model type.)
        full_attention_until: Config entry that counts the leading full-attention layers, if any.
        sparse_layers: Whether ``mlp_only_layers`` and ``decoder_sparse_step`` say which layers have experts.
        forbidden: Config entries that make a layer depend on its depth: models that set them are refused.
        obsolete: Pattern of tensors that old checkpoints hold and no model reads (matched at a name's end).
    """

    model_type: str
    layers: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    norm: str = "model.norm"
    head: str = "lm_head"
    stored_head: str = "lm_head"
    branches: tuple[str, str] = ("self_attn", "mlp")
    attention_out: tuple[str, ...] = ("self_attn.o_proj.weight", "self_attn.o_proj.bias")
    mlp_out: tuple[str, ...] = ("mlp.down_proj.weight", "mlp.down_proj.bias")
    unit_offset: bool = False
    experts: Experts | None = None
    per_layer: tuple[str, ...] = ("layer_types",)
    full_attention_until: str | None = None
    sparse_layers: bool = False
    forbidden: tuple[str, ...] = ()
    obsolete: str = r"rotary_emb\.inv_freq"

    def layer_prefix(self, layer: int) -> str:
        """Return what the names of a layer's tensors begin with."""
        return f"{self.layers}.{layer}."

    def stored_name(self, name: str) -> str:
        """Return a tensor's name in checkpoint files, given its name in the model (outside the experts)."""
        return re.sub(rf"^{re.escape(self.head)}\.", f"{self.stored_head}.", name)

    def stored_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return names and shapes as files have them, given those of the live model."""
        stored: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            match = re.match(rf"({re.escape(self.layers)}\.\d+\.)(.+)", name)
            if match is None or self.experts is None:
                stored[self.stored_name(name)] = shape
            else:
                stored |= {match[1] + n: s for n, s in self.experts.unstacked(match[2], shape).items()}
        return stored

    def live_layer(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a live layer, given those of the files, by name inside the layer."""
        return dict(tensors) if self.experts is None else self.experts.stacked(tensors)

    def branch(self, suffix: str) -> str | None:
        """Return which branch a tensor of a layer is the output of: ``"attention"``, ``"mlp"`` or none."""
        plain = any_number(suffix)
        if plain in self.attention_out:
            return "attention"
        return "mlp" if plain in self.mlp_out else None

    def ignores(self, name: str) -> bool:
        """Say whether a tensor of a checkpoint is of no use: obsolete, or a head (which may be tied)."""
        return name.startswith(f"{self.stored_head}.") or re.search(rf"\.({self.obsolete})$", name) is not None


_POST_ATTENTION, _POST_FEEDFORWARD = ("post_attention_layernorm.weight",), ("post_feedforward_layernorm.weight",)
_GPT_MLP = ("mlp.c_proj.weight", "mlp.c_proj.bias")
_NEOX_MLP = ("mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias")

ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("llama"),
        Architecture("mistral"),
        Architecture("qwen2", full_attention_until="max_window_layers"),
        Architecture("qwen3", full_attention_until="max_window_layers"),
        Architecture("gemma"),
        Architecture("gemma2", attention_out=_POST_ATTENTION, mlp_out=_POST_FEEDFORWARD, unit_offset=True),
        Architecture("gemma3_text", attention_out=_POST_ATTENTION, mlp_out=_POST_FEEDFORWARD, unit_offset=True),
        Architecture("phi3"),
        Architecture("olmo2", attention_out=_POST_ATTENTION, mlp_out=_POST_FEEDFORWARD),
        Architecture("smollm3", per_layer=("layer_types", "no_rope_layers")),
        Architecture("granite"),
        Architecture("cohere"),
        Architecture(
            "glm4",
            attention_out=("post_self_attn_layernorm.weight",),
            mlp_out=("post_mlp_layernorm.weight",),
        ),
        Architecture("starcoder2", mlp_out=_GPT_MLP),
        Architecture(
            "gpt_neox",
            layers="gpt_neox.layers",
            embeddings=("gpt_neox.embed_in",),
            norm="gpt_neox.final_layer_norm",
            stored_head="embed_out",
            branches=("attention.", "mlp"),
            attention_out=("attention.dense.weight", "attention.dense.bias"),
            mlp_out=_NEOX_MLP,
            obsolete=r"rotary_emb\.inv_freq|attention\.(bias|masked_bias)",
        ),
        Architecture(
            "gpt2",
            layers="transformer.h",
            embeddings=("transformer.wte", "transformer.wpe"),
            norm="transformer.ln_f",
            branches=("attn", "mlp"),
            attention_out=("attn.c_proj.weight", "attn.c_proj.bias"),
            mlp_out=_GPT_MLP,
            forbidden=("scale_attn_by_inverse_layer_idx",),
            obsolete=r"attn\.(bias|masked_bias)",
        ),
        Architecture(
            "falcon",
            layers="transformer.h",
            embeddings=("transformer.word_embeddings",),
            norm="transformer.ln_f",
            branches=("self_attention", "mlp"),
            attention_out=("self_attention.dense.weight", "self_attention.dense.bias"),
            mlp_out=_NEOX_MLP,
        ),
        Architecture(
            "mixtral",
            branches=("self_attn", "block_sparse_moe"),
            mlp_out=("block_sparse_moe.experts.*.w2.weight",),
            experts=Experts(stored="block_sparse_moe", gate="w1", up="w3", down="w2"),
        ),
        Architecture(
            "qwen3_moe",
            mlp_out=("mlp.down_proj.weight", "mlp.experts.*.down_proj.weight"),
            experts=Experts(),
            sparse_layers=True,
        ),
    )
}


PERIODS = ("sliding_window_pattern", "_sliding_window_pattern", "no_rope_layer_interval")
"""Config entries from which programs make the kinds of layers anew: number n says that every n-th one differs."""


def register_architecture(architecture: Architecture) -> None:
    """Add the row of a model type that tailorlib doesn't know, such as one that comes with its own code.

    To be called in a file that ``--plugins`` or a recipe's ``plugins:`` names. Nothing is tried here: read the
    model's code for whatever depends on a layer's index, and compare the logits of a cut model with those of one
    that you cut by hand.

    Args:
        architecture: The row.

    Raises:
        PluginError: If the model type has another row.
    """
    known = ARCHITECTURES.setdefault(architecture.model_type, architecture)
    if known != architecture:
        raise PluginError(
            f"A model type has one row; {architecture.model_type!r} has {known}, got {architecture}. Give your "
            "model another model_type."
        )


def architecture_named(model_type: object) -> Architecture:
    """Return the row of a model type.

    Raises:
        ModelError: If there is none.
    """
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ModelError(
            f"tailorlib cuts models of the types {', '.join(sorted(ARCHITECTURES))}; got {shown(model_type)}. "
            "To add it, say where its layers, embeddings, norm and head live, and which of its config "
            "entries are lists per layer: a file given with --plugins calls "
            "register_architecture(Architecture(...)), both of tailorlib.models.architecture."
        )
    return ARCHITECTURES[model_type]


def architecture_of(config: Any) -> Architecture:
    """Return the architecture of a transformers config.

    Raises:
        ModelError: If its ``model_type`` is not understood, or it sets an entry that makes layers depend on depth.
    """
    architecture = architecture_named(getattr(config, "model_type", None))
    found = [name for name in architecture.forbidden if getattr(config, name, None)]
    if found:
        raise ModelError(
            f"A layer that moves computes the same; with {', '.join(found)} set, a layer of "
            f"{architecture.model_type!r} depends on its depth. Use a model without."
        )
    return architecture


def layer_types(config: Any) -> tuple[str, ...]:
    """Return the attention type of each decoder layer; all ``"full_attention"`` if the config names none."""
    types = getattr(config, "layer_types", None)
    return tuple(types) if types else (FULL_ATTENTION,) * int(config.num_hidden_layers)


def layer_kinds(config: Any) -> tuple[str, ...]:
    """Return the kind of each decoder layer: layers can replace each other if their kinds are equal.

    A kind names the attention type, and what else the config says of single layers: ``no_rope_layers=0``,
    ``experts``.
    """
    architecture, types = architecture_of(config), layer_types(config)
    lists = {name: getattr(config, name, None) for name in architecture.per_layer if name != "layer_types"}
    kinds = []
    for i, kind in enumerate(types):
        parts = [f"{name}={values[i]}" for name, values in lists.items() if values is not None]
        if architecture.sparse_layers:
            parts.append("experts" if _has_experts(config, i) else "dense")
        kinds.append(", ".join((kind, *parts)))
    return tuple(kinds)


def _has_experts(config: Any, layer: int) -> bool:
    sparse = (layer + 1) % config.decoder_sparse_step == 0
    return layer not in config.mlp_only_layers and config.num_experts > 0 and sparse


def slot_index(plan: LayerPlan) -> int:
    """Return the source layer whose per-layer config values a plan's layer takes."""
    return plan.sources[0].layer


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
    if architecture.sparse_layers:
        config.decoder_sparse_step = 1
        config.mlp_only_layers = [new for new, i in enumerate(kept) if not _has_experts(source, i)]
    count = architecture.full_attention_until
    if count is not None:
        # transformers reads the sliced layer_types; other programs read only this number
        sliding = getattr(source, "use_sliding_window", False)
        types = [layer_types(source)[i] if sliding else FULL_ATTENTION for i in kept]
        setattr(config, count, types.index("sliding_attention") if "sliding_attention" in types else len(types))
    for name in PERIODS:
        if not _makes_the_kinds(config, name):
            vars(config).pop(name, None)


def _makes_the_kinds(config: Any, name: str) -> bool:
    """Say whether an entry of :data:`PERIODS` stands for the layers that the config lists."""
    period = vars(config).get(name)
    if not isinstance(period, int) or period < 1:
        return False
    rest = [(i + 1) % period > 0 for i in range(config.num_hidden_layers)]
    if name == "no_rope_layer_interval":
        return list(map(bool, config.no_rope_layers)) == rest
    return list(layer_types(config)) == ["sliding_attention" if inner else FULL_ATTENTION for inner in rest]


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
