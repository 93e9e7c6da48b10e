"""Quantisation: the decoder layers of live models in 4 or 8 bits, so that a whole family fits one device.

Only live models are quantised. Merges are computed from the stored weights and quantised afterwards, so that the
fitness sees what a quantised deployment would see; an export is always made of the stored weights. Embeddings,
norms and head keep the compute data type.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tailorlib.exceptions import RecipeError

QuantizationName = Literal["none", "nf4", "fp4", "int8"]
"""What a recipe can ask for: 4-bit NormalFloat (QLoRA, arXiv 2305.14314), 4-bit float, LLM.int8() (2208.07339)."""
QUANTIZATIONS = ("none", "nf4", "fp4", "int8")


class Quantizer:
    """Quantises the weight matrices of decoder layers with bitsandbytes.

    Args:
        kind: ``"nf4"``, ``"fp4"`` or ``"int8"``.
        device: Where the weights live.
        dtype: Data type that is computed in.

    Raises:
        RecipeError: If bitsandbytes is not installed.
    """

    def __init__(self, kind: QuantizationName, device: torch.device, dtype: torch.dtype) -> None:
        self.kind, self.device, self.dtype = kind, device, dtype
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that it could fetch
        try:
            import bitsandbytes
        except ImportError as error:
            raise RecipeError(
                f"quantization: {kind} needs the package bitsandbytes, which isn't installed: "
                "pip install 'tailorlib[quantization]'"
            ) from error
        self._nn: Any = bitsandbytes.nn

    def convert(self, layer: nn.Module) -> None:
        """Replace the linear modules of a layer without weights by quantised ones, in place."""
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear | Conv1D):
                parent, _, attribute = name.rpartition(".")
                setattr(layer.get_submodule(parent), attribute, self._linear(module))

    def quantize(self, layer: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Quantise the weights of a converted layer; what is no weight of a linear module stays as it is.

        Args:
            layer: A converted layer.
            tensors: The layer's tensors by name, in their stored data type.
        """
        placed = {}
        for name, tensor in tensors.items():
            module, _, attribute = name.rpartition(".")
            linear = layer.get_submodule(module)
            if attribute == "weight" and isinstance(linear, self._kinds):
                matrix = tensor.T if getattr(linear, "transposed", False) else tensor
                placed[name] = self._quantized(matrix)
            else:
                placed[name] = tensor.to(self.device, self.dtype)
        return placed

    def assign(self, layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Put quantised tensors into a copy of a converted layer."""
        weights = {name: t for name, t in tensors.items() if is_quantized(t)}
        layer.load_state_dict({n: t for n, t in tensors.items() if n not in weights}, assign=True, strict=False)
        for name, weight in weights.items():
            linear = layer.get_submodule(name.removesuffix(".weight"))
            if self.kind == "int8":  # a module takes the scales away from its weight: each needs one of its own
                scales = {"CB": getattr(weight, "CB", None), "SCB": getattr(weight, "SCB", None)}
                weight = self._nn.Int8Params(weight.data, requires_grad=False, **scales)
            setattr(linear, "weight", weight)  # noqa: B010 (mypy thinks that a weight is a module)

    @property
    def _kinds(self) -> tuple[type, ...]:
        return (self._nn.Linear4bit, self._nn.Linear8bitLt)

    def _linear(self, module: nn.Module) -> nn.Module:
        transposed = isinstance(module, Conv1D)  # GPT-2 keeps its matrices as [in, out]
        weight = module.weight
        assert isinstance(weight, Tensor)
        outputs, inputs = (weight.shape[1], weight.shape[0]) if transposed else weight.shape
        bias = module.bias is not None
        linear: nn.Module
        if self.kind == "int8":
            linear = self._nn.Linear8bitLt(inputs, outputs, bias, has_fp16_weights=False, device="meta")
        else:
            linear = self._nn.Linear4bit(
                inputs, outputs, bias, compute_dtype=self.dtype, quant_type=self.kind, device="meta"
            )
        linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # one on meta can't be copied
        linear.transposed = transposed  # type: ignore[assignment]
        return linear

    def _quantized(self, matrix: Tensor) -> Tensor:
        if self.kind == "int8":
            weight: Tensor = self._nn.Int8Params(
                matrix.contiguous().clone(), requires_grad=False, has_fp16_weights=False
            )
        else:
            weight = self._nn.Params4bit(matrix.contiguous(), requires_grad=False, quant_type=self.kind)
        return weight.to(self.device)


def is_quantized(tensor: Tensor) -> bool:
    """Say whether a tensor is a quantised weight."""
    return hasattr(tensor, "quant_state") or hasattr(tensor, "SCB")


def stored_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor, the scales of a quantised one included."""
    extra = [getattr(tensor, "SCB", None)]
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        extra += [state.absmax, state.code, getattr(state, "offset", None)]
        state = getattr(state, "state2", None)
    return tensor.nbytes + sum(t.nbytes for t in extra if isinstance(t, Tensor))
