"""Built-in fitness."""

from tailorlib_strategies.fitness.kl_divergence import Acceptance, KLDivergence
from tailorlib_strategies.fitness.lm_eval import LMEval
from tailorlib_strategies.fitness.perplexity import Perplexity
from tailorlib_strategies.fitness.weighted_mean import WeightedMean

__all__ = ["Acceptance", "KLDivergence", "LMEval", "Perplexity", "WeightedMean"]
