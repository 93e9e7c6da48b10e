"""tailorlib: cut and stitch language models by zero-order search."""

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
from tailorlib.version import __version__
from tailorlib.warm_start import WarmStart, WarmStartContext

__all__ = [
    "Candidate",
    "Categorical",
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
