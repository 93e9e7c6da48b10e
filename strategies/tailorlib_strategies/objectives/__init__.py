"""Built-in objectives."""

from tailorlib_strategies.objectives.latency import LatencyReduced
from tailorlib_strategies.objectives.quality import Quality
from tailorlib_strategies.objectives.size import ParametersRemoved

__all__ = ["LatencyReduced", "ParametersRemoved", "Quality"]
