"""Built-in compensations."""

from tailorlib_strategies.compensations.bridge import Bridge, OutputMap
from tailorlib_strategies.compensations.magnitude_scale import MagnitudeScale
from tailorlib_strategies.compensations.refit import Refit

__all__ = ["Bridge", "MagnitudeScale", "OutputMap", "Refit"]
