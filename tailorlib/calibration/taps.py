"""Taps: where a layer's share of the residual stream can be corrected, and what is read there.

======================  =====================================================================================
branch                  what a correction changes
======================  =====================================================================================
``h + W z``             the matrix W [d, f], given the inner activations z [f] (and its bias, if it has one)
``h + sum_e r_e W_e z_e``  every expert's W_e by one and the same matrix, given ``sum_e r_e z_e`` (r: routing)
``h + w * norm(x)``     the norm's weight w [d], given norm(x) [d]: nothing more is linear in a weight
======================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tailorlib.exceptions import ModelError
from tailorlib.models.architecture import Architecture

Kind = Literal["matrix", "experts", "norm"]


@dataclass(frozen=True)
class Tap:
    """Where one layer is corrected.

    Args:
        kind: Which of the three forms its MLP's branch has.
        module: Name of the module inside the layer.
        weight: Name of the weight inside the layer, as files have it; ``*`` stands for an expert's number.
        bias: Name of the bias, if there is one.
        transposed: Whether files keep the matrix as [f, d].
        factor: What the branch is multiplied by before it is added.
    """

    kind: Kind
    module: str
    weight: str
    bias: str | None = None
    transposed: bool = False
    factor: float = 1.0


def tap_of(architecture: Architecture, layer: nn.Module, config: Any, names: Sequence[str] | None = None) -> Tap:
    """Return where a live layer is corrected.

    Args:
        architecture: Where its parts live.
        layer: The layer.
        config: The model's config.
        names: Tensors that a branch's share is proportional to: those of the MLP by default.

    Raises:
        ModelError: If the architecture's row names nothing that the layer has.
    """
    factor = float(getattr(config, "residual_multiplier", None) or 1.0)
    for name in names or architecture.mlp_out:
        if not name.endswith(".weight"):
            continue
        path = name.removesuffix(".weight")
        if "*" in path:
            if any(part == "mlp.experts" for part, _ in layer.named_modules()):
                return Tap("experts", "mlp.experts", name, factor=factor)
            continue
        module = dict(layer.named_modules()).get(path)
        if module is None:
            continue
        weight = module.weight
        assert isinstance(weight, Tensor)
        if weight.dim() == 1:
            return Tap("norm", path, name, factor=factor)
        bias = f"{path}.bias" if getattr(module, "bias", None) is not None else None
        return Tap("matrix", path, name, bias, not isinstance(module, nn.Linear), factor)
    wanted = ", ".join(names or architecture.mlp_out)
    raise ModelError(
        f"Layers of models of type {architecture.model_type!r} have none of {wanted}, where they could be "
        "corrected. Leave compensation out."
    )


def listen(tap: Tap, layer: nn.Module, architecture: Architecture, heard: Callable[[Tensor], None]) -> Any:
    """Call a function with what a tap reads, [tokens, f], whenever the layer runs.

    Returns:
        A handle to remove.
    """
    module = layer.get_submodule(tap.module)
    if tap.kind == "matrix":

        def inner(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            z = args[0].flatten(0, -2)
            heard(torch.cat([z, z.new_ones(len(z), 1)], dim=1) if tap.bias else z)

        return module.register_forward_pre_hook(inner)
    if tap.kind == "experts":

        def routed(experts: nn.Module, args: tuple[Tensor, ...]) -> None:
            heard(_routed(experts, *args[:3]))

        return module.register_forward_pre_hook(routed)

    def normed(norm: nn.Module, _: Any, output: Tensor) -> None:
        weight = norm.weight
        assert isinstance(weight, Tensor)
        if architecture.unit_offset:
            weight = weight + 1
        share = torch.where(weight.abs() > 1e-6, output / weight, torch.zeros_like(output))
        heard(share.flatten(0, -2))

    return module.register_forward_hook(normed)


def _routed(experts: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Return the routed and weighted sum of the experts' inner activations, [tokens, f]."""
    x = x.reshape(-1, x.shape[-1])  # [tokens, d]
    total = x.new_zeros(len(x), experts.gate_up_proj.shape[1] // 2)
    for expert in sorted(set(index.flatten().tolist())):
        token, place = torch.where(index == expert)
        gate, up = nn.functional.linear(x[token], experts.gate_up_proj[expert]).chunk(2, dim=-1)
        total.index_add_(0, token, experts.act_fn(gate) * up * weights[token, place, None].to(x.dtype))
    return total
