"""Built-in warm starts."""

from tailorlib_strategies.warm_starts.angular_distance import AngularDistance
from tailorlib_strategies.warm_starts.block_influence import BlockInfluence
from tailorlib_strategies.warm_starts.controls import FullDepthMerge, SingleVariants, UniformMix
from tailorlib_strategies.warm_starts.designed_start import DesignedStart
from tailorlib_strategies.warm_starts.gap_distance import GapDistance
from tailorlib_strategies.warm_starts.importance import MagnitudeImportance, TaylorImportance
from tailorlib_strategies.warm_starts.laco import LaCo
from tailorlib_strategies.warm_starts.leave_one_out import LeaveOneOut
from tailorlib_strategies.warm_starts.random_tailoring import RandomTailoring

__all__ = [
    "AngularDistance",
    "BlockInfluence",
    "DesignedStart",
    "FullDepthMerge",
    "GapDistance",
    "LaCo",
    "LeaveOneOut",
    "MagnitudeImportance",
    "RandomTailoring",
    "SingleVariants",
    "TaylorImportance",
    "UniformMix",
]
