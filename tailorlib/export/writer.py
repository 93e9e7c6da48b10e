"""Writer: safetensors files written tensor by tensor, so that a model never has to fit into memory.

The format (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header with every
tensor's data type, shape and place, then the bytes of the tensors. Shapes are known before any tensor is made, so
the header can go first and the tensors can follow in any order.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tailorlib.models.checkpoint import DTYPES, INDEX, SINGLE

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is going to be written.

    Args:
        name: Its name in the checkpoint.
        shape: Its shape.
        dtype: Its data type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return prod(self.shape) * self.dtype.itemsize


def split_shards(specs: Sequence[TensorSpec], max_shard_bytes: float) -> list[list[TensorSpec]]:
    """Divide tensors, in order, into shards of at most ``max_shard_bytes``; a larger tensor gets its own."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def write_checkpoint(
    directory: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    max_shard_bytes: float = 5e9,
) -> tuple[Path, ...]:
    """Write ``model.safetensors``, or shards and their index, as transformers would.

    Args:
        directory: An existing folder.
        specs: All tensors, in the order in which they are divided into shards.
        tensors: The same tensors by name, in any order; each is dropped before the next one is taken.
        max_shard_bytes: Largest size of a file, unless one tensor is larger.

    Returns:
        The files with tensors; they are on the disk and not only in the system's buffers.

    Raises:
        ValueError: If the tensors are not those of ``specs``.
        OSError: If a file can't be written.
    """
    shards = split_shards(specs, max_shard_bytes)
    width = len(shards)
    names = [SINGLE] if width == 1 else [f"model-{i:05d}-of-{width:05d}.safetensors" for i in range(1, width + 1)]
    if len({spec.name for spec in specs}) != len(specs):
        raise ValueError("Two tensors of a checkpoint have one name.")
    home: dict[str, _ShardFile] = {}
    with ExitStack() as stack:
        for name, shard in zip(names, shards, strict=True):
            file = _ShardFile(directory / name, shard)
            stack.callback(file.close)
            home.update(dict.fromkeys((spec.name for spec in shard), file))
        for name, tensor in tensors:
            if name not in home:
                raise ValueError(f"The tensor {name!r} is not announced, or was written before.")
            home.pop(name).put(name, tensor)
        if home:
            raise ValueError(f"Tensors were announced and not given: {', '.join(sorted(home)[:3])}.")
    if width > 1:
        where = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
        total = sum(spec.nbytes for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return tuple(directory / name for name in names)


class _ShardFile:
    """One file, opened with its header written and room for each tensor."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        # wide types first: every tensor then begins at a multiple of its own width, as memory maps need
        ordered = sorted(specs, key=lambda s: -s.dtype.itemsize)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._specs = {s.name: s for s in ordered}
        self._places: dict[str, int] = {}
        end = 0
        for spec in ordered:
            self._places[spec.name] = end
            header[spec.name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [end, end + spec.nbytes],
            }
            end += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._file: BinaryIO = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._file.truncate(self._start + end)

    def put(self, name: str, tensor: Tensor) -> None:
        spec = self._specs[name]
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise ValueError(
                f"The tensor {name!r} was announced as {spec.dtype} {list(spec.shape)}; it is {tensor.dtype} "
                f"{list(tensor.shape)}."
            )
        self._file.seek(self._start + self._places[name])
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self._file.write(flat.view(torch.uint8).numpy().data)

    def close(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
