"""What a GGUF file says of itself: name, licence and origins, read from its header without anything else.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): ``GGUF``, version, number of tensors and of
entries; then the entries, each a name, a type and a value. Little-endian; strings have their length in front.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

FILE = "gguf.json"
"""Where a converted file's statements are kept, beside its weights."""
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the plain types."""
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES, _MOST_ITEMS, _LONGEST_NAME, _LONGEST = 10_000, 2_000_000, 1000, 2**24
_PREFIX, _SHOWN = "general.", 1000
_HUB = re.compile(r"https?://(?:www\.)?huggingface\.co/([\w-][\w.-]*/[\w.-]+?)(?:\.git)?/?", re.ASCII)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)


def statements(file: Path) -> dict[str, str]:
    """Return the texts of a GGUF file's ``general.`` entries, by name; those before a place that is no GGUF."""
    found: dict[str, str] = {}
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                return found
            _, _, number = struct.unpack("<IQQ", stream.read(20))
            for _ in range(min(number, _MOST_ENTRIES)):
                name = _read(stream, _LONGEST_NAME).decode("utf-8", "replace")
                (kind,) = struct.unpack("<I", stream.read(4))
                if kind == _STRING:
                    text = _read(stream, _LONGEST).decode("utf-8", "replace")
                    if name.startswith(_PREFIX):
                        found[name] = text[:_SHOWN]
                else:
                    _skip(stream, kind)
    except (OSError, ValueError, struct.error):
        pass  # the conversion says what is wrong with the file
    return found


def write_statements(file: Path, folder: Path) -> None:
    """Write a GGUF file's statements into the folder that it is converted to."""
    (folder / FILE).write_text(json.dumps(statements(file), indent=2) + "\n", encoding="utf-8")


def stated(folder: Path) -> Mapping[str, str]:
    """Return the statements of the GGUF file that a folder was converted from; none of another folder."""
    try:
        data: Any = json.loads((folder / FILE).read_bytes()[:_LONGEST])
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in data.items() if isinstance(v, str)} if isinstance(data, dict) else {}


def hub_ids(folder: Path) -> tuple[str, ...]:
    """Return where on the hub the GGUF file's model, or what it was made from, lies; as far as it says so."""
    found: dict[str, None] = {}
    for name, text in stated(folder).items():
        if re.fullmatch(r"general\.(source\.|base_model\.\d+\.)?(repo_url|url)", name):
            match = _HUB.fullmatch(text)
            found |= {match[1]: None} if match else {}
        elif name == "general.source.huggingface.repository" and _HUB_ID.fullmatch(text):
            found[text] = None
    return tuple(found)


def _read(stream: BinaryIO, most: int) -> bytes:
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > most:
        raise ValueError("a text that is too long")
    return stream.read(length)


def _skip(stream: BinaryIO, kind: int) -> None:
    if kind != _ARRAY:
        stream.seek(_SIZES[kind] if kind in _SIZES else _unknown(kind), 1)
        return
    inner, number = struct.unpack("<IQ", stream.read(12))
    if number > _MOST_ITEMS:
        raise ValueError("an array that is too long")
    if inner in _SIZES:
        stream.seek(number * _SIZES[inner], 1)
    elif inner == _STRING:
        for _ in range(number):
            _read(stream, _LONGEST)
    else:
        _unknown(inner)


def _unknown(kind: int) -> int:
    raise ValueError(f"the type {kind}")
