"""Built-in fitness."""

from tailorlib_strategies.fitness.kl_divergence import KLDivergence
from tailorlib_strategies.fitness.lm_eval import LMEval
from tailorlib_strategies.fitness.perplexity import Perplexity
from tailorlib_strategies.fitness.weighted_mean import WeightedMean

__all__ = ["KLDivergence", "LMEval", "Perplexity", "WeightedMean"]
