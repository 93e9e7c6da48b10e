"""Built-in search spaces."""

from tailorlib_strategies.search_spaces.depth_integration import DepthIntegrationSpace
from tailorlib_strategies.search_spaces.folding import FoldingSpace
from tailorlib_strategies.search_spaces.layer_fusion import LayerFusionSpace
from tailorlib_strategies.search_spaces.pruning import PruningSpace

__all__ = ["DepthIntegrationSpace", "FoldingSpace", "LayerFusionSpace", "PruningSpace"]
