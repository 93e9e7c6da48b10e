"""Bounded data: YAML and plain data from files, refused before anchors make them endless or huge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import yaml

from tailorlib.exceptions import RecipeError, shown

MAX_ENTRIES = 200_000
"""Most entries, with what anchors stand for written out."""
MAX_DEPTH = 16
"""Most levels."""
MAX_CHARACTERS = 10_000
"""Most characters of one entry."""


def check_size(data: object, what: str) -> None:
    """Check that plain data (mappings, lists, scalars) can be walked through in no time.

    Args:
        data: The data; it may contain itself.
        what: What it is, for messages: the subject of a sentence.

    Raises:
        RecipeError: If it has more than :data:`MAX_ENTRIES` entries or :data:`MAX_DEPTH` levels.
    """
    _walk(data, _items, what)


def load_yaml(text: str, what: str) -> Any:
    """Read YAML text of bounded size, whatever its anchors and merge keys stand for.

    Args:
        text: The text of one document.
        what: What it is, for messages: the subject of a sentence.

    Raises:
        RecipeError: If it is not YAML, names a key twice, is too large or contains itself.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _walk(node, _nodes, what)  # before the loader follows merge keys: it writes them out
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # PyYAML raises the last three kinds for tagged entries that are malformed
        raise RecipeError(f"{what} is YAML; it can't be read: {error}") from error


class _Loader(yaml.SafeLoader):
    """Stops at a depth of :data:`MAX_DEPTH`: PyYAML takes seconds to get to the end of its stack."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
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
        return data.values()
    return data if isinstance(data, list | tuple) else ()


def _nodes(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        _check_keys([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return (part for pair in node.value for part in pair)
    if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_CHARACTERS:
        raise RecipeError(f"An entry has at most {MAX_CHARACTERS:,} characters, got {len(node.value):,}.")
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _check_keys(keys: list[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise RecipeError(f"A mapping names each key once, got {shown(key)} twice.")
        seen.add(key)
