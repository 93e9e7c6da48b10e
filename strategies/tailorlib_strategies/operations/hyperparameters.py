"""Hyperparameters of the built-in merges: a number fixes one, a pair is the range that the search draws from."""

from __future__ import annotations

import math

from tailorlib.distributions import Categorical, Float, Integer, Params
from tailorlib.exceptions import PluginError, RecipeError

Range = float | tuple[float, float]
"""A fixed number, or the (low, high) of a search."""


def searched(
    name: str, value: Range, *, low: float = -math.inf, high: float = math.inf, log: bool = False
) -> Float:
    """Return the distribution of a hyperparameter.

    Args:
        name: What the recipe calls it, such as ``"TIES.density"``.
        value: What the recipe gives.
        low: The smallest value that the method is defined for.
        high: The largest value that the method is defined for.
        log: Whether a range of positive numbers is searched on a logarithmic scale.

    Raises:
        RecipeError: If the range is out of order, not finite, or leaves what the method is defined for.
    """
    first, last = value if isinstance(value, tuple | list) else (value, value)
    if not (math.isfinite(first) and math.isfinite(last) and low <= first <= last <= high):
        bounds = "" if math.isinf(low) and math.isinf(high) else f" within [{low:g}, {high:g}]"
        raise RecipeError(
            f"{name} is a number or a range low <= high{bounds}, got {value}. Mend it in the recipe."
        )
    return Float(float(first), float(last), log=log and first > 0)


def fixed(name: str, value: bool | str, choices: tuple[bool | str, ...] = (False, True)) -> Categorical:
    """Return the distribution of a setting that the recipe fixes; a tailoring's params still name it.

    Raises:
        RecipeError: If it is none of the choices.
    """
    if value not in choices:
        raise RecipeError(f"{name} is one of {', '.join(map(str, choices))}, got {value}. Mend it in the recipe.")
    return Categorical((value,))


def count(name: str, value: int) -> Integer:
    """Return the distribution of a positive whole number that the recipe fixes.

    Raises:
        RecipeError: If it is not positive.
    """
    if value < 1:
        raise RecipeError(f"{name} is 1 or more, got {value}. Mend it in the recipe.")
    return Integer(value, value)


def number(params: Params, name: str) -> float:
    """Return one hyperparameter as a float."""
    value = params[name]
    assert isinstance(value, int | float)
    return float(value)


def per_source(params: Params, name: str, sources: int) -> list[float]:
    """Return a hyperparameter of each source: one number for all, or a tuple with one for each.

    Raises:
        PluginError: If it is neither.
    """
    value = params[name]
    values = value if isinstance(value, tuple) else (value,) * sources
    if len(values) != sources or not all(isinstance(v, int | float) for v in values):
        raise PluginError(f"{name} is a number or one number for each of the {sources} sources, got {value!r}.")
    return [float(v) for v in values]


def word(params: Params, name: str, choices: tuple[str, ...]) -> str:
    """Return a hyperparameter that is one of several words.

    Raises:
        PluginError: If it is another.
    """
    value = params[name]
    if value not in choices:
        raise PluginError(f"{name} is one of {', '.join(choices)}, got {value!r}. Mend it in the tailoring.")
    return str(value)
