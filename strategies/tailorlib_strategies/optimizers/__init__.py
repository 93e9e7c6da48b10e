"""Built-in optimizers."""

from tailorlib_strategies.optimizers.nevergrad import Nevergrad
from tailorlib_strategies.optimizers.random_search import RandomSearch
from tailorlib_strategies.optimizers.structured_bayes import StructuredBayes

__all__ = ["Nevergrad", "RandomSearch", "StructuredBayes"]
