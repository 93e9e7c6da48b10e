"""tailorlib: cut and stitch language models by zero-order search.

The names below are imported when they are first used: they take torch, and a command can be stopped meanwhile.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tailorlib.version import __version__

if TYPE_CHECKING:
    from tailorlib.compensation import Compensation, CompensationContext
    from tailorlib.distributions import Categorical, Distribution, Float, Integer, Params, Subset
    from tailorlib.fitness import Fitness, Measurement
    from tailorlib.objective import Candidate, Objective
    from tailorlib.operation import MergeOperation, Operation, Statistic
    from tailorlib.optimizer import Optimizer
    from tailorlib.scheduler import Promotion, Scheduler
    from tailorlib.search_space import FamilyLayout, SearchSpace, SpaceSize
    from tailorlib.tailoring import LayerPlan, LayerSource, PartPlan, Tailoring
    from tailorlib.text import TextSource
    from tailorlib.trial import Trial
    from tailorlib.warm_start import WarmStart, WarmStartContext

__all__ = [
    "Candidate",
    "Categorical",
    "Compensation",
    "CompensationContext",
    "Distribution",
    "FamilyLayout",
    "Fitness",
    "Float",
    "Integer",
    "LayerPlan",
    "LayerSource",
    "Measurement",
    "MergeOperation",
    "Objective",
    "Operation",
    "Optimizer",
    "Params",
    "PartPlan",
    "Promotion",
    "Scheduler",
    "SearchSpace",
    "SpaceSize",
    "Statistic",
    "Subset",
    "Tailoring",
    "TextSource",
    "Trial",
    "WarmStart",
    "WarmStartContext",
    "__version__",
]

_MODULES = {
    "compensation": "Compensation CompensationContext",
    "distributions": "Categorical Distribution Float Integer Params Subset",
    "fitness": "Fitness Measurement",
    "objective": "Candidate Objective",
    "operation": "MergeOperation Operation Statistic",
    "optimizer": "Optimizer",
    "scheduler": "Promotion Scheduler",
    "search_space": "FamilyLayout SearchSpace SpaceSize",
    "tailoring": "LayerPlan LayerSource PartPlan Tailoring",
    "text": "TextSource",
    "trial": "Trial",
    "warm_start": "WarmStart WarmStartContext",
}
"""The modules that the names are in."""


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names.split():
            return getattr(import_module(f"tailorlib.{module}"), name)
    raise AttributeError(f"module 'tailorlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
