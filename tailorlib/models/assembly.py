"""Assembly: the one place that turns a tailoring's plans into tensors.

The live model and the exported one are both made here, so that what was searched is what is shipped: a merge is
computed in float32 and rounded to the stored data type, before anything casts it to another one to compute with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError
from tailorlib.models.architecture import Architecture
from tailorlib.models.checkpoint import Checkpoint
from tailorlib.operation import OPERATIONS, MergeOperation, Statistic, is_finite
from tailorlib.seeding import torch_generator
from tailorlib.tailoring import BASE, SELECT, LayerPlan, LayerSource, Owner, PartPlan, Tailoring


@dataclass(frozen=True)
class Named:
    """A tensor of one model, by its name in checkpoint files."""

    model: str
    name: str


class Assembly:
    """Makes the tensors of a tailored model from the checkpoints of its family.

    Tensors are named as checkpoint files name them, and have the data type that the base model stores them in.

    Args:
        architecture: Where the parts of these models live.
        checkpoints: The checkpoints by family name; the base is called ``"base"``.
        layer_suffixes: Names of each layer's tensors in files, without the layer's prefix.
        outer_names: Names in the model of the tensors outside the layers; without the head's if it is tied.
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
        self.statistics: Callable[[Statistic, str, str], Tensor | None] | None = None
        """Finds a statistic of a model's tensor, by kind, model and name; set by the family that can."""
        self.terms: Callable[[str, str], Tensor] | None = None
        """Finds what is added to a tensor, by the term's name and the tensor's inside its layer."""
        self._operations: dict[str, MergeOperation] = {}
        self._sound: set[tuple[int, str]] = set()

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
        for suffix in self.suffixes(plan):
            yield suffix, self.layer_tensor(plan, suffix, seed, device)

    def layer_tensor(self, plan: LayerPlan, suffix: str, seed: int, device: torch.device | None = None) -> Tensor:
        """Return one tensor of a layer, given its name inside the layer; see :meth:`layer_tensors`."""
        part = plan.plan_of(suffix)
        sources = [self._named(source, suffix) for source in part.sources]
        base = None if part.base is None else self._named(part.base, suffix)
        dtype = self.checkpoints[BASE].dtype(sources[0].name)
        selected, term = part.operation == SELECT, plan.term_of(suffix)
        if term is None:
            own = (
                self._stored(sources[0]) if selected else self._merged(part, sources, base, seed, device).to(dtype)
            )
            return self._scaled(own, plan, suffix)
        wide = self.read(sources[0]) if selected else self._merged(part, sources, base, seed, device)
        scaled = self._scaled(wide.to(device, torch.float32), plan, suffix)
        return self._with_term(scaled, term, suffix).to(dtype)

    def suffixes(self, plan: LayerPlan) -> tuple[str, ...]:
        """Return the names of a layer's tensors inside the layer."""
        return self.layer_suffixes[plan.sources[0].layer]

    def taken_from(self, plan: LayerPlan, suffix: str) -> LayerSource | None:
        """Return the layer whose tensor is taken as it is, or ``None`` if one is computed."""
        part = plan.plan_of(suffix)
        changed = self._factor(plan, suffix) != 1 or plan.term_of(suffix) is not None
        return part.sources[0] if part.operation == SELECT and not changed else None

    def is_view(self, model: str, name: str, dtype: torch.dtype) -> bool:
        """Say whether a model's tensor, in some data type on the CPU, is a view of a mapped file.

        Args:
            model: The model's name.
            name: The tensor's name in checkpoint files.
            dtype: The data type that it is asked for in.
        """
        checkpoint, stored = self.checkpoints[model].origin(name)
        types = {checkpoint.dtype(stored), self.checkpoints[BASE].dtype(name), dtype}
        return len(types) == 1 and checkpoint.maps(stored)

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
        for suffix in self.suffixes(plan):
            name = self.architecture.layer_prefix(plan.sources[0].layer) + suffix
            yield suffix, self.checkpoints[BASE].shape(name), self.checkpoints[BASE].dtype(name)

    def owner(self, tailoring: Tailoring, name: str) -> Owner:
        """Return what gives a tensor outside the layers, given its name in the model.

        Raises:
            ModelError: If the tensor belongs to no known part.
        """
        parts = {self.architecture.norm: tailoring.norm, self.architecture.head: tailoring.head}
        parts |= dict.fromkeys(self.architecture.embeddings, tailoring.embeddings)
        for module, owner in parts.items():
            if name.startswith(module + "."):
                return owner
        raise ModelError(
            f"Models of type {self.architecture.model_type!r} have the tensor {name!r}, which belongs to neither "
            "embeddings, norm, head nor layers. Correct the row in tailorlib.models.architecture."
        )

    def outer_tensors(
        self, tailoring: Tailoring, device: torch.device | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of embeddings, final norm and head with their names in the model, one at a time.

        A head that is tied to the embeddings isn't among them.
        """
        for name in self.outer_names:
            yield name, self.outer_tensor(self.owner(tailoring, name), name, tailoring.seed, device)

    def outer_tensor(self, owner: Owner, name: str, seed: int, device: torch.device | None = None) -> Tensor:
        """Return one tensor outside the layers, given what gives it and its name in the model."""
        stored = self.architecture.stored_name(name)
        if isinstance(owner, str):
            return self._stored(Named(owner, stored))
        base = None if owner.base is None else Named(owner.base, stored)
        merged = self._merged(owner, [Named(model, stored) for model in owner.models], base, seed, device)
        return merged.to(self.checkpoints[BASE].dtype(stored))

    def outer_shapes(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """Yield name, shape and data type of what :meth:`outer_tensors` would yield."""
        for name in self.outer_names:
            stored = self.architecture.stored_name(name)
            yield name, self.checkpoints[BASE].shape(stored), self.checkpoints[BASE].dtype(stored)

    def read(self, tensor: Named) -> Tensor:
        """Return a model's tensor as its checkpoint has it.

        Raises:
            ModelError: If it can't be read, or holds NaN or Inf.
        """
        checkpoint, name = self.checkpoints[tensor.model].origin(tensor.name)
        found = checkpoint.tensor(name)
        if (id(checkpoint), name) not in self._sound:
            if found.is_floating_point() and not is_finite(found):
                bad = int((~torch.isfinite(found)).sum())
                raise ModelError(
                    f"The tensor {name!r} of the model {tensor.model!r} ({checkpoint.where(name)}) holds NaN or "
                    f"Inf at {bad} of {found.numel()} entries. Fetch the model again, or leave it out."
                )
            self._sound.add((id(checkpoint), name))
        return found

    def _stored(self, tensor: Named) -> Tensor:
        return self.read(tensor).to(self.checkpoints[BASE].dtype(tensor.name))

    def _named(self, source: LayerSource, suffix: str) -> Named:
        return Named(source.model, self.architecture.layer_prefix(source.layer) + suffix)

    def _merged(
        self,
        plan: LayerPlan | PartPlan,
        sources: Sequence[Named],
        base: Named | None,
        seed: int,
        device: torch.device | None,
    ) -> Tensor:
        """Return a merged tensor in float32, not rounded yet."""
        operation = self.operation(plan.operation)
        # a source is not rounded to another stored type before the merge: that would change its task vector
        return operation.apply(
            [self.read(source).to(device, torch.float32) for source in sources],
            base=None if base is None else self.read(base).to(device, torch.float32),
            params=dict(plan.params),
            generators=[torch_generator(seed, source.model, source.name) for source in sources],
            statistics=[self._statistic(operation, source, device) for source in sources],
            where=f"{sources[0].name} of {', '.join(source.model for source in sources)}",
        )

    def _statistic(self, operation: MergeOperation, source: Named, device: torch.device | None) -> Tensor | None:
        if operation.statistic is None:
            return None
        if self.statistics is None:
            raise ModelError(
                f"{operation.name} needs layer statistics of every source, and the family has no calibration text "
                "to gather them over. Give the recipe family.init_args.calibration, a text source."
            )
        found = self.statistics(operation.statistic, source.model, source.name)
        return None if found is None else found.to(device)

    def _with_term(self, wide: Tensor, name: str, suffix: str) -> Tensor:
        """Add a term to a float32 tensor.

        Raises:
            ModelError: If there is no such term, or it is of another shape.
        """
        if self.terms is None:
            raise ModelError(
                f"The tailoring adds the term {name!r} to {suffix!r}, and there is no folder of terms. Name the "
                "run that made it, or keep the folder 'terms' beside the tailoring file."
            )
        term = self.terms(name, suffix)
        if term.shape != wide.shape:
            raise ModelError(
                f"The term {name!r} is of shape {tuple(term.shape)}, and {suffix!r} of {tuple(wide.shape)}: it "
                "belongs to another model."
            )
        return wide + term.to(wide.device, torch.float32)

    def _factor(self, plan: LayerPlan, suffix: str) -> float:
        branch = self.architecture.branch(suffix)
        if branch is None:
            return 1.0
        return plan.attention_scale if branch == "attention" else plan.mlp_scale

    def _scaled(self, tensor: Tensor, plan: LayerPlan, suffix: str) -> Tensor:
        factor = self._factor(plan, suffix)
        if factor == 1:
            return tensor
        wide = tensor.to(torch.float32)
        scaled = (1 + wide) * factor - 1 if self.architecture.unit_offset else wide * factor
        return scaled.to(tensor.dtype)
