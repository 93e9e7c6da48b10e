"""Built-in families."""

from tailorlib_strategies.families.fine_tuned import FineTunedFamily
from tailorlib_strategies.families.fine_tuning import FineTuning, FineTuningReport

__all__ = ["FineTunedFamily", "FineTuning", "FineTuningReport"]
