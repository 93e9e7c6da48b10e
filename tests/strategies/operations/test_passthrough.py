"""mergekit's passthrough is a selected layer; its scale is the residual scale of the output projections."""

from __future__ import annotations

import pytest
import torch
from merge_cases import FAMILIES, peer
from torch import Tensor

from tailorlib.models.architecture import ARCHITECTURES
from tailorlib.models.assembly import Assembly
from tailorlib.tailoring import LayerPlan, LayerSource

PROJECTIONS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
OTHER = "self_attn.q_proj.weight"


class Stored:
    """A checkpoint that has one tensor by every name."""

    def __init__(self, tensor: Tensor) -> None:
        self.only = tensor

    def origin(self, name: str) -> tuple[Stored, str]:
        return self, name

    def tensor(self, name: str) -> Tensor:
        return self.only

    def dtype(self, name: str) -> torch.dtype:
        return self.only.dtype


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0, -1.5])
def test_a_selected_and_scaled_layer_is_mergekits_passthrough(scale: float, evidence) -> None:
    plan = LayerPlan((LayerSource("base", 0),), attention_scale=scale, mlp_scale=scale)
    for families in FAMILIES.values():
        for tensor, *_ in families.values():
            assembly = Assembly(ARCHITECTURES["llama"], {"base": Stored(tensor)}, (), ())
            for name in PROJECTIONS:
                theirs = peer("passthrough", [tensor], scale=scale).to(tensor.dtype)
                assert torch.equal(assembly.layer_tensor(plan, name, seed=0), theirs)
            assert torch.equal(
                assembly.layer_tensor(plan, OTHER, seed=0), peer("passthrough", [tensor]).to(tensor)
            )
    equal = {group.replace(" ", "_"): "equal" for group in FAMILIES}
    evidence.record(
        "merges",
        "LayerSelection, scaled",
        mergekit_method="`passthrough`",
        **equal,
        formula="equal",
        over_seeds="deterministic",
        not_compared="nothing",
    )
