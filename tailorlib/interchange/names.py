"""Names of a model's tensors, and filters that tell them apart."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from tailorlib.models.architecture import ARCHITECTURES, Architecture, architecture_of
from tailorlib.models.family import ModelFamily
from tailorlib.models.stitching import build_skeleton

V = TypeVar("V", bound=Hashable)

_LLAMA_LAYER = (
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)


@dataclass(frozen=True)
class TensorNames:
    """Names of a model's tensors, as checkpoint files have them.

    Args:
        architecture: Where the parts of the model live.
        layers: Names of each layer's tensors, inside the layer; a single entry holds for every layer.
        outer: Names of the tensors outside the layers; without the head's if it is tied to the embeddings.
    """

    architecture: Architecture = ARCHITECTURES["llama"]
    layers: tuple[tuple[str, ...], ...] = (_LLAMA_LAYER,)
    outer: tuple[str, ...] = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")

    @classmethod
    def of_family(cls, family: ModelFamily) -> TensorNames:
        """Return the names of a prepared family's tensors."""
        architecture, assembly = family.architecture, family.assembly
        return cls(
            architecture, assembly.layer_suffixes, tuple(map(architecture.stored_name, assembly.outer_names))
        )

    @classmethod
    def of_config(cls, config: Any) -> TensorNames:
        """Return the names of the tensors of the model that a transformers config describes.

        Raises:
            ModelError: If its ``model_type`` is not understood.
        """
        architecture = architecture_of(config)
        live = {n: tuple(p.shape) for n, p in build_skeleton(config, torch.float32).state_dict().items()}
        if config.tie_word_embeddings:
            live = {n: s for n, s in live.items() if not n.startswith(f"{architecture.head}.")}
        stored = architecture.stored_shapes(live)
        prefixes = [architecture.layer_prefix(i) for i in range(config.num_hidden_layers)]
        layers = tuple(tuple(n.removeprefix(p) for n in stored if n.startswith(p)) for p in prefixes)
        return cls(architecture, layers, tuple(n for n in stored if not n.startswith(f"{architecture.layers}.")))

    @property
    def is_tied(self) -> bool:
        """Whether the head follows the embeddings."""
        return not any(self.part(name) == "head" for name in self.outer)

    def of_layer(self, layer: int) -> tuple[str, ...]:
        """Return the names of a source layer's tensors, inside the layer."""
        return self.layers[0 if len(self.layers) == 1 else layer]

    def listed(self, suffix: str) -> str:
        """Return mergekit's name of a tensor inside its layer: that of the live model, with stacked experts."""
        experts = self.architecture.experts
        if experts is None:
            return suffix
        match = re.fullmatch(rf"{re.escape(experts.stored)}\.experts\.\d+\.(.+)\.weight", suffix)
        if match is None:
            return re.sub(rf"^{re.escape(experts.stored)}\.", "mlp.", suffix)
        return f"mlp.experts.{'down' if match[1] == experts.down else 'gate_up'}_proj"

    def part(self, name: str) -> str:
        """Return which part a tensor outside the layers belongs to: embeddings, norm or head."""
        if name.startswith(f"{self.architecture.norm}."):
            return "norm"
        return "head" if name.startswith(f"{self.architecture.stored_head}.") else "embeddings"


def filters_for(
    values: Mapping[str, V], hints: Iterable[str], *, inside: Mapping[str, str] | None = None
) -> tuple[V, tuple[tuple[str, V], ...]]:
    """Return a default and filters, of which the first that a name contains decides, that give these values.

    Args:
        values: The value of each name.
        hints: Filters to prefer.
        inside: A short and unambiguous part of each name, for names that no hint tells apart; the whole name by
            default.
    """
    hints = tuple(hints)
    plain = [value for name, value in values.items() if not any(text in name for text in hints)]
    default = most_common(plain or values.values())
    if len(set(values.values())) == 1:
        return default, ()
    rules: list[tuple[str, V]] = []
    left = dict(values)
    whole = sorted(values, key=len, reverse=True)  # a name that contains another one goes first
    shortened = [inside[name] for name in whole] if inside else []
    for text in (*hints, *shortened, *whole):
        matched = [name for name in left if text in name]
        if matched and len({left[name] for name in matched}) == 1:
            rules.append((text, left[matched[0]]))
            left = {name: value for name, value in left.items() if name not in matched}
    for rule in reversed(rules.copy()):
        fewer = [r for r in rules if r is not rule]
        if all(apply_filters(name, default, fewer) == value for name, value in values.items()):
            rules = fewer
    return default, tuple(rules)


def most_common(values: Iterable[V]) -> V:
    """Return the value that occurs most often; of several the first."""
    counts: dict[V, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return max(counts, key=lambda v: counts[v])


def apply_filters(name: str, default: V, rules: Iterable[tuple[str, V]]) -> V:
    """Return the value of the first filter that the name contains, else the default."""
    return next((value for rule, value in rules if rule in name), default)
