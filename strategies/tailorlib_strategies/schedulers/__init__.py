"""Built-in schedulers."""

from tailorlib_strategies.schedulers.asha import ASHA
from tailorlib_strategies.schedulers.halving import Hyperband, SuccessiveHalving
from tailorlib_strategies.schedulers.racing import Racing

__all__ = ["ASHA", "Hyperband", "Racing", "SuccessiveHalving"]
