"""Bounded data: YAML and plain data from files, refused before anchors make them endless or huge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tailorlib.exceptions import RecipeError, shown
from tailorlib.files import open_regular, os_reason

MAX_ENTRIES = 200_000
"""Most entries, with what anchors stand for written out."""
MAX_DEPTH = 16
"""Most levels."""
MAX_CHARACTERS = 10_000
"""Most characters of one entry."""
MAX_TEXT = 8_000_000
"""Most characters of a text."""
MAX_FAULTS = 20
"""Most faults of keys that are told at once."""
_TEXT_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge", "value"))


def check_size(data: object, what: str) -> None:
    """Check that plain data (mappings, lists, scalars) can be walked through in no time.

    Args:
        data: The data; it may contain itself.
        what: What it is, for messages: the subject of a sentence.

    Raises:
        RecipeError: If it has more than :data:`MAX_ENTRIES` entries or :data:`MAX_DEPTH` levels.
    """
    _walk(data, _items, what)


def read_text(path: str | Path, what: str, *, most: int = MAX_TEXT) -> str:
    """Read a text file of bounded size, in UTF-8.

    Args:
        path: The file.
        what: What it is, for messages: a noun.
        most: Most bytes.

    Raises:
        RecipeError: If it can't be read, is no text, or has more bytes.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise ValueError(f"at most {most:,} bytes are read, and it has more")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"The {what} {str(path)!r} can't be read: line {line} is not in UTF-8 ({error})."
        ) from error
    except (OSError, ValueError) as error:  # a ValueError is also what a path with a NUL in it gives
        reason = os_reason(error) if isinstance(error, OSError) else error
        raise RecipeError(f"The {what} {str(path)!r} can't be read: {reason}.") from error


def load_yaml(text: str, what: str, *, any_keys: bool = False) -> Any:
    """Read YAML text of bounded size, whatever its anchors and merge keys stand for.

    Args:
        text: The text of one document.
        what: What it is, for messages: the subject of a sentence.
        any_keys: Whether keys may be numbers, dates and the like.

    Raises:
        RecipeError: If it is not YAML, has a key that is no text, names a key twice, is too large or contains
            itself.
    """
    if len(text) > MAX_TEXT:
        raise RecipeError(f"{what} has at most {MAX_TEXT:,} characters; this one has {len(text):,}.")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _walk(node, _nodes, what)  # before the loader follows merge keys: it writes them out
        found = _key_faults(node, what[:1].lower() + what[1:], any_keys)
        if faults := list(dict.fromkeys(islice(found, MAX_FAULTS))):  # an anchor repeats its faults
            raise RecipeError(faults)
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # PyYAML raises the last three kinds for tagged entries that are malformed
        raise RecipeError(f"{what} is YAML; it can't be read: {error}") from error


class _Loader(yaml.SafeLoader):
    """Stops at :data:`MAX_DEPTH` and :data:`MAX_ENTRIES`: PyYAML takes seconds to get to the end of its stack.

    A node takes about a kilobyte, so a text of commas would fill the memory before anything is counted.
    """

    _depth = 0
    _number = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._number += 1
        if self._number > 2 * MAX_ENTRIES:  # a mapping's keys are nodes, too
            raise yaml.YAMLError(f"it has more than {MAX_ENTRIES:,} entries")
        if self._depth > MAX_DEPTH + 1:
            raise yaml.YAMLError(f"it has more than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _walk(root: object, children: Callable[[Any], Iterable[object]], what: str) -> None:
    level, number = [root], 0
    for _ in range(MAX_DEPTH + 1):
        level = list(islice((c for item in level for c in children(item)), MAX_ENTRIES + 1))
        number += len(level)
        if number > MAX_ENTRIES:
            raise RecipeError(
                f"{what} has at most {MAX_ENTRIES:,} entries, its anchors written out; this one has more."
            )
        if not level:
            return
    raise RecipeError(
        f"{what} has at most {MAX_DEPTH} levels; this one has more, or an anchor that contains itself."
    )


def _items(data: object) -> Iterable[object]:
    if isinstance(data, Mapping):
        for key in data:
            _check_text(key)
        return data.values()
    _check_text(data)
    return data if isinstance(data, list | tuple) else ()


def _nodes(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return (part for pair in node.value for part in pair)
    if isinstance(node, yaml.ScalarNode):
        _check_text(node.value)
    if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_CHARACTERS:
        raise RecipeError(f"An entry has at most {MAX_CHARACTERS:,} characters, got {len(node.value):,}.")
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _check_text(text: object) -> None:
    """Refuse half a surrogate pair, which an escape can give: nothing could write it again."""
    if isinstance(text, str) and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RecipeError(f"A text is Unicode, got half a character in {shown(text)}. Remove it.") from error


def _key_faults(node: yaml.Node, what: str, any_keys: bool, place: str = "") -> Iterator[str]:
    """Yield what is wrong with the keys in a node, at any depth: no texts, and names given twice."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _key_faults(item, what, any_keys, f"{place}[{i}]")
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    where = f" in {place}," if place else ""
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or (key.tag not in _TEXT_TAGS and not any_keys):
            yield f"A key is a text, got {_key_as_read(key)},{where} line {line} of {what}.{_quoted(key)}"
            name = "?"
        elif key.value in seen:
            yield (
                f"A mapping names each key once, got {shown(key.value)} twice,{where} in the lines "
                f"{seen[key.value]} and {line} of {what}. Keep one of them."
            )
            name = key.value
        else:
            name = key.value
            seen[name] = line
        yield from _key_faults(value, what, any_keys, f"{place}.{_place(name)}" if place else _place(name))


def _key_as_read(key: yaml.Node) -> str:
    """Return a key as a message shows it, with what YAML takes it for."""
    if not isinstance(key, yaml.ScalarNode):
        return "a list" if isinstance(key, yaml.SequenceNode) else "a mapping"
    kind = key.tag.rpartition(":")[2]
    known = {
        "int": "a number",
        "float": "a number",
        "bool": "true or false",
        "null": "null",
        "timestamp": "a date",
    }
    written = shown(key.value)[1:-1] or "nothing"
    return f"{written}, which YAML reads as {known.get(kind, f'a value of the kind {shown(kind)}')}"


def _quoted(key: yaml.Node) -> str:
    if not isinstance(key, yaml.ScalarNode):
        return " Write a name."
    return f" Put it in quotes ({shown(key.value)}), or name it otherwise." if key.value else " Name it."


def _place(name: str) -> str:
    """Return a key as a part of a place."""
    return name if len(name) <= 60 and name.isprintable() else shown(name)
