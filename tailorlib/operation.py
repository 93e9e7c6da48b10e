"""Operation: how the layers of a family become a layer of the tailored model.

A new merge method is one class::

    class Midpoint(MergeOperation):
        def merge(self, tensors, *, base, params, generators):
            return sum(tensors) / len(tensors)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from tailorlib.distributions import Distribution, Params
from tailorlib.exceptions import PluginError, shown, where_raised
from tailorlib.guards import Check, Guarded
from tailorlib.registry import Registry


def _hyperparameters(operation: Operation, found: Any) -> Any:
    if not isinstance(found, Mapping) or not all(isinstance(d, Distribution) for d in found.values()):
        raise PluginError(
            f"{type(operation).__name__}.{{method}} gives a mapping of names to Float, Integer, Categorical or "
            f"Subset, got {shown(found)}."
        )
    return found


class Operation(Guarded, ABC):
    """One thing that can be done with layers.

    ``__init__`` takes what a recipe sets (ranges of hyperparameters); :meth:`distributions` declares what the
    search draws. The class name is the operation's one name: in recipes, in the registry, in a tailoring file.
    """

    name: ClassVar[str] = ""
    _guards: ClassVar[Mapping[str, Check]] = {"distributions": _hyperparameters}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def distributions(self) -> Mapping[str, Distribution]:
        """Return the operation's own hyperparameters, which the search draws per layer."""
        return {}


class Statistic(StrEnum):
    """What a merge can ask of each source besides its weights, gathered once over calibration text."""

    GRAM = "gram"
    """Mean of x xT over the inputs x of a linear layer: float32 [in, in]; other tensors have none."""
    FISHER = "fisher"
    """Squared gradients of the log-likelihood, row by row (the diagonal of the empirical Fisher information), over
    their norm over the whole model: float32, the weight's shape."""


class MergeOperation(Operation):
    """Several tensors of one shape become one.

    Subclasses write :meth:`merge`; callers use :meth:`apply`, which guards it. A merge depends on its arguments
    alone: ``params`` holds a value for every name in :meth:`~Operation.distributions`, so that a tailoring can
    be rebuilt without the recipe (with an instance made by ``cls()``). A plan may leave out what ``cls()`` fixes
    to one value.
    """

    needs_base: ClassVar[bool] = False
    """Whether ``base`` (the tensor that task vectors are taken against) is required."""
    min_sources: ClassVar[int] = 2
    """The smallest number of tensors that the method is defined for: 1 for changes of the base, such as TIES."""
    max_sources: ClassVar[int | None] = None
    """The largest number of tensors that the method is defined for; ``None`` for any."""
    statistic: ClassVar[Statistic | None] = None
    """What :meth:`merge` gets in ``statistics``, a tensor (or ``None``) per source; nothing by default."""
    weights: Distribution | None = None
    """Range of the weight that each source can be given; ``None`` for a method without weights. A weighted method
    always finds ``params["weights"]``, one number per source, all 1 where a plan names none."""

    @abstractmethod
    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Merge tensors of one shape.

        Args:
            tensors: Float32 tensors of one shape, ``min_sources`` or more, in the order of the plan's sources.
            base: The base model's float32 tensor of the same shape; given if ``needs_base``.
            params: A value for each of the operation's hyperparameters.
            generators: One CPU generator per tensor, seeded from (seed, model, tensor name): what it draws
                depends on no other model of the merge. Draw on the CPU and move the result to the tensor's
                device, so that every device gives the same bits.

        An operation with a ``statistic`` declares one keyword more, ``statistics: Sequence[Tensor | None] = ()``.

        Returns:
            A float32 tensor of the same shape.
        """

    def apply(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
        statistics: Sequence[Tensor | None] = (),
        where: str = "a tensor",
    ) -> Tensor:
        """Check the inputs, compute :meth:`merge` in float32, check the result, and cast it back.

        Args:
            tensors: Tensors of one shape and dtype, ``min_sources`` to ``max_sources`` of them.
            base: The base model's tensor, or ``None``.
            params: A value for each of the operation's hyperparameters.
            generators: One CPU generator per tensor.
            statistics: The operation's statistic of each source, if it has one.
            where: Name of the tensor, for error messages.

        Returns:
            A tensor of the shape, dtype and device of the first one.

        Raises:
            PluginError: If the arguments don't fit the operation, or its result is not finite, has another
                shape, or an input was modified.
        """
        fixed = {name: d.default for name, d in self.distributions().items() if d.cardinality == 1}
        params = {**fixed, **params}
        self._check_inputs(tensors, base, params, where)
        if self.weights is not None:
            params = {"weights": (1.0,) * len(tensors), **params}
        wide = [t.to(torch.float32) for t in tensors]
        wide_base = None if base is None or not self.needs_base else base.to(torch.float32)
        informed: dict[str, Any] = {} if self.statistic is None else {"statistics": statistics}
        versions = _versions(wide)
        with torch.no_grad():
            try:
                merged = self.merge(wide, base=wide_base, params=params, generators=generators, **informed)
            except (TypeError, AttributeError) as error:
                if wide_base is None and "NoneType" in str(error):
                    raise PluginError(
                        f"{self.name}.merge failed at {where}: {type(error).__name__}: {error}"
                        f"{where_raised(error, 1)}. base is None unless the class says needs_base = True."
                    ) from error
                raise
        if _versions(wide) != versions:
            raise PluginError(f"{self.name}.merge must not modify its inputs; it did at {where}.")
        if not isinstance(merged, Tensor) or merged.shape != tensors[0].shape:
            shape = tuple(merged.shape) if isinstance(merged, Tensor) else type(merged).__name__
            raise PluginError(
                f"{self.name}.merge must return a tensor of its inputs' shape {tuple(tensors[0].shape)}, got "
                f"{shape} at {where}."
            )
        if not merged.is_floating_point():
            raise PluginError(f"{self.name}.merge must return a float32 tensor, got {merged.dtype} at {where}.")
        if not is_finite(merged):
            raise PluginError(
                f"{self.name}.merge gave NaN or Inf at {where} with {dict(params)}. Check the method for tensors "
                "that are zero or equal."
            )
        return merged.to(tensors[0].dtype)

    def _check_inputs(self, tensors: Sequence[Tensor], base: Tensor | None, params: Params, where: str) -> None:
        if not self.min_sources <= len(tensors) <= (self.max_sources or len(tensors)):
            limit = (
                f"{self.min_sources} to {self.max_sources}" if self.max_sources else f"{self.min_sources} or more"
            )
            raise PluginError(f"{self.name} merges {limit} tensors, got {len(tensors)} at {where}.")
        if self.needs_base and base is None:
            raise PluginError(f"{self.name} needs the base model's tensor, got none at {where}.")
        shapes = {tuple(t.shape) for t in (*tensors, *([base] if base is not None else []))}
        if len(shapes) > 1:
            raise PluginError(f"{self.name} merges tensors of one shape, got {sorted(shapes)} at {where}.")
        declared = set(self.distributions())
        if set(params) - {"weights"} != declared - {"weights"}:
            raise PluginError(
                f"{self.name} takes the hyperparameters {sorted(declared)}, got {sorted(params)} at {where}."
            )
        weights = params.get("weights")
        if weights is not None and self.weights is None:
            raise PluginError(f"{self.name} gives its sources no weights, got {weights} at {where}.")
        if weights is not None and (not isinstance(weights, tuple) or len(weights) != len(tensors)):
            raise PluginError(f"{self.name} takes one weight per source, got {weights} at {where}.")


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [t._version for t in tensors if not t.is_inference()]  # those are not counted


def is_finite(tensor: Tensor) -> bool:
    """Say whether a tensor holds neither NaN nor Inf; one pass over it, without a mask of its size."""
    # a sum is finite only if every term is; large finite numbers can overflow, so then look at each
    wide = torch.float32 if tensor.dtype == torch.float16 else None  # bfloat16 reaches as far as float32
    return bool(torch.isfinite(tensor.sum(dtype=wide))) or bool(torch.isfinite(tensor).all())


OPERATIONS: Registry[Operation] = Registry(Operation, "tailorlib.operations")
