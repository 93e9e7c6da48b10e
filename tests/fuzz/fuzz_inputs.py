"""Inputs for readers: valid files with damage, files of hostile values, and bytes of any kind."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 5e-324, 0.5),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "\0", "a\0b", "\ud800", "\u202e", "x" * 300, "1e-3"),
    *("../../x", "/etc/passwd", "C:\\x", "~", ".", "..", "base:0", "base:999999999", "a:-1", "\n- x", "{{x}}"),
    *("os.system", "subprocess.Popen", "builtins.eval", "tailorlib.recipe.Path", "class_path: os.system"),
    *(
        [],
        {},
        [[]],
        [{}],
        {"": ""},
        {"class_path": "os.system", "init_args": {"command": "true"}},
        [None],
        [[[[]]]],
    ),
)
"""Values that a careless reader trips over."""

_TEXTS = (
    *(
        "&a ",
        "*a",
        "<<: *a\n",
        "&a [*a]",
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
    ),
    *("!!binary x", "!!timestamp 9999-99-99", "!!int ''", "!!float x", "!!set {a}", "!!omap [a]", "!!null x"),
    *("!x ", "? ", ": ", "- ", "---\n", "...\n", "%YAML 9.9\n", "%TAG ! x\n", "|9\n", ">-\n", "\t", "{", "}"),
    *("[", "]", ",", '"', "'", "#", "`", "@", "\0", "\x7f", "\ufeff", "\u2028", "\\ud800", "\\x00", "1:1:1:1"),
    *("0x" + "f" * 40, "0b1", "9" * 5000, "1e999", "NaN", "Infinity", "-", ".nan", "~", "null", "[" * 40),
    *(
        '{"a":' * 40,
        "<<: [{a: 1}, {b: 2}]\n",
        "=: 1\n",
        "1: a\n1.0: b\n",
        "a: 1\na: 2\n",
        "2001-01-01",
        "y: on\n",
    ),
)
SNIPPETS: tuple[bytes, ...] = (
    *(text.encode() for text in _TEXTS),
    *(
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xff\xfe",
        b"\0" * 8,
        struct.pack("<Q", 2**60),
        struct.pack("<Q", 2**63),
    ),
)
"""Pieces of files that a careless reader trips over."""

BOMB = "\n".join(
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)),
    ]
)
"""A billion laughs: nine to the power of ten entries, in half a kilobyte."""
MERGE_BOMB = "\n".join(["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))])
"""The same by merge keys."""

Dump = Callable[[Any], bytes]
Repair = Callable[[bytes], bytes]


def as_json(data: Any) -> bytes:
    """Write JSON, with what Python's reader takes beyond it."""
    try:
        return json.dumps(data).encode()
    except ValueError:  # more digits than Python writes
        return b"9" * 5000


def as_yaml(data: Any) -> bytes:
    """Write YAML; halves of surrogate pairs as escapes."""
    try:
        return yaml.safe_dump(data, sort_keys=False).encode("utf-8", "backslashreplace")
    except (ValueError, yaml.YAMLError):
        return as_json(data)


def as_safetensors(data: Any) -> bytes:
    """Write a header with its length, and 24 bytes of data."""
    text = as_json(data)
    return struct.pack("<Q", len(text)) + text + b"\1" * 24


def inputs(documents: Sequence[Any], dump: Dump, more: Sequence[bytes] = ()) -> st.SearchStrategy[bytes]:
    """Return a strategy of files.

    Args:
        documents: Valid files as plain data.
        dump: Writes data as a file.
        more: Other files to damage.
    """
    texts = [*map(dump, documents)] * 100 + [*more]  # the others are large and slow
    keys = sorted({key for document in documents for key in _keys(document)})
    places = [(document, path) for document in documents for path in _paths(document)]
    damaged = st.builds(_damaged, st.sampled_from(texts), _few(_edits, 3))
    changes = _few(st.tuples(st.sampled_from(places), _values(keys), st.integers(0, 3)), 2)
    changed = st.builds(lambda found: dump(_changed(found)), changes)
    grown = _values(keys).map(dump)
    return st.one_of(changed, damaged, changed, damaged, grown, st.binary(max_size=64))


def _few(items: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[list[Any]]:
    """Return lists that mostly have one entry: most of two changes go no further than the first."""
    return st.lists(items, min_size=1, max_size=1) | st.lists(items, min_size=1, max_size=most)


_edits = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "repeat", "cut", "flip"]),
    st.integers(0, 2**16),
    st.integers(0, 64),
    st.sampled_from(SNIPPETS),
)


def variants(text: bytes, number: int, valid: Sequence[bytes], repair: Repair) -> Iterator[bytes]:
    """Yield a text and others with one damage, the same for the same text: cheaper than inputs of hypothesis.

    Args:
        text: The text.
        number: How many.
        valid: Valid files; half of the others are made of them.
        repair: Mends what no reader gets past, such as a wrong length; done to three of four.
    """
    yield text
    rng = random.Random(text)
    for i in range(number - 1):
        kind = rng.choice(("insert", "replace", "delete", "repeat", "cut", "flip", "flip"))
        edit = (kind, rng.randrange(2**16), rng.randrange(24), rng.choice(SNIPPETS))
        made = _damaged(rng.choice(valid) if i % 2 else text, [edit])
        yield repair(made) if rng.random() < 0.75 else made


def with_length(content: bytes) -> bytes:
    """Return a safetensors file whose header has the length that it says."""
    text = content[8:-24]
    return struct.pack("<Q", len(text)) + text + content[-24:]


def _damaged(text: bytes, edits: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    for kind, where, length, snippet in edits:
        at = where % (len(text) + 1)
        before, part, after = text[:at], text[at : at + length], text[at + length :]
        if kind == "insert":
            text = before + snippet + part + after
        elif kind == "replace":
            text = before + snippet + after
        elif kind == "delete":
            text = before + after
        elif kind == "repeat":
            text = before + part * 3 + after
        elif kind == "cut":
            text = before
        else:
            text = before + bytes([(part or b"\0")[0] ^ (1 << length % 8)]) + part[1:] + after
    return text


def _values(keys: Sequence[str]) -> st.SearchStrategy[Any]:
    leaf = st.one_of(st.sampled_from(HOSTILE), st.sampled_from(keys), st.integers(-4, 40), st.text(max_size=6))
    key = st.sampled_from(keys) | st.text(max_size=4)
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(key, inner, max_size=4), max_leaves=6
    )


def _changed(changes: Sequence[tuple[tuple[Any, tuple[Any, ...]], Any, int]]) -> Any:
    """Return one of the documents with values put, removed, doubled or renamed at some places."""
    document = copy.deepcopy(changes[0][0][0])
    for (_, path), value, kind in changes:
        if not path:
            return value
        try:
            holder = document
            for step in path[:-1]:
                holder = holder[step]
            if kind == 0 and isinstance(holder, dict):
                del holder[path[-1]]
            elif kind == 1 and isinstance(holder, list):
                holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
            elif kind == 1 and isinstance(value, str):
                holder[value] = holder.pop(path[-1])
            else:
                holder[path[-1]] = value
        except (KeyError, IndexError, TypeError):  # a place of another document, or one that is gone
            continue
    return document


def _paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _keys(data: Any) -> Iterator[str]:
    for key, item in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        if isinstance(key, str):
            yield key
        yield from _keys(item)
