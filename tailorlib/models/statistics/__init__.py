"""Layer statistics: what merges such as RegMean and Fisher ask of each source, gathered over calibration text."""

from tailorlib.models.statistics.cache import LayerStatistics

__all__ = ["LayerStatistics"]
