"""Reading mergekit's configurations: their parameters, with filters and gradients, as mergekit reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tailorlib.distributions import Scalar
from tailorlib.exceptions import shown

Kind = Callable[[Any], Scalar]


class Faults:
    """What is wrong with a configuration: one sentence per place, each once."""

    def __init__(self) -> None:
        self.found: dict[str, None] = {}

    def add(self, path: str, message: str) -> None:
        """Note what is wrong at a place."""
        self.found[f"{path}: {message}"] = None


def decimal(value: Any) -> float:
    """Return what mergekit reads as a number; ``ValueError`` if it is none."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def whole(value: Any) -> int:
    """Return what mergekit reads as a whole number; ``ValueError`` if it is none."""
    number = decimal(value)
    if not number.is_integer() or abs(number) > 2**53:
        raise ValueError("a whole number")
    return int(number)


def truth(value: Any) -> bool:
    """Return what mergekit reads as true or false; ``ValueError`` if it is neither."""
    words = {"true": True, "t": True, "yes": True, "y": True, "on": True, "1": True}
    words |= {"false": False, "f": False, "no": False, "n": False, "off": False, "0": False}
    known = words.get(value.lower()) if isinstance(value, str) else None
    if known is None and isinstance(value, bool | int | float) and value in (0, 1):
        known = bool(value)
    if known is None:
        raise ValueError("true or false")
    return known


@dataclass(frozen=True)
class Found:
    """A parameter's value, and where the configuration gives it."""

    value: Scalar
    path: str


@dataclass(frozen=True)
class Scope:
    """One ``parameters`` section.

    Args:
        path: Where it stands.
        values: Its parameters.
    """

    path: str
    values: Mapping[str, Any]

    def find(self, name: str, tensor: str, t: float, kind: Kind) -> Found | None:
        """Return a parameter's value for a tensor, or ``None`` if the section gives none.

        Args:
            name: The parameter.
            tensor: The tensor's full name.
            t: How far up its slice the layer is, from 0 to 1.
            kind: Reads the value.

        Raises:
            InvalidSettingError: If the value is of another kind.
        """
        if name not in self.values:
            return None
        return _evaluate(self.values[name], tensor, t, kind, f"{self.path}.{name}")


class InvalidSettingError(Exception):
    """A parameter's value that can't be read: where it stands, and what is wrong."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def first_found(
    scopes: Iterable[Scope | None], name: str, tensor: str, t: float, kind: Kind, default: Scalar | None, path: str
) -> Found:
    """Return the value of the first section that gives one, else the default.

    Args:
        scopes: The sections, the most particular first.
        name: The parameter.
        tensor: The tensor's full name.
        t: How far up its slice the layer is.
        kind: Reads the value.
        default: mergekit's default; ``None`` if there is none.
        path: Where the parameter is missed.

    Raises:
        InvalidSettingError: If a value can't be read, or a needed one is missing.
    """
    for scope in scopes:
        found = None if scope is None else scope.find(name, tensor, t, kind)
        if found is not None:
            return found
    if default is None:
        raise InvalidSettingError(path, f"lacks the parameter {name!r}, or one without a filter. Give it.")
    return Found(default, path)


def check_setting(data: Any, path: str, faults: Faults) -> None:
    """Collect what is wrong with the form of a setting: a value, a gradient, or either by filter."""
    if _is_scalar(data) or (isinstance(data, list) and all(map(_is_scalar, data))):
        return
    rules = [data] if isinstance(data, Mapping) else data
    if not isinstance(rules, list):
        faults.add(path, f"is a value, a list of values, or values by filter, got {shown(data)}.")
        return
    for i, rule in enumerate(rules):
        where = path if isinstance(data, Mapping) else f"{path}[{i}]"
        if not isinstance(rule, Mapping) or "value" not in rule:
            faults.add(where, f"is a mapping with a value and perhaps a filter, got {shown(rule)}.")
            continue
        value, text = rule["value"], rule.get("filter")
        if not _is_scalar(value) and not (isinstance(value, list) and all(map(_is_scalar, value))):
            faults.add(f"{where}.value", f"is a value or a list of values, got {shown(value)}.")
        if text is not None and not isinstance(text, str):
            faults.add(f"{where}.filter", f"is a part of a tensor's name, got {shown(text)}.")


def filters_in(data: Any) -> list[str]:
    """Return the filters of a setting, in order."""
    rules = [data] if isinstance(data, Mapping) else data if isinstance(data, list) else []
    texts = (rule.get("filter") for rule in rules if isinstance(rule, Mapping))
    return [text for text in texts if isinstance(text, str) and text not in ("", "*")]


def _evaluate(data: Any, tensor: str, t: float, kind: Kind, path: str) -> Found | None:
    if _is_scalar(data):
        return Found(_read(data, kind, path), path)
    if isinstance(data, Mapping):
        data = [data]
    if not data:
        return None
    if all(map(_is_scalar, data)):
        return Found(_gradient([_read(value, kind, path) for value in data], t, kind, path), path)
    for i, rule in enumerate(data):
        text = rule.get("filter")
        if text is None or text == "*" or text in tensor:
            return _evaluate(rule["value"], tensor, t, kind, f"{path}[{i}].value")
    return None


def _gradient(values: list[Scalar], t: float, kind: Kind, path: str) -> Scalar:
    """Return the value at t of numbers that are interpolated, or of others that are chosen."""
    position = t * (len(values) - 1)
    low = int(position)
    below, above = values[low], values[min(len(values) - 1, low + 1)]
    if isinstance(below, bool | str) or isinstance(above, bool | str):
        return below
    share = position - low
    return _read((1 - share) * below + share * above, kind, path)


def _read(data: Any, kind: Kind, path: str) -> Scalar:
    try:
        return kind(data)
    except ValueError as error:
        raise InvalidSettingError(path, f"is {error}, got {shown(data)}.") from error


def _is_scalar(data: Any) -> bool:
    return isinstance(data, bool | int | float | str)
