"""Expected models, composed by hand from what transformers loads: none of tailorlib's own naming or assembly."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from tailorlib.operation import OPERATIONS
from tailorlib.tailoring import SELECT, LayerPlan, PartPlan, Tailoring


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model as transformers loads it; every tensor must be there and of use."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def layer_list(model: nn.Module) -> str:
    """Return the name of a model's list of decoder layers."""
    number = model.config.num_hidden_layers
    return next(n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == number)


class Oracle:
    """Builds models from live state dicts, layer by layer.

    Args:
        folders: The models by family name.
        dtype: What to load them in; they are stored in the same.
    """

    def __init__(self, folders: dict[str, Path], dtype: torch.dtype = torch.float32) -> None:
        self.models = {name: load(folder, dtype) for name, folder in folders.items()}
        self.states = {name: model.state_dict() for name, model in self.models.items()}
        self.base = self.models["base"]
        self.config = json.loads((folders["base"] / "config.json").read_text())
        self.layers = layer_list(self.base)
        names = dict(self.base.named_modules())
        self.head = next(n for n, m in names.items() if m is self.base.get_output_embeddings())
        inner = [f"{self.layers}.{i}." for i in range(self.base.config.num_hidden_layers)]
        self.outer = [n for n in self.states["base"] if not n.startswith(tuple(inner))]

    def cut_config(self, kept: list[int]) -> Any:
        """Return the config of a model with these layers, from the entries that the base's file has."""
        entries = copy.deepcopy(self.config)
        entries["n_layer" if "n_layer" in entries else "num_hidden_layers"] = len(kept)
        for name in ("layer_types", "no_rope_layers"):
            if name in entries:
                entries[name] = [entries[name][i] for i in kept]
        if "decoder_sparse_step" in entries:
            step, dense = entries["decoder_sparse_step"], entries["mlp_only_layers"]
            sparse = [i not in dense and (i + 1) % step == 0 for i in kept]
            entries["decoder_sparse_step"] = 1
            entries["mlp_only_layers"] = [new for new, is_sparse in enumerate(sparse) if not is_sparse]
        return AutoConfig.for_model(**entries)

    def layer(self, plan: LayerPlan) -> dict[str, Tensor]:
        """Return the tensors of a layer, by name inside the layer as the live model has it."""
        whole = self._made(plan)
        for name, part in plan.parts:
            made = self._made(part)
            taken = {
                suffix for suffix in whole if name in suffix and not any(p in suffix for p in _before(plan, name))
            }
            whole |= {suffix: made[suffix] for suffix in taken}
        return whole

    def model(self, tailoring: Tailoring) -> Any:
        """Return the model of a tailoring, without residual scales."""
        config = self.cut_config([plan.sources[0].layer for plan in tailoring.layers])
        state = {
            f"{self.layers}.{i}.{suffix}": tensor
            for i, plan in enumerate(tailoring.layers)
            for suffix, tensor in self.layer(plan).items()
        }
        for name in self.outer:
            state[name] = self._outer(tailoring, name)
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(config, dtype=self.base.dtype)
        model.load_state_dict(state)
        return model.eval()

    def _made(self, plan: LayerPlan) -> dict[str, Tensor]:
        sources = [self._taken(s.model, s.layer) for s in plan.sources]
        if plan.operation == SELECT:
            return sources[0]
        base = None if plan.base is None else self._taken(plan.base.model, plan.base.layer)
        return {
            suffix: _merged(plan, [s[suffix] for s in sources], None if base is None else base[suffix])
            for suffix in sources[0]
        }

    def _taken(self, model: str, layer: int) -> dict[str, Tensor]:
        prefix = f"{self.layers}.{layer}."
        return {n.removeprefix(prefix): t for n, t in self.states[model].items() if n.startswith(prefix)}

    def _outer(self, tailoring: Tailoring, name: str) -> Tensor:
        if name.startswith(self.head + ".") and not self.base.config.tie_word_embeddings:
            owner = tailoring.head
        else:
            is_norm = "norm" in name or "ln_f" in name
            owner = tailoring.norm if is_norm else tailoring.embeddings
        if isinstance(owner, str):
            return self.states[owner][name]
        base = None if owner.base is None else self.states[owner.base][name]
        return _merged(owner, [self.states[m][name] for m in owner.models], base)


def _before(plan: LayerPlan, name: str) -> list[str]:
    names = [n for n, _ in plan.parts]
    return names[: names.index(name)]


def _merged(plan: LayerPlan | PartPlan, tensors: list[Tensor], base: Tensor | None) -> Tensor:
    """Merge tensors as the live model has them: equal for methods that work entry by entry."""
    operation = OPERATIONS.get(plan.operation)()
    generators = [torch.Generator() for _ in tensors]
    return operation.apply(tensors, base=base, params=dict(plan.params), generators=generators)
