"""Built-in warm starts."""

from tailorlib_strategies.warm_starts.block_influence import BlockInfluence
from tailorlib_strategies.warm_starts.random_tailoring import RandomTailoring

__all__ = ["BlockInfluence", "RandomTailoring"]
