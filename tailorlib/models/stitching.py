"""Stitching: live tailored models made by reference.

One skeleton model is kept, and a candidate is an ordered list of decoder-layer modules swapped into it. Removing
and selecting layers copies nothing; only merged layers are computed, once, and kept within a byte budget.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from tailorlib.models.architecture import cut_config, slot_index
from tailorlib.models.assembly import Assembly
from tailorlib.models.quantization import QuantizationName, Quantizer, stored_bytes
from tailorlib.tailoring import LayerPlan, LayerSource, Owner, Tailoring


def build_skeleton(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model without weights: its parameters are on the meta device, its buffers are real.

    Args:
        config: A transformers config; the model gets a copy of its own.
        dtype: Data type that the model computes in.
    """
    # rotary tables are in no checkpoint: only __init__ makes them; weights come later, nothing has to be drawn
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    return model.requires_grad_(False).eval()


@dataclass
class LayerModules:
    """The tensors of one layer, and as many modules over them as slots that it fills at once.

    Args:
        tensors: The layer's tensors by name, on the device, in the compute data type.
        modules: Modules that share these tensors.
    """

    tensors: dict[str, Tensor]
    modules: list[nn.Module] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(stored_bytes(t) for t in self.tensors.values())


class MergedLayers:
    """Merged layers, the least recently used ones dropped when they exceed a byte budget.

    Args:
        budget: Bytes to keep at most; a single layer that exceeds it is used and not kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.nbytes, self.hits, self.misses = budget, 0, 0, 0
        self._layers: OrderedDict[Hashable, LayerModules] = OrderedDict()

    def __len__(self) -> int:
        return len(self._layers)

    def get(self, key: Hashable) -> LayerModules | None:
        """Return a kept layer and count a hit, or ``None`` and count a miss."""
        layer = self._layers.get(key)
        if layer is None:
            self.misses += 1
        else:
            self.hits += 1
            self._layers.move_to_end(key)
        return layer

    def put(self, key: Hashable, layer: LayerModules) -> None:
        """Keep a layer, and drop old ones until the budget holds."""
        self._layers[key] = layer
        self.nbytes += layer.nbytes
        while self.nbytes > self.budget:
            _, dropped = self._layers.popitem(last=False)
            self.nbytes -= dropped.nbytes


class Stitcher:
    """Makes live models of tailorings; each is valid until the next one is made.

    Args:
        assembly: Makes the tensors.
        config: The base model's config.
        device: Where the models run.
        dtype: Data type that they compute in.
        quantization: How the layers' matrices are quantised: ``"none"``, ``"nf4"``, ``"fp4"`` or ``"int8"``.
        merge_cache_bytes: Budget of merged layers that are kept.
        generation_folder: Folder whose ``generation_config.json`` the model takes, if it has one.
    """

    def __init__(
        self,
        assembly: Assembly,
        config: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        quantization: QuantizationName = "none",
        merge_cache_bytes: int,
        generation_folder: Path | None = None,
    ) -> None:
        self.assembly, self.config, self.device, self.dtype = assembly, config, device, dtype
        self.merged = MergedLayers(merge_cache_bytes)
        self._selected: dict[tuple[str, int], LayerModules] = {}
        self._outer: dict[tuple[int, str], tuple[str, LayerModules]] = {}
        self.model = build_skeleton(config, dtype)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        # every layer module is a copy of one of these, so that what __init__ reads from the config is kept
        self._templates = list(self.model.get_submodule(assembly.architecture.layers))
        self._quantizer = None if quantization == "none" else Quantizer(quantization, device, dtype)
        if self._quantizer is not None:
            for template in self._templates:
                self._quantizer.convert(template)
        if generation_folder is not None and (generation_folder / "generation_config.json").is_file():
            self.model.generation_config = GenerationConfig.from_pretrained(generation_folder)

    def stitch(self, tailoring: Tailoring) -> PreTrainedModel:
        """Put a tailoring's layers into the skeleton.

        Returns:
            The skeleton, in evaluation mode, without gradients. The next call changes it.
        """
        modules = self._layer_modules(tailoring)
        for i, module in enumerate(modules):
            for part in module.modules():
                if hasattr(part, "layer_idx"):  # it indexes the KV cache
                    part.layer_idx = i  # type: ignore[assignment]
        parent, _, name = self.assembly.architecture.layers.rpartition(".")
        setattr(self.model.get_submodule(parent), name, nn.ModuleList(modules))
        self._set_outer(tailoring)
        cut_config(self.model.config, self.config, [slot_index(p) for p in tailoring.layers])
        return self.model

    def memory(self) -> dict[str, int]:
        """Return the bytes that are held: by the layers taken of each model, and by ``"merged"`` ones."""
        held: Counter[str] = Counter({"merged": self.merged.nbytes})
        for (model, _), layer in self._selected.items():
            held[model] += layer.nbytes
        for owner, parts in self._outer.values():
            held[owner] += parts.nbytes
        return dict(held)

    def _layer_modules(self, tailoring: Tailoring) -> list[nn.Module]:
        uses: Counter[tuple[Any, ...]] = Counter()
        held: dict[tuple[LayerPlan, int], LayerModules] = {}
        modules = []
        for plan in tailoring.layers:
            key = (plan, tailoring.seed)
            if plan.is_selection:
                layer = self._select(plan.sources[0], tailoring.seed)
            else:
                layer = held[key] = held.get(key) or self._merge(plan, tailoring.seed)
            source = plan.sources[0]
            name: tuple[Any, ...] = (source.model, source.layer) if plan.is_selection else key
            if uses[name] == len(layer.modules):  # a module can't stand in two places: it has one layer_idx
                layer.modules.append(self._module(plan, layer.tensors))
            modules.append(layer.modules[uses[name]])
            uses[name] += 1
        return modules

    def _select(self, source: LayerSource, seed: int) -> LayerModules:
        key = (source.model, source.layer)
        if key not in self._selected:
            plan = LayerPlan((source,))
            self._selected[key] = self._materialise(plan, self.assembly.layer_tensors(plan, seed))
        return self._selected[key]

    def _merge(self, plan: LayerPlan, seed: int) -> LayerModules:
        layer = self.merged.get((plan, seed))
        if layer is None:
            layer = self._materialise(plan, self._tensors(plan, seed))
            self.merged.put((plan, seed), layer)
        return layer

    def _tensors(self, plan: LayerPlan, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Yield a layer's tensors; those taken as they are by reference, if files name them as models do."""
        for suffix in self.assembly.suffixes(plan):
            source = self.assembly.taken_from(plan, suffix)
            by_reference = self._quantizer is None and self.assembly.architecture.experts is None
            if source is not None and by_reference:
                yield suffix, self._select(source, seed).tensors[suffix]
            else:
                yield suffix, self.assembly.layer_tensor(plan, suffix, seed, self.device)

    def _materialise(self, plan: LayerPlan, tensors: Iterable[tuple[str, Tensor]]) -> LayerModules:
        live_layer = self.assembly.architecture.live_layer
        if self._quantizer is None:
            return LayerModules(live_layer({name: t.to(self.device, self.dtype) for name, t in tensors}))
        # matrices are quantised from their stored data type, one after the other
        return LayerModules(self._quantizer.quantize(self._templates[slot_index(plan)], live_layer(dict(tensors))))

    def _module(self, plan: LayerPlan, tensors: dict[str, Tensor]) -> nn.Module:
        # the config is shared and not copied: the live model's settings must reach every layer
        module: nn.Module = copy.deepcopy(
            self._templates[slot_index(plan)], {id(self.model.config): self.model.config}
        )
        if self._quantizer is None:
            module.load_state_dict(tensors, assign=True)
        else:
            self._quantizer.assign(module, tensors)
        return module

    def _set_outer(self, tailoring: Tailoring) -> None:
        for name in self.assembly.outer_names:
            module, _, attribute = name.rpartition(".")
            owner = self.assembly.owner(tailoring, name)
            setattr(
                self.model.get_submodule(module), attribute, self._outer_parameter(owner, name, tailoring.seed)
            )
        if self.model.config.tie_word_embeddings:
            embeddings = self.model.get_input_embeddings()
            self.model.get_output_embeddings().weight = embeddings.weight

    def _outer_parameter(self, owner: Owner, name: str, seed: int) -> Tensor:
        if not isinstance(owner, str):
            merged = self.merged.get((owner, name, seed))
            if merged is None:
                merged = self._placed(owner, name, seed)
                self.merged.put((owner, name, seed), merged)
            return merged.tensors[name]
        # an adapter that leaves the embeddings alone shares them with its base
        checkpoint, stored = self.assembly.checkpoints[owner].origin(self.assembly.architecture.stored_name(name))
        key = (id(checkpoint), stored)
        if key not in self._outer:
            self._outer[key] = owner, self._placed(owner, name, seed)
        return self._outer[key][1].tensors[name]

    def _placed(self, owner: Owner, name: str, seed: int) -> LayerModules:
        tensor = self.assembly.outer_tensor(owner, name, seed, self.device).to(self.device, self.dtype)
        return LayerModules({name: nn.Parameter(tensor, requires_grad=False)})
