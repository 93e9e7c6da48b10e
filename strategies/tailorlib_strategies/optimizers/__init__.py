"""Built-in optimizers."""

from tailorlib_strategies.optimizers.nevergrad import Nevergrad
from tailorlib_strategies.optimizers.random_search import RandomSearch

__all__ = ["Nevergrad", "RandomSearch"]
