"""What the parser of recipes and options says of a fault, in a user's words: where, the rule, what was given."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

import yaml

from tailorlib.exceptions import did_you_mean
from tailorlib.models.family import TRUST_RULE
from tailorlib.plugins import class_names, find_class
from tailorlib.recipe_names import SECTION_KINDS

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "dict": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "NoneType": "null",
}
_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "Given value", "- Expected a <class 'NoneType'>")


def clean_message(message: str) -> str:
    """Make a message of jsonargparse readable, and suggest close names for what it doesn't know."""
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    for told in (_unknown_class, _untyped, _trust, _unknown_setting, _wrong_type):
        found = told(message, keys)
        if found is not None:
            return found
    return _one_line(message)


def placed(section: str, message: str) -> str:
    """Return a message that begins with its place."""
    return message if re.match(rf"{section}\b", message) else f"{section}: {message}"


def _unknown_class(message: str, keys: Sequence[str]) -> str | None:
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    if unknown is None:
        return None
    name, kind = unknown[1], SECTION_KINDS.get(keys[-1].rpartition(".")[2]) if keys else None
    known = class_names([] if kind is None else [kind])
    place = f"{'.'.join(keys)}: " if keys else ""
    if kind is not None and name in class_names():
        return f"{place}{name!r} is no {kind.__name__}. Known: {', '.join(sorted(known))}."
    return f"{place}There is no class {name!r}.{did_you_mean(name, known)}"


def _untyped(message: str, keys: Sequence[str]) -> str | None:
    found = re.search(r"Parameter '(\w+)' from '(?:[\w.]+\.)?(\w+)\.__init__' does not specify a type", message)
    if found is None:
        return None
    place = f"{'.'.join(keys)}: " if keys else ""
    return (
        f"{place}A plugin's __init__ gives each of its settings a type; {found[1]!r} of {found[2]}.__init__ has "
        f"none. Write {found[1]}: float there, or whatever it is."
    )


def _trust(message: str, keys: Sequence[str]) -> str | None:
    return TRUST_RULE if any(key.split(".")[-1] == "trust_remote_code" for key in keys) else None


def _unknown_setting(message: str, keys: Sequence[str]) -> str | None:
    setting = re.search(r"class_path '([\w.]+)':\s*Option '([^']+)' is not accepted", message)
    if setting is None:
        return None
    cls = find_class(setting[1])
    hint = did_you_mean(setting[2], inspect.signature(cls).parameters)
    return f"{cls.__name__} has no setting {setting[2]!r}.{hint}"


def _wrong_type(message: str, keys: Sequence[str]) -> str | None:
    text = _one_line(message)
    types = re.findall(r"Expected a <class '([\w.]+)'>", text)
    wanted = [_WORDS.get(name, name.rpartition(".")[2]) for name in types]
    wanted += [f"a {name}" for name in re.findall(r"Not a valid subclass of (\w+)", text)]
    given = re.search(r"Got(?: value:)? ['\"]?(.+?)['\"]?\.?(?: Subclass types expect .*)?$", text)
    if not (keys and wanted and given) or _is_one_of(given[1], types):  # the fault lies inside the value
        return None
    value = given[1] if _is_plain(given[1]) else repr(given[1])
    return f"{'.'.join(keys)} is {' or '.join(dict.fromkeys(wanted))}, got {value}."


def _is_one_of(text: str, types: Sequence[str]) -> bool:
    """Say whether a value as a message has it is a list or mapping, and such a one is wanted."""
    try:
        return type(yaml.safe_load(text)).__name__ in {"list", "dict"} & set(types)
    except yaml.YAMLError:
        return False


def _is_plain(text: str) -> bool:
    """Say whether a value as a message has it is something else than a text."""
    try:
        return not isinstance(yaml.safe_load(text), str)
    except yaml.YAMLError:
        return False


def _one_line(message: str) -> str:
    """Return a message without the lines that tell a user nothing."""
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not line.startswith(_NOISE)]
    given = re.search(r"Given value: (.{1,80})$", message, flags=re.MULTILINE)
    if given and "Got value" not in message:
        kept.append(f"Got {given[1]!r}.")
    return " ".join(kept)
