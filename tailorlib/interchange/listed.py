"""The tensors that mergekit 0.1.5 lists for each architecture.

mergekit reads and writes the tensors of its own list alone. A tensor that the list lacks, such as the bias of a
Llama with ``attention_bias``, would be missing from its output without a word; one that a model lacks ends the
merge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LAYERNORMS = "{input,post_attention}_layernorm.weight"
_FOUR_NORMS = "{input,post_attention,pre_feedforward,post_feedforward}_layernorm.weight"
_ATTENTION = "self_attn.{q,k,v,o}_proj.weight"
_QK_NORMS = "self_attn.{q,k}_norm.weight"
_MLP = "mlp.{gate,up,down}_proj.weight"
_EXPERTS = "mlp.experts.{gate_up,down}_proj mlp.gate.weight"


@dataclass(frozen=True)
class Listed:
    """What mergekit lists for an architecture.

    Args:
        layer: Names of a layer's tensors, inside the layer, with ``{a,b}`` for either.
        optional: Of these, or beside them: tensors that a model may lack.
        needs_head: Whether the head's tensor must be in the file: such models can't have tied embeddings.
    """

    layer: str
    optional: str = ""
    needs_head: bool = False

    @property
    def required(self) -> frozenset[str]:
        """Names that every layer must have."""
        return frozenset(_expanded(self.layer))

    @property
    def known(self) -> frozenset[str]:
        """Names that a layer can have."""
        return self.required | set(_expanded(self.optional))


LISTED: dict[str, Listed] = {
    **dict.fromkeys(("llama", "mistral", "gemma"), Listed(f"{_LAYERNORMS} {_ATTENTION} {_MLP}")),
    "qwen2": Listed(f"{_LAYERNORMS} {_ATTENTION} {_MLP} self_attn.{{q,k,v}}_proj.bias"),
    "qwen3": Listed(f"{_LAYERNORMS} {_ATTENTION} {_QK_NORMS} {_MLP}"),
    "gemma2": Listed(f"{_FOUR_NORMS} {_ATTENTION} {_MLP}"),
    "gemma3_text": Listed(f"{_FOUR_NORMS} {_ATTENTION} {_QK_NORMS} {_MLP}"),
    "phi3": Listed(
        f"{_LAYERNORMS} self_attn.{{qkv,o}}_proj.weight mlp.{{gate_up,down}}_proj.weight", needs_head=True
    ),
    "olmo2": Listed(f"post_{{attention,feedforward}}_layernorm.weight {_ATTENTION} {_QK_NORMS} {_MLP}"),
    "cohere": Listed(f"input_layernorm.weight {_ATTENTION} {_QK_NORMS} {_MLP}"),
    "glm4": Listed(
        f"{{input,post_attention,post_mlp,post_self_attn}}_layernorm.weight {_ATTENTION} "
        "mlp.{gate_up,down}_proj.weight",
        "self_attn.{q,k,v}_proj.bias",
    ),
    "granite": Listed(
        f"{_LAYERNORMS} {_ATTENTION} {_MLP}", "self_attn.{q,k,v,o}_proj.bias mlp.{gate,up,down}_proj.bias"
    ),
    "starcoder2": Listed(
        "{input,post_attention}_layernorm.{weight,bias} self_attn.{q,k,v,o}_proj.{weight,bias} "
        "mlp.{c_fc,c_proj}.{weight,bias}"
    ),
    "gpt2": Listed("attn.{c_attn,c_proj}.{weight,bias} ln_{1,2}.{weight,bias} mlp.{c_proj,c_fc}.{weight,bias}"),
    "gpt_neox": Listed(
        "attention.{dense,query_key_value}.{weight,bias} {input,post_attention}_layernorm.{weight,bias} "
        "mlp.{dense_4h_to_h,dense_h_to_4h}.{weight,bias} attention.{bias,masked_bias,rotary_emb.inv_freq}",
        needs_head=True,
    ),
    "falcon": Listed(
        "ln_{attn,mlp}.{weight,bias} mlp.{dense_4h_to_h,dense_h_to_4h}.weight "
        "self_attention.{dense,query_key_value}.weight",
        needs_head=True,
    ),
    "mixtral": Listed(f"{_LAYERNORMS} {_ATTENTION} {_EXPERTS}"),
    "qwen3_moe": Listed(f"{_LAYERNORMS} {_ATTENTION} {_QK_NORMS} {_EXPERTS}"),
}


def _expanded(text: str) -> list[str]:
    """Write out ``a{b,c}``, word by word."""
    names = text.split()
    while any("{" in name for name in names):
        names = [
            re.sub(r"\{[^}]*\}", choice, name, count=1)
            for name in names
            for choice in (re.findall(r"\{([^}]*)\}", name) or [""])[0].split(",")
        ]
    return names
