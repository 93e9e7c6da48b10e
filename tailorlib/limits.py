"""Ranges of numbers that a user sets: one rule, one wording, for whole numbers and others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tailorlib.exceptions import shown

SEEDS = (0, 2**32 - 1)
"""Seeds that every random generator takes."""
MEBIBYTES = (0, 2**24)
"""Memory in MiB, up to 16 TiB."""

Limits = Mapping[str, tuple[float, float]]


def limit_faults(section: str, values: Mapping[str, object], limits: Limits) -> Iterator[str]:
    """Yield a sentence for each number that is none, is not finite, or is out of its range.

    Args:
        section: Where the settings are, for messages.
        values: The settings, by name; those without a limit are passed over.
        limits: The least and the largest value of each setting. If the least is a float, any number will do, and
            it has to be larger than that; otherwise the numbers are whole ones, and the least is one of them.
    """
    for name, (low, high) in limits.items():
        if name not in values:
            continue
        value, whole = values[name], isinstance(low, int)
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        inside = number and math.isfinite(value) if isinstance(value, float) else number  # NaN is in no range
        if inside and (low <= value if whole else low < value) and value <= high:  # type: ignore[operator]
            continue
        rule = f"is a whole number from {low:,} to {high:,}" if whole else f"is more than {low:g}, up to {high:,}"
        yield f"{section}.{name} {rule}, got {value if isinstance(value, float) else shown(value)}."
