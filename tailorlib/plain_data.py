"""Plain data of what plugins return: numbers of any library, text that can be written, or a message."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from tailorlib.exceptions import PluginError, error_text, shown

MAX_DEPTH = 32
"""Most levels."""
MAX_BITS = 10_000
"""Most bits of a whole number: Python writes no longer ones."""


def number(value: object, what: str) -> float:
    """Return a number as Python's own, whether it is Python's, or a scalar of numpy, torch or the like.

    Args:
        value: The number; an array without dimensions is one, too.
        what: What it is, for messages: the subject of a sentence.

    Raises:
        PluginError: If it is none.
    """
    try:
        found = _scalar(value)
        if isinstance(found, Real):
            return float(found)
    except Exception as error:  # an array on a device that is gone, a whole number that no float can hold, ...
        raise PluginError(f"{what} is a number; this one can't be read: {error_text(error)}") from error
    raise PluginError(f"{what} is a number, got {_shown(value)}. Give a float, or leave it out.")


def numbers(values: object, what: str) -> dict[str, float]:
    """Return numbers by name, as Python's own.

    Args:
        values: A mapping. Names that are no strings are taken as text.
        what: What one of them is, for messages: a noun.

    Raises:
        PluginError: If it is no mapping, one of them is no number, or two names are the same text.
    """
    if not isinstance(values, Mapping):
        raise PluginError(f"Each {what} has a name: they are a mapping, got {_shown(values)}.")
    found = {safe_text(str(name)): number(value, f"The {what} {name!r}") for name, value in values.items()}
    if len(found) < len(values):
        raise PluginError(f"Each {what} has a name of its own, got {shown(list(values))}.")
    return found


def plain(data: Any, what: str, *, _level: int = 0) -> Any:
    """Return data as JSON holds it: scalars of any library become numbers, tuples lists, and text is made whole.

    Args:
        data: Mappings with names, sequences and scalars.
        what: What it is, for messages: the subject of a sentence.

    Raises:
        PluginError: If it holds something else.
    """
    if data is None or type(data) in (bool, float):
        return data
    if isinstance(data, str):
        return safe_text(data)
    if isinstance(data, int):
        if data.bit_length() > MAX_BITS:
            raise PluginError(f"{what} has whole numbers of at most {MAX_BITS:,} bits, got {shown(data)}.")
        return int(data)
    if _level == MAX_DEPTH:
        raise PluginError(f"{what} has at most {MAX_DEPTH} levels; this one has more, or contains itself.")
    if isinstance(data, list | tuple):
        return [plain(item, what, _level=_level + 1) for item in data]
    if isinstance(data, Mapping):
        if not all(isinstance(key, str) for key in data):
            raise PluginError(f"{what} is plain data, whose mappings have names for keys, got {_shown(data)}.")
        return {safe_text(key): plain(value, what, _level=_level + 1) for key, value in data.items()}
    try:
        found = _scalar(data)
    except Exception as error:
        raise PluginError(f"{what} is plain data; this can't be read: {error_text(error)}") from error
    if found is None or isinstance(found, int | str):
        return plain(found, what, _level=_level + 1)
    if isinstance(found, Real):
        return float(found)
    raise PluginError(
        f"{what} is plain data: numbers, texts, lists, and mappings by name; got {_shown(data)}. Convert it, an "
        "array with tolist()."
    )


def safe_text(text: str, most: int = 0) -> str:
    """Return text that UTF-8 can hold: halves of characters are written as escapes.

    Args:
        text: The text.
        most: Most characters: what is in the midst of a longer text is left out. 0 for any number.
    """
    if 0 < most < len(text):
        half = most // 2
        text = f"{text[:half]} ... ({len(text) - 2 * half:,} characters left out) ... {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _scalar(value: object) -> object:
    """Return what an array without dimensions holds; anything else as it is."""
    if isinstance(value, Real) or not callable(item := getattr(value, "item", None)):
        return value
    return item() if getattr(value, "ndim", None) == 0 else value


def _shown(value: object) -> str:
    try:
        return f"{safe_text(shown(value))} ({type(value).__name__})"
    except Exception:  # a plugin's class may have a __repr__ that raises
        return f"something of the type {type(value).__name__}"
