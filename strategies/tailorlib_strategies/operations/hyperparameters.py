"""Hyperparameters of the built-in merges: a number fixes one, a pair is the range that the search draws from."""

from __future__ import annotations

import math

from tailorlib.distributions import Float, Params
from tailorlib.exceptions import RecipeError

Range = float | tuple[float, float]
"""A fixed number, or the (low, high) of a search."""


def searched(name: str, value: Range, *, low: float = -math.inf, high: float = math.inf) -> Float:
    """Return the distribution of a hyperparameter.

    Args:
        name: What the recipe calls it, such as ``"TIES.density"``.
        value: What the recipe gives.
        low: The smallest value that the method is defined for.
        high: The largest value that the method is defined for.

    Raises:
        RecipeError: If the range is out of order, not finite, or leaves what the method is defined for.
    """
    first, last = value if isinstance(value, tuple | list) else (value, value)
    if not (math.isfinite(first) and math.isfinite(last) and low <= first <= last <= high):
        bounds = "" if math.isinf(low) and math.isinf(high) else f" within [{low:g}, {high:g}]"
        raise RecipeError(
            f"{name} is a number or a range low <= high{bounds}, got {value}. Mend it in the recipe."
        )
    return Float(float(first), float(last))


def number(params: Params, name: str) -> float:
    """Return one hyperparameter as a float."""
    value = params[name]
    assert isinstance(value, int | float)
    return float(value)
