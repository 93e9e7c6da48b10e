"""Memory of a study: what it will hold and read. It follows from shapes and settings; nothing is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from tailorlib.models.family import ModelFamily
from tailorlib.models.precision import compute_dtype
from tailorlib.search.study import Study
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring

EXAMPLES = 32
"""Number of random tailorings that show how many layers are kept, and what lies outside them."""
_BYTES_PER_PARAMETER = {"nf4": 0.52, "fp4": 0.52, "int8": 1.01}


@dataclass(frozen=True)
class Memory:
    """What a study holds and reads.

    Args:
        device_bytes: Memory of the family on the device, once every layer of every model was used.
        mapped_bytes: How much of it are views of mapped files: page cache, which the system can drop.
        cache_bytes: Memory that merged layers and hidden states may take beside it.
        disk_bytes: Bytes of the checkpoints that are mapped from disk.
        adapter_bytes: How much of it are adapters.
    """

    device_bytes: int
    mapped_bytes: int
    cache_bytes: int
    disk_bytes: int
    adapter_bytes: int


def memory(study: Study, device: torch.device) -> Memory:
    """Say what a study holds on a device; nothing is calibrated, and any device can be asked about.

    Args:
        study: A prepared study, or one whose family is outlined.
        device: Where it would run.
    """
    tailorings = [example(study, number) for number in range(EXAMPLES)]
    held = _Held(study.family, device)
    (own, mapped), (outer, mapped_outer) = held.layers(), held.outer(tailorings)
    files = {True: 0, False: 0}
    for name, checkpoint in study.family.checkpoints.items():
        files[study.family.sources[name].is_adapter] += checkpoint.file_bytes()
    return Memory(
        device_bytes=int(own + mapped + outer + mapped_outer),
        mapped_bytes=mapped + mapped_outer,
        cache_bytes=_cache_bytes(study, held, tailorings),
        disk_bytes=sum(files.values()),
        adapter_bytes=files[True],
    )


def example(study: Study, number: int) -> Tailoring:
    """Return a random tailoring of the study's space."""
    return study.space.decode(study.space.sample(numpy_generator("plan", number)), seed=study.settings.seed)


class _Held:
    """How :class:`~tailorlib.models.stitching.Stitcher` holds the tensors of a family."""

    def __init__(self, family: ModelFamily, device: torch.device) -> None:
        self.family, self.assembly = family, family.assembly
        self.dtype, self.on_cpu = compute_dtype(family.dtype, device), device.type == "cpu"

    def layers(self) -> tuple[float, int]:
        """Return the bytes of all layers of all models: in memory of their own, and as views of files."""
        models = self.family.layout.models
        found = [self._layer(model, layer) for model in models for layer in range(self.family.layout.num_layers)]
        own, mapped = sum(o for o, _ in found), sum(m for _, m in found)
        if self.family.layer_cache_mib is not None:  # what one tailoring uses is held whatever the budget is
            own = min(own, max(self.family.layer_cache_mib << 20, own / len(models)))
        return own, mapped

    def outer(self, tailorings: Sequence[Tailoring]) -> tuple[int, int]:
        """Return the same of embeddings, norm and head, as far as they are taken from a model as they are."""
        whole = Tailoring.whole(BASE, self.family.layout.num_layers)  # the dense model is measured in any case
        own: dict[object, int] = {}
        mapped: dict[object, int] = {}
        for name, shape, _ in self.assembly.outer_shapes():
            stored = self.family.architecture.stored_name(name)
            for owner in {self.assembly.owner(tailoring, name) for tailoring in (whole, *tailorings)}:
                if isinstance(owner, str):
                    checkpoint, origin = self.family.checkpoints[owner].origin(stored)
                    view = self.on_cpu and self.assembly.is_view(owner, stored, self.dtype)
                    (mapped if view else own)[id(checkpoint), origin] = prod(shape) * self.dtype.itemsize
        return sum(own.values()), sum(mapped.values())

    def merged(self, tailorings: Sequence[Tailoring]) -> float:
        """Return the bytes of the largest tailoring, should all of its layers be merged."""
        most = max(tailorings, key=lambda tailoring: len(tailoring.layers))
        layers = (
            self.bytes_of(plan, suffix, shape)
            for plan in most.layers
            for suffix, shape, _ in self.assembly.layer_shapes(plan)
        )
        return sum(layers) + max(map(self._merged_outer, tailorings))

    def bytes_of(self, plan: LayerPlan, suffix: str, shape: tuple[int, ...]) -> float:
        """Return the bytes of a layer's tensor; a quantised family's matrices take less than the rest."""
        experts = self.family.architecture.experts
        quantised = len(shape) == 2 and not (experts is not None and experts.stacks(suffix))
        width = _BYTES_PER_PARAMETER.get(self.family.quantization) if quantised else None
        return prod(shape) * (self.dtype.itemsize if width is None else width)

    def _layer(self, model: str, layer: int) -> tuple[float, int]:
        plan, own, mapped = LayerPlan((LayerSource(model, layer),)), 0.0, 0
        for suffix, shape, _ in self.assembly.layer_shapes(plan):
            if self._is_view(model, layer, suffix):
                mapped += prod(shape) * self.dtype.itemsize
            else:
                own += self.bytes_of(plan, suffix, shape)
        return own, mapped

    def _is_view(self, model: str, layer: int, suffix: str) -> bool:
        experts = self.family.architecture.experts
        if not self.on_cpu or self.family.quantization != "none" or (experts and experts.stacks(suffix)):
            return False
        name = self.family.architecture.layer_prefix(layer) + suffix
        return self.assembly.is_view(model, name, self.dtype)

    def _merged_outer(self, tailoring: Tailoring) -> int:
        shapes = (
            shape
            for name, shape, _ in self.assembly.outer_shapes()
            if not isinstance(self.assembly.owner(tailoring, name), str)
        )
        return sum(map(prod, shapes)) * self.dtype.itemsize


def _cache_bytes(study: Study, held: _Held, tailorings: Sequence[Tailoring]) -> int:
    """Return what merged parts and hidden states may take on the device.

    The merged layers of the present tailoring are held whatever the budget is: of a large model that is more.
    """
    merges = study.space.operations() or not all(p.is_selection for t in tailorings for p in t.layers)
    merged = max(study.family.merge_cache_mib << 20, int(held.merged(tailorings))) if merges else 0
    return merged + (study.settings.prefix_cache_mib << 20)
