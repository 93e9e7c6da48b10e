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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tailorlib.models.checkpoint import DTYPES, INDEX, SINGLE

_SYNC_AFTER = 128 * 2**20
"""Bytes of a file after which they are flushed to the disk, beside the merging."""
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

    Each tensor is written while the next one is made: at most two of them are held at a time.

    Args:
        directory: An existing folder.
        specs: All tensors, in the order in which they are divided into shards.
        tensors: The same tensors by name, in any order.
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
        writer = stack.enter_context(ThreadPoolExecutor(1, "tailorlib-writer"))
        behind: Future[None] | None = None
        for name, tensor in tensors:
            if name not in home:
                raise ValueError(f"The tensor {name!r} is not announced, or was written before.")
            if behind is not None:
                behind.result()
            behind = writer.submit(home.pop(name).put, name, tensor)
        if behind is not None:
            behind.result()
        if home:
            raise ValueError(f"Tensors were announced and not given: {', '.join(sorted(home)[:3])}.")
    if width > 1:
        where = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
        metadata = {
            "total_parameters": sum(prod(spec.shape) for spec in specs),
            "total_size": sum(spec.nbytes for spec in specs),
        }
        index = json.dumps({"metadata": metadata, "weight_map": where}, indent=2, sort_keys=True)
        (directory / INDEX).write_text(index + "\n", encoding="utf-8")
    return tuple(directory / name for name in names)


class _ShardFile:
    """One file: made with the first tensor, header and room for all of them, and closed with the last."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        self._path = path
        # wide types first: every tensor then begins at a multiple of its own width, as memory maps need
        self._specs = {spec.name: spec for spec in sorted(specs, key=lambda s: -s.dtype.itemsize)}
        self._places: dict[str, int] = {}
        self._file: BinaryIO | None = None
        self._unsynced = 0

    def put(self, name: str, tensor: Tensor) -> None:
        spec = self._specs[name]
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise ValueError(
                f"The tensor {name!r} was announced as {spec.dtype} {list(spec.shape)}; it is {tensor.dtype} "
                f"{list(tensor.shape)}."
            )
        file = self._file = self._file or self._create()
        file.seek(self._places.pop(name))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)
        self._unsynced += spec.nbytes
        if not self._places:
            self.close()
        elif self._unsynced >= _SYNC_AFTER:  # else the disk would idle, and be waited for at the end
            _sync(file)
            self._unsynced = 0

    def close(self) -> None:
        if self._file is not None and not self._file.closed:
            try:
                _sync(self._file)
            finally:
                self._file.close()

    def _create(self) -> BinaryIO:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for spec in self._specs.values():
            self._places[spec.name] = end
            place = [end, end + spec.nbytes]
            header[spec.name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": place,
            }
            end += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file = self._path.open("wb")
        file.write(struct.pack("<Q", len(text)) + text)
        self._places = {name: file.tell() + place for name, place in self._places.items()}
        file.truncate(file.tell() + end)
        return file


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
