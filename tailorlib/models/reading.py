"""Private reads: tensors in memory of their own, for what reads a model once and must stay small.

A mapped file is the fastest way to weights that are used again and again, but its pages stay resident as long as
the mapping does: whoever reads a whole family through mappings ends up holding it. An export reads plainly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError

_AHEAD = 64 * 2**20
"""Bytes behind a tensor that the system is told to fetch while the tensor is worked on."""


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of one tensor.

    Args:
        shape: Its shape.
        dtype: Its data type.
        file: The file that holds it.
        start: Its first byte in the file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Stamp:
    """The state of a file: another stamp is another content.

    Args:
        size: Its bytes.
        modified: When it was last written, in nanoseconds.
        number: Its number in the file system.
    """

    size: int
    modified: int
    number: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """Return the stamp of a file, given what the system says of it."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


@dataclass
class PrivateReader:
    """Reads tensors from files that it keeps open, and checks that the files stay what they were."""

    _files: dict[Path, FileIO] = field(default_factory=dict)
    _closing: ExitStack = field(default_factory=ExitStack)

    def read(self, name: str, info: TensorInfo, stamp: Stamp) -> Tensor:
        """Return a tensor in memory of its own.

        Args:
            name: Its name, for error messages.
            info: Where it lies.
            stamp: The file's stamp when ``info`` was read.

        Raises:
            ModelError: If the file is gone, can't be read, or isn't what it was.
        """
        buffer = torch.empty(info.nbytes, dtype=torch.uint8)
        try:
            file = self._open(info.file)
            self._fill(file, buffer.numpy().data, info.start)
            changed = Stamp.of(os.fstat(file.fileno())) != stamp
        except OSError as error:
            raise ModelError(
                f"The tensor {name!r} of {str(info.file)!r} can't be read: {error.strerror or error}."
            ) from error
        if changed:
            raise ModelError(
                f"The file {str(info.file)!r} changed while it was in use; its tensor {name!r} may be another one "
                "now. Let what writes it finish, then start again."
            )
        return buffer.view(info.dtype).view(info.shape)

    def close(self) -> None:
        """Close all files."""
        self._files.clear()
        self._closing.close()

    def _open(self, path: Path) -> FileIO:
        if path not in self._files:
            self._files[path] = self._closing.enter_context(FileIO(path, "rb"))
        return self._files[path]

    @staticmethod
    def _fill(file: FileIO, memory: memoryview, start: int) -> None:
        file.seek(start)
        done = 0
        while done < len(memory):  # one call reads 2 GB at most
            count = file.readinto(memory[done:])
            if not count:
                return  # cut short: the stamp tells
            done += count
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), start + done, _AHEAD, os.POSIX_FADV_WILLNEED)


_reader: ContextVar[PrivateReader | None] = ContextVar("_reader", default=None)


def private_reader() -> PrivateReader | None:
    """Return the reader of the surrounding :func:`private_reads`, or ``None``."""
    return _reader.get()


@contextmanager
def private_reads() -> Iterator[None]:
    """Within it, this thread's checkpoints read tensors into memory of their own instead of mapping files."""
    reader = PrivateReader()
    token = _reader.set(reader)
    try:
        yield
    finally:
        _reader.reset(token)
        reader.close()
