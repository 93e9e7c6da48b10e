"""Built-in optimizers."""

from tailorlib_strategies.optimizers.evolution import Evolution
from tailorlib_strategies.optimizers.nevergrad import Nevergrad
from tailorlib_strategies.optimizers.optuna import Optuna
from tailorlib_strategies.optimizers.parego import ParEGO
from tailorlib_strategies.optimizers.random_search import RandomSearch
from tailorlib_strategies.optimizers.smac import SMAC
from tailorlib_strategies.optimizers.structured_bayes import StructuredBayes

__all__ = ["SMAC", "Evolution", "Nevergrad", "Optuna", "ParEGO", "RandomSearch", "StructuredBayes"]
