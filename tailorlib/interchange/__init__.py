"""Interchange: tailorings from and to mergekit's configurations, and from the genotypes of the paper's code."""

from tailorlib.interchange.foreign import read_foreign
from tailorlib.interchange.genotype import from_genotype
from tailorlib.interchange.imported import Imported
from tailorlib.interchange.mergekit_export import MergekitText, to_mergekit
from tailorlib.interchange.mergekit_import import from_mergekit
from tailorlib.interchange.names import TensorNames

__all__ = [
    "Imported",
    "MergekitText",
    "TensorNames",
    "from_genotype",
    "from_mergekit",
    "read_foreign",
    "to_mergekit",
]
