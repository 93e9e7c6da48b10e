"""Stitching: live tailored models made by reference.

One skeleton model is kept, and a candidate is an ordered list of decoder-layer modules swapped into it. Removing
and selecting layers copies nothing; only merged layers are computed, once. Both kinds are kept within byte
budgets.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from tailorlib.memory import give_back_freed_memory
from tailorlib.models.architecture import cut_config, slot_index
from tailorlib.models.assembly import Assembly
from tailorlib.models.layer_cache import LayerCache, LayerModules, StitchingCounts
from tailorlib.models.quantization import QuantizationName, Quantizer
from tailorlib.models.reading import private_reads
from tailorlib.models.shared import SharedTensors
from tailorlib.tailoring import LayerPlan, LayerSource, Owner, Tailoring


def build_skeleton(config: Any, dtype: torch.dtype, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return a model without weights: its parameters are on the meta device, its buffers are real.

    Args:
        config: A transformers config; the model gets a copy of its own.
        dtype: Data type that the model computes in.
        trust_remote_code: Whether the class may be one of the model's own code.
    """
    # rotary tables are in no checkpoint: only __init__ makes them; weights come later, nothing has to be drawn
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model.requires_grad_(False).eval()


class Stitcher:
    """Makes live models of tailorings; each is valid until the next one is made.

    Args:
        assembly: Makes the tensors.
        config: The base model's config.
        device: Where the models run.
        dtype: Data type that they compute in.
        quantization: How the layers' matrices are quantised: ``"none"``, ``"nf4"``, ``"fp4"`` or ``"int8"``.
        merge_cache_bytes: Budget of merged layers that are kept.
        layer_cache_bytes: Budget of the models' own layers that are kept; no limit if ``None``. Views of mapped
            files take nothing of it.
        generation_folder: Folder whose ``generation_config.json`` the model takes, if it has one.
        trust_remote_code: Whether the models' class may be one of the base's own code.
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
        layer_cache_bytes: int | None = None,
        generation_folder: Path | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.assembly, self.config, self.device, self.dtype = assembly, config, device, dtype
        self.merged: LayerCache[Any] = LayerCache(merge_cache_bytes)
        self.selected: LayerCache[tuple[str, int]] = LayerCache(
            layer_cache_bytes, dropped=self.merged.drop_borrowers
        )
        self._shared: SharedTensors | None = None
        self._outer: dict[tuple[int, str], tuple[str, LayerModules]] = {}
        self.model = build_skeleton(config, dtype, trust_remote_code=trust_remote_code)
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

    def share(self, shared: SharedTensors | None) -> None:
        """Take what has to be computed of single models from files that all processes of this node map.

        That is layers and outer parts in another data type than the compute data type, with an adapter or an
        aligned vocabulary. Bits are those of private ones. What is in memory already stays there.

        Only on a CPU, and not quantised, else this does nothing: the memory of another device maps no file, and
        quantised layers are small. Merged layers stay private: each is used by one process, for a few candidates.
        """
        if self.device.type == "cpu" and self._quantizer is None:
            self._shared = shared

    def stitch(self, tailoring: Tailoring) -> PreTrainedModel:
        """Put a tailoring's layers into the skeleton.

        Returns:
            The skeleton, in evaluation mode, without gradients. The next call changes it, and first takes all
            weights out of it: what its tailoring doesn't use is let go before anything is made for it.
        """
        self._clear()
        self._expect(tailoring)
        modules = self._layer_modules(tailoring)
        for i, module in enumerate(modules):
            for part in module.modules():
                if hasattr(part, "layer_idx"):  # it indexes the KV cache
                    part.layer_idx = i  # type: ignore[assignment]
        self._set_layers(modules)
        self._set_outer(tailoring)
        cut_config(self.model.config, self.config, [slot_index(p) for p in tailoring.layers])
        return self.model

    @property
    def counts(self) -> StitchingCounts:
        """How often layers were found in memory until now."""
        selected, merged = self.selected, self.merged
        return StitchingCounts(selected.hits, selected.misses, merged.hits, merged.misses)

    def memory(self) -> dict[str, int]:
        """Return the bytes that are held: by the layers taken of each model, and by ``"merged"`` ones.

        ``"mapped"`` is the share of all these in views of mapped files. It is page cache and not memory of the
        process: the system can drop it, and holds it once for all processes.
        """
        held: Counter[str] = Counter({"merged": 0, "mapped": 0})
        layers = [(model, layer) for (model, _), layer in self.selected.items()]
        layers += [("merged", layer) for _, layer in self.merged.items()]
        for owner, layer in [*layers, *self._outer.values()]:
            held[owner] += layer.nbytes + layer.mapped_nbytes
            held["mapped"] += layer.mapped_nbytes
        return dict(held)

    def _clear(self) -> None:
        self._set_layers([])
        for name in self.assembly.outer_names:
            module, _, attribute = name.rpartition(".")
            setattr(self.model.get_submodule(module), attribute, None)
        if self.model.config.tie_word_embeddings:
            self.model.get_output_embeddings().weight = None

    def _set_layers(self, modules: list[nn.Module]) -> None:
        parent, _, name = self.assembly.architecture.layers.rpartition(".")
        setattr(self.model.get_submodule(parent), name, nn.ModuleList(modules))

    def _expect(self, tailoring: Tailoring) -> None:
        selected, merged = set[LayerSource](), set[Any]()
        for plan in tailoring.layers:
            if plan.is_selection:
                selected.add(plan.sources[0])
            else:
                merged.add((plan, tailoring.seed))
                selected.update(self._lent(plan).values())
        for name in self.assembly.outer_names:
            owner = self.assembly.owner(tailoring, name)
            if not isinstance(owner, str):
                merged.add((owner, name, tailoring.seed))
        self.selected.expect({(source.model, source.layer) for source in selected})
        self.merged.expect(merged)

    def _layer_modules(self, tailoring: Tailoring) -> list[nn.Module]:
        uses: Counter[int] = Counter()
        modules = []
        for plan in tailoring.layers:
            if plan.is_selection:
                layer = self._select(plan.sources[0], tailoring.seed)
            else:
                layer = self._merge(plan, tailoring.seed)
            if uses[id(layer)] == len(layer.modules):  # a module can't stand in two places: it has one layer_idx
                layer.modules.append(self._module(plan, layer.tensors))
            modules.append(layer.modules[uses[id(layer)]])
            uses[id(layer)] += 1
        return modules

    def _select(self, source: LayerSource, seed: int) -> LayerModules:
        key = (source.model, source.layer)
        layer = self.selected.get(key)
        if layer is None:
            plan, experts = LayerPlan((source,)), self.assembly.architecture.experts
            computed = [
                suffix
                for suffix in self.assembly.suffixes(plan)
                if self._quantizer is not None
                or not self._is_view(plan, suffix)
                or (experts is not None and experts.stacks(suffix))
            ]
            layer = self._made(plan, [s for s in self.assembly.suffixes(plan) if s not in computed], seed)
            if computed:
                what = ("layer", source.layer, str(self.dtype))
                tensors, mapped = self._computed(
                    source.model, what, lambda: self._made(plan, computed, seed).tensors
                )
                layer = LayerModules({**layer.tensors, **tensors}, layer.mapped.union(tensors if mapped else ()))
            self.selected.put(key, layer)
            give_back_freed_memory()
        return layer

    def _computed(
        self, model: str, what: tuple[str | int, ...], build: Callable[[], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], bool]:
        """Return tensors that are computed of one model, and whether they are mapped from a shared file."""

        def built() -> dict[str, Tensor]:
            with private_reads():  # the stored tensors are not needed again: no page of them shall stay
                return build()

        return (built(), False) if self._shared is None else self._shared.get(model, what, built)

    def _merge(self, plan: LayerPlan, seed: int) -> LayerModules:
        layer = self.merged.get((plan, seed))
        if layer is None and self._extends(plan):
            layer = self._with_terms(plan, seed)
            self.merged.put((plan, seed), layer)
        if layer is None:
            lent = self._lent(plan)
            taken = {suffix: self._select(source, seed).tensors[suffix] for suffix, source in lent.items()}
            made = self._made(plan, [s for s in self.assembly.suffixes(plan) if s not in lent], seed)
            lenders = frozenset((source.model, source.layer) for source in lent.values())
            layer = LayerModules({**made.tensors, **taken}, made.mapped, frozenset(lent), lenders)
            self.merged.put((plan, seed), layer)
        return layer

    def _extends(self, plan: LayerPlan) -> bool:
        """Say whether a layer is a merged one with terms, of which the merge can be taken."""
        apart = self._quantizer is None and self.assembly.architecture.experts is None
        return apart and bool(plan.terms) and not replace(plan, terms=()).is_selection

    def _with_terms(self, plan: LayerPlan, seed: int) -> LayerModules:
        """Return a merged layer with its terms: the same merge stands below other gaps in other candidates.

        What both hold counts twice, so that the budget holds whichever of them goes first.
        """
        merge = self._merge(replace(plan, terms=()), seed)
        changed = {suffix for suffix in self.assembly.suffixes(plan) if plan.term_of(suffix) is not None}
        made = self._made(plan, changed, seed)
        tensors = {**merge.tensors, **made.tensors}
        return LayerModules(tensors, merge.mapped - changed, merge.lent - changed, merge.lenders)

    def _lent(self, plan: LayerPlan) -> dict[str, LayerSource]:
        """Return which tensors are taken as they are from which layer, if files name them as models do."""
        if self._quantizer is not None or self.assembly.architecture.experts is not None:
            return {}
        taken = {suffix: self.assembly.taken_from(plan, suffix) for suffix in self.assembly.suffixes(plan)}
        return {suffix: source for suffix, source in taken.items() if source is not None}

    def _made(self, plan: LayerPlan, suffixes: Iterable[str], seed: int) -> LayerModules:
        """Return some tensors of a layer in memory of this process, or as views of mapped checkpoints."""
        live_layer = self.assembly.architecture.live_layer
        stored = {}
        for suffix in suffixes:
            tensor = self.assembly.layer_tensor(plan, suffix, seed, self.device)
            # matrices are quantised from their stored data type
            stored[suffix] = tensor if self._quantizer is not None else tensor.to(self.device, self.dtype)
        tensors = live_layer(stored)
        views = {id(tensor) for suffix, tensor in stored.items() if self._is_view(plan, suffix)}
        if self._quantizer is not None:
            tensors = self._quantizer.quantize(self._templates[slot_index(plan)], tensors)
        return LayerModules(tensors, frozenset(name for name, tensor in tensors.items() if id(tensor) in views))

    def _is_view(self, plan: LayerPlan, suffix: str) -> bool:
        """Say whether a layer's tensor, not quantised, is a view of a mapped checkpoint."""
        source = self.assembly.taken_from(plan, suffix)
        if source is None or self.device.type != "cpu":
            return False
        name = self.assembly.architecture.layer_prefix(source.layer) + suffix
        return self.assembly.is_view(source.model, name, self.dtype)

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
                merged = LayerModules(self._placed(owner, name, seed))
                self.merged.put((owner, name, seed), merged)
            return merged.tensors[name]
        # an adapter that leaves the embeddings alone shares them with its base
        stored = self.assembly.architecture.stored_name(name)
        origin = self.assembly.checkpoints[owner].origin(stored)
        key = (id(origin[0]), origin[1])
        if key not in self._outer:
            first = next(m for m, c in self.assembly.checkpoints.items() if c.origin(stored) == origin)
            self._outer[key] = owner, self._outer_part(first, name, seed)
        (tensor,) = self._outer[key][1].tensors.values()  # a head that is the embeddings has their name
        return tensor

    def _outer_part(self, model: str, name: str, seed: int) -> LayerModules:
        stored = self.assembly.architecture.stored_name(name)
        if self.device.type == "cpu" and self.assembly.is_view(model, stored, self.dtype):
            return LayerModules(self._placed(model, name, seed), frozenset([name]))
        what = ("outer", name, str(self.dtype))
        tensors, mapped = self._computed(model, what, lambda: self._placed(model, name, seed))
        tensors = {name: nn.Parameter(tensors[name], requires_grad=False)}
        return LayerModules(tensors, frozenset([name] if mapped else ()))

    def _placed(self, owner: Owner, name: str, seed: int) -> dict[str, Tensor]:
        tensor = self.assembly.outer_tensor(owner, name, seed, self.device).to(self.device, self.dtype)
        return {name: nn.Parameter(tensor, requires_grad=False)}
