"""Assembly: the one place that turns a tailoring's plans into tensors.

The live model and the exported one are both made here, so that what was searched is what is shipped: a merge is
computed in float32 and rounded to the stored data type, before anything casts it to another one to compute with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError
from tailorlib.models.architecture import Architecture
from tailorlib.models.checkpoint import Checkpoint
from tailorlib.operation import OPERATIONS, MergeOperation
from tailorlib.seeding import torch_generator
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring


class Assembly:
    """Makes the tensors of a tailored model from the checkpoints of its family.

    Every tensor has the data type that the base model stores it in.

    Args:
        architecture: Where the parts of these models live.
        checkpoints: The checkpoints by family name; the base is called ``"base"``.
        layer_suffixes: Names of each layer's tensors, without the layer's prefix.
        outer_names: Names of the tensors outside the layers; without the head's if it is tied.
    """

    def __init__(
        self,
        architecture: Architecture,
        checkpoints: Mapping[str, Checkpoint],
        layer_suffixes: tuple[tuple[str, ...], ...],
        outer_names: tuple[str, ...],
    ) -> None:
        self.architecture, self.checkpoints = architecture, checkpoints
        self.layer_suffixes, self.outer_names = layer_suffixes, outer_names
        self._operations: dict[str, MergeOperation] = {}

    def layer_tensors(
        self, plan: LayerPlan, seed: int, device: torch.device | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield a layer's tensors with their names inside the layer, one at a time.

        Args:
            plan: What the layer is made from.
            seed: The tailoring's seed.
            device: Where merges are computed; the CPU if ``None``.

        Yields:
            The name inside the layer and the tensor. A selected tensor is the checkpoint's own, on the CPU.
        """
        operation = None if plan.is_selection else self.operation(plan.operation)
        for suffix in self.layer_suffixes[plan.sources[0].layer]:
            if operation is None:
                yield suffix, self._select(plan.sources[0], suffix)
            else:
                yield suffix, self._merge(operation, plan, suffix, seed, device)

    def operation(self, name: str) -> MergeOperation:
        """Return the merge operation of that name, made without arguments: a plan holds all it needs.

        Raises:
            PluginError: If there is no such operation.
            ModelError: If it doesn't merge.
        """
        if name not in self._operations:  # looking through the entry points of all packages takes a while
            operation = OPERATIONS.get(name)
            if not issubclass(operation, MergeOperation):
                raise ModelError(f"A kept layer is selected or merged; the operation {name!r} does neither.")
            self._operations[name] = operation()
        return self._operations[name]

    def layer_shapes(self, plan: LayerPlan) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """Yield name, shape and data type of what :meth:`layer_tensors` would yield."""
        layer = plan.sources[0].layer
        for suffix in self.layer_suffixes[layer]:
            name = self.architecture.layer_prefix(layer) + suffix
            yield suffix, self.checkpoints[BASE].shape(name), self.checkpoints[BASE].dtype(name)

    def owner(self, tailoring: Tailoring, name: str) -> str:
        """Return the model that gives a tensor outside the layers.

        Raises:
            ModelError: If the tensor belongs to no known part.
        """
        parts = {self.architecture.norm: tailoring.norm, self.architecture.head: tailoring.head}
        parts |= dict.fromkeys(self.architecture.embeddings, tailoring.embeddings)
        for module, model in parts.items():
            if name.startswith(module + "."):
                return model
        raise ModelError(
            f"Models of type {self.architecture.model_type!r} have the tensor {name!r}, which belongs to neither "
            "embeddings, norm, head nor layers. Correct the row in tailorlib.models.architecture."
        )

    def outer_tensors(self, tailoring: Tailoring) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of embeddings, final norm and head with their full names, one at a time.

        A head that is tied to the embeddings isn't among them.
        """
        for name in self.outer_names:
            yield name, self.tensor(self.owner(tailoring, name), name)

    def outer_shapes(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """Yield name, shape and data type of what :meth:`outer_tensors` would yield."""
        for name in self.outer_names:
            stored = self.architecture.stored_name(name)
            yield name, self.checkpoints[BASE].shape(stored), self.checkpoints[BASE].dtype(stored)

    def tensor(self, model: str, name: str) -> Tensor:
        """Return a model's tensor, given its name in the model, in the base's stored data type."""
        stored = self.architecture.stored_name(name)
        return self.checkpoints[model].tensor(stored).to(self.checkpoints[BASE].dtype(stored))

    def _select(self, source: LayerSource, suffix: str) -> Tensor:
        return self.tensor(source.model, self.architecture.layer_prefix(source.layer) + suffix)

    def _merge(
        self, operation: MergeOperation, plan: LayerPlan, suffix: str, seed: int, device: torch.device | None
    ) -> Tensor:
        names = [self.architecture.layer_prefix(s.layer) + suffix for s in plan.sources]
        stored = self.checkpoints[BASE].dtype(names[0])
        # a source is not rounded to another stored type before the merge: that would change its task vector
        tensors = [
            self.checkpoints[s.model].tensor(name).to(device, torch.float32)
            for s, name in zip(plan.sources, names, strict=True)
        ]
        base = None
        if plan.base is not None:
            name = self.architecture.layer_prefix(plan.base.layer) + suffix
            base = self.checkpoints[plan.base.model].tensor(name).to(device, torch.float32)
        merged = operation.apply(
            tensors,
            base=base,
            params=dict(plan.params),
            generators=[torch_generator(seed, s.model, n) for s, n in zip(plan.sources, names, strict=True)],
            where=f"{suffix} of {', '.join(map(str, plan.sources))}",
        )
        return merged.to(stored)
