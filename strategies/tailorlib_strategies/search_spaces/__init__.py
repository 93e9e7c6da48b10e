"""Built-in search spaces."""

from tailorlib_strategies.search_spaces.pruning import PruningSpace

__all__ = ["PruningSpace"]
