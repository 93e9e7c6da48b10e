"""Checkpoints: named tensors that are read only when asked for."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tailorlib.exceptions import ModelError, did_you_mean
from tailorlib.models.header import MAX_HEADER, parse_header, parse_index
from tailorlib.models.reading import Stamp, TensorInfo, private_reader

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    # of quantised weights: they are named as that, and refused
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""The data types of the safetensors format that tailorlib reads and writes."""
_WIDTHS = {name: dtype.itemsize for name, dtype in DTYPES.items()}


PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Suffixes of files that torch.save wrote: loading one can run any code."""
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def refused_pickle(what: str) -> str:
    """Return the message that refuses a pickled checkpoint, with how to convert it."""
    return (
        f"tailorlib reads safetensors and never pickles, which can run any code; {what}. If you trust it, convert "
        "it: AutoModelForCausalLM.from_pretrained(FOLDER, dtype='auto').save_pretrained(NEW_FOLDER), and save its "
        "tokenizer there too."
    )


class Checkpoint(ABC):
    """A model's tensors by name, in the data type in which they are stored."""

    @abstractmethod
    def keys(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's stored data type without reading it."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU, not to be modified.

        Raises:
            ModelError: If there is no such tensor, or it can't be read.
        """

    def origin(self, name: str) -> tuple[Checkpoint, str]:
        """Return the checkpoint that really holds a tensor: equal origins are equal tensors."""
        return self, name

    def maps(self, name: str) -> bool:
        """Say whether :meth:`tensor` returns a view of a mapped file, and not a tensor in memory of its own."""
        return False

    def file_bytes(self) -> int:
        """Return the bytes of its files' tensors."""
        return sum(prod(self.shape(name)) * self.dtype(name).itemsize for name in self.keys())

    def where(self, name: str) -> str:
        """Return where a tensor is stored, for error messages."""
        return type(self).__name__

    def __contains__(self, name: str) -> bool:
        return name in self.keys()


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read the header of a safetensors file and check that the file holds all the bytes it promises.

    Raises:
        ModelError: If the file is missing, damaged or cut short, or has a data type that isn't understood.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if len(start) < 8:
                raise ValueError(f"it has {size} bytes, and a safetensors file begins with eight of its own")
            (length,) = struct.unpack("<Q", start)
            if length > min(size - 8, MAX_HEADER):
                if start.startswith(_PICKLE_STARTS):  # only here: a header of 640 bytes begins like that, too
                    raise ValueError("it is a pickle under another name, and tailorlib reads none")
                raise ValueError(
                    f"its header claims {length} bytes; the file has {size}, and a header at most {MAX_HEADER}"
                )
            text = stream.read(length)
        tensors = parse_header(text, size - 8 - len(text), _WIDTHS)
    except OSError as error:
        raise ModelError(f"The checkpoint file {str(file)!r} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(
            f"The checkpoint file {str(file)!r} is damaged or unsuitable: {error}. Fetch or convert it again."
        ) from error
    first = 8 + len(text)
    return {
        name: TensorInfo(shape, DTYPES[dtype], file, first + begin)
        for name, (dtype, shape, begin) in tensors.items()
    }


def shards_of(folder: Path) -> dict[str, list[str]]:
    """Return the names of the tensors in each shard that a folder's index lists.

    Raises:
        ModelError: If the index can't be read, or names a file outside the folder.
    """
    index = folder / INDEX
    by_file: dict[str, list[str]] = {}
    try:
        if index.stat().st_size > MAX_HEADER:
            raise ValueError(f"it has more than {MAX_HEADER} bytes")
        for name, file in parse_index(index.read_bytes()).items():
            by_file.setdefault(file, []).append(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"The index {str(index)!r} can't be read: {error}. Fetch it again.") from error
    return by_file


class SafetensorsCheckpoint(Checkpoint):
    """A folder's ``model.safetensors``, or the shards that ``model.safetensors.index.json`` lists.

    Files are memory-mapped: a tensor is a view of the mapping, and no weight is read before it is used.

    Args:
        folder: A folder as transformers writes it.

    Raises:
        ModelError: If there is no such checkpoint, or a file of it is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keep(self._read_folder())

    @classmethod
    def of_file(cls, file: Path) -> SafetensorsCheckpoint:
        """Return the tensors of one file of any name.

        Raises:
            ModelError: If it is missing or damaged.
        """
        checkpoint = cls.__new__(cls)
        checkpoint.folder = file.parent
        checkpoint._keep(read_header(file))
        return checkpoint

    def _keep(self, info: dict[str, TensorInfo]) -> None:
        self._info = info
        self._stamps = {file: _stamp(file) for file in {i.file for i in info.values()}}
        self._open: dict[Path, Any] = {}

    def keys(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return tuple(sorted(self._info))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self._find(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's stored data type without reading it."""
        return self._find(name).dtype

    def tensor(self, name: str) -> Tensor:
        """Return a tensor: a view of the mapped file, not to be modified; a copy within ``private_reads``."""
        info, reader = self._find(name), private_reader()
        file = info.file
        if reader is not None:
            return reader.read(name, info, self._stamps[file])
        try:
            if file not in self._open:
                self._open[file] = safe_open(str(file), framework="pt", device="cpu")
            tensor: Tensor = self._open[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"The tensor {name!r} of {str(file)!r} can't be read: {error}.") from error
        return tensor

    def maps(self, name: str) -> bool:
        """Say whether a tensor is a view of the mapped file: always, except within ``private_reads``."""
        return private_reader() is None

    def where(self, name: str) -> str:
        """Return the file that holds a tensor."""
        return str(self._find(name).file)

    def __contains__(self, name: str) -> bool:
        return name in self._info

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a mapping stays in its process

    def _find(self, name: str) -> TensorInfo:
        if name not in self._info:
            raise ModelError(f"{str(self.folder)!r} has no tensor {name!r}.{did_you_mean(name, self._info)}")
        return self._info[name]

    def _read_folder(self) -> dict[str, TensorInfo]:
        if (self.folder / SINGLE).is_file():  # where both exist, transformers reads this one too
            return read_header(self.folder / SINGLE)
        if (self.folder / INDEX).is_file():
            return self._read_shards()
        shards = sorted(p.name for p in self.folder.glob("*-of-*.safetensors"))
        if shards:
            raise ModelError(
                f"{str(self.folder)!r} has {len(shards)} shards such as {shards[0]} and no {INDEX}. Fetch it too."
            )
        pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise ModelError(refused_pickle(f"{str(self.folder)!r} has only {', '.join(pickles[:3])}"))
        raise ModelError(f"{str(self.folder)!r} has neither {SINGLE} nor {INDEX}. Give a folder with a model.")

    def _read_shards(self) -> dict[str, TensorInfo]:
        by_file = shards_of(self.folder)
        info: dict[str, TensorInfo] = {}
        for file, names in sorted(by_file.items()):
            if not (self.folder / file).is_file():
                raise ModelError(
                    f"The shard {str(self.folder / file)!r} is missing; it holds {names[0]!r} and "
                    f"{len(names) - 1} other tensors. Fetch the model again."
                )
            header = read_header(self.folder / file)
            absent = [n for n in names if n not in header]
            if absent:
                raise ModelError(
                    f"The index places the tensor {absent[0]!r} in {str(self.folder / file)!r}, which lacks "
                    "it. Fetch the model again."
                )
            info.update({n: header[n] for n in names})
        return info


def _stamp(file: Path) -> Stamp:
    try:
        return Stamp.of(file.stat())
    except OSError as error:
        raise ModelError(
            f"The checkpoint file {str(file)!r} went away while it was opened: {error.strerror}. Let what moves "
            "it finish, then start again."
        ) from error
