"""Headers of safetensors files and their index, read as strictly as the format is written.

The format (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header with the data
type, shape and place of every tensor, then the bytes of the tensors, one after another without a gap. A header
that breaks a rule is refused, even where a lenient reader would find tensors: two in one place are a damaged file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

from tailorlib.exceptions import shown

MAX_HEADER = 100_000_000
"""Most bytes of a header, as the format says."""
_MAX_FILE_NAME, _MAX_RANK = 255, 64


def parse_header(
    text: bytes, data_bytes: int, widths: Mapping[str, int]
) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Return the data type, shape and first byte of each tensor, given a file's header.

    Args:
        text: The header.
        data_bytes: Bytes of the file behind the header.
        widths: Bytes of an element, by name of its data type.

    Raises:
        ValueError: If it breaks a rule of the format, has a data type without a width, or the file has more or
            fewer bytes than it says.
    """
    if not text.startswith(b"{"):
        raise ValueError(f"its header begins with {shown(text[:8])} instead of '{{'")
    header = strict_json(text)
    "".join(header).encode()  # half a surrogate pair is no name, and nothing could print it
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"its __metadata__ maps names to texts, and is {shown(metadata)}")
    tensors, places = {}, []
    for name, entry in header.items():
        dtype, shape, (begin, end) = _fields(name, entry)
        if dtype not in widths:
            raise ValueError(
                f"tensor {shown(name)} has the data type {shown(dtype)}, which is one of quantised weights "
                "or unknown, and which tailorlib can't merge"
            )
        if len(shape) > _MAX_RANK or (0 in shape and prod(d or 1 for d in shape) >= 2**63):
            raise ValueError(f"tensor {shown(name)} has the shape {shown(shape)}, which PyTorch can't hold")
        needed = prod(shape) * widths[dtype]
        if needed != end - begin:
            raise ValueError(
                f"tensor {shown(name)} takes {shown(needed)} bytes as {dtype} {shown(shape)}, and its place, "
                f"{shown(begin)} to {shown(end)}, has {shown(end - begin)}"
            )
        tensors[name] = (dtype, tuple(shape), begin)
        places.append((begin, end, name))
    _check_places(places, data_bytes)
    return tensors


def parse_index(text: bytes) -> dict[str, str]:
    """Return the file of each tensor, given the text of ``model.safetensors.index.json``.

    Raises:
        ValueError: If it is no index, or names a file outside its folder.
    """
    index = strict_json(text)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"its weight_map maps tensors to files, and is {shown(files)}")
    "".join(files).encode()
    for file in set(files.values()):
        windows = PureWindowsPath(file)  # splits at both kinds of slash
        if not windows.name or windows.anchor or ".." in windows.parts or PurePosixPath(file).is_absolute():
            name = next(name for name, where in files.items() if where == file)
            raise ValueError(
                f"it places {shown(name)} in {shown(file)}, and a shard lies in the index's own folder"
            )
        if "\0" in file or len(file.encode()) > _MAX_FILE_NAME:
            raise ValueError(f"{shown(file)} is no name of a file")
        if windows.suffix != ".safetensors":
            raise ValueError(
                f"it names {shown(file)}, and tailorlib reads .safetensors files alone, never pickles"
            )
    return files


def strict_json(text: bytes) -> dict[str, Any]:
    """Return a JSON object without what Python's reader lets pass: repeated names, NaN, encodings but UTF-8.

    Raises:
        ValueError: If the text is something else, or nested too deeply.
    """
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError(f"it is a JSON object, got {shown(data)}")
    return data


def _fields(name: str, entry: object) -> tuple[str, list[int], list[int]]:
    if not isinstance(entry, dict):
        raise ValueError(f"tensor {shown(name)} is described by {shown(entry)}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise ValueError(f"the dtype of tensor {shown(name)} is {shown(dtype)}")
    if not _are_sizes(shape):
        raise ValueError(f"the shape of tensor {shown(name)} is {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"the data_offsets of tensor {shown(name)} are {shown(offsets)}")
    return dtype, shape, offsets


def _are_sizes(data: object) -> TypeGuard[list[int]]:
    return (
        isinstance(data, list) and set(map(type, data)) <= {int} and min(data, default=0) >= 0
    )  # True is no size


def _check_places(places: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Check that tensors follow each other without gap or overlap, from the first byte to the last."""
    expected, before = 0, ""
    for begin, end, name in sorted(places):
        if begin < expected:
            raise ValueError(f"tensor {shown(name)} begins at byte {shown(begin)}, inside {shown(before)}")
        if begin > expected:
            raise ValueError(
                f"tensor {shown(name)} begins at byte {shown(begin)}, and there is nothing from byte {expected} on"
            )
        expected, before = end, name
    if expected != data_bytes:
        last = f" (the last tensor is {shown(before)})" if before else ""
        raise ValueError(f"its tensors take {shown(expected)} bytes{last}, and the file has {data_bytes} for them")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it names {shown(twice)} twice")
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
