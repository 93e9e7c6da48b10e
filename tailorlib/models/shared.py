"""Weights once per node: tensors that one process computes and all processes of the node map.

Several ranks on the CPUs of one host would each convert the stored weights to the compute data type, or add an
adapter to them, and each hold a copy. Instead the first one that needs a layer writes it to a file, and every rank
maps that file: its pages are in memory once.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import logging
import os
import shutil
import struct
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tailorlib.exceptions import ModelError
from tailorlib.models.checkpoint import DTYPES, SafetensorsCheckpoint
from tailorlib.models.reading import Stamp

_log = logging.getLogger(__name__)

_PREFIX = "tailorlib-weights-"
_FORMAT = 1
_ALIGNMENT = 64
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SharedFolder:
    """A folder of this node for weights that its processes share; it goes when the process that made it ends.

    It lies in the system's temporary folder (``$TMPDIR``), which is local to a node where a home is often on a
    network. Not in ``/dev/shm``: what lies there is memory that can't be written back, while the pages of a file
    on a disk are dropped or written when memory is short. Should the temporary folder be a ``tmpfs`` itself,
    weights still take memory once per node and not once per process.

    Making one removes those that processes left behind which were killed.

    Args:
        parent: Another folder of this node to make it in.

    Raises:
        ModelError: If it can't be made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        self.path = parent / f"{_PREFIX}{uuid.uuid4().hex}"
        self._process = os.getpid()
        # the system lets go of the lock when its process ends in whatever way; it comes before the folder does
        self._lock = _lock_of(self.path)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(parent)
            self._lock.acquire(timeout=0)
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise ModelError(
                f"A folder for the weights that this node's processes share can't be made in {str(parent)!r}: "
                f"{error.strerror or error}. Set TMPDIR to a folder that can be written to."
            ) from error
        atexit.register(self.close)

    def close(self) -> None:
        """Remove the folder; tensors that are mapped from it stay as they are. A child process removes nothing."""
        if os.getpid() == self._process:
            atexit.unregister(self.close)
            _remove(self.path, self._lock)

    def __enter__(self) -> SharedFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SharedTensors:
    """Named groups of tensors that are computed by one process of a node and mapped by all.

    A file is written under another name and moved into place when it is whole, by one process at a time. It is
    not flushed to the disk: no file is of use longer than its processes live.

    If the folder is full or gone, a warning says so once, and tensors are private to the process from then on.

    Args:
        folder: A folder of this node that all of them use, and nobody else; see :class:`SharedFolder`.
        models: A text for each model that is another one if its files are others; see :func:`folder_digest`.

    Raises:
        ModelError: If there is no such folder.
    """

    def __init__(self, folder: Path, models: Mapping[str, str]) -> None:
        if not folder.is_dir():
            raise ModelError(
                f"Weights are shared through a folder that exists, got {str(folder)!r}. Make it on each node."
            )
        self.folder, self.models = folder, dict(models)
        self.built = self.found = 0
        """How many groups this process computed and wrote, and how many it found."""
        self._failed = False

    def get(
        self, model: str, what: Sequence[str | int], build: Callable[[], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], bool]:
        """Return a group of tensors of a model, computed now if no process did so before.

        Args:
            model: The model's name.
            what: What they are; with the model it decides their values.
            build: Computes them, on the CPU.

        Returns:
            The tensors by name, not to be modified, and whether they are mapped.
        """
        if self._failed:
            return build(), False
        content = json.dumps([_FORMAT, self.models[model], *what])
        file = self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
        built: dict[str, Tensor] | None = None
        try:
            if (found := _mapped(file)) is None:
                if not self.folder.is_dir():  # a lock would make it anew, and nobody would remove it
                    raise FileNotFoundError(errno.ENOENT, "it was removed")
                with FileLock(file.with_name(f".{file.stem}.lock")):
                    if (found := _mapped(file)) is None:
                        built = build()
                        _write(file, built)
                        found = _mapped(file)
            if found is None:
                raise OSError(f"{file.name} went away")
        except OSError as error:
            self._failed = True
            _log.warning(
                "Weights can't be shared in %r (%s): each process holds its own from now on. Set TMPDIR to a "
                "folder with more room.",
                str(self.folder),
                error.strerror or error,
            )
            return built or build(), False
        self.built += built is not None
        self.found += built is None
        return found, True


def folder_digest(*folders: Path) -> str:
    """Return a digest of the names and states of all files in some folders, the same in all processes of a node.

    Raises:
        ModelError: If a file can't be looked at.
    """
    try:
        files = [(str(file), Stamp.of(file.stat())) for folder in folders for file in sorted(folder.iterdir())]
    except OSError as error:
        raise ModelError(
            f"The files of the model in {str(folders[0])!r} can't be looked at: {error.strerror}."
        ) from error
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _mapped(file: Path) -> dict[str, Tensor] | None:
    """Return a file's tensors; ``None`` if it isn't there or isn't whole."""
    if not file.is_file():
        return None
    try:
        checkpoint = SafetensorsCheckpoint.of_file(file)  # compares the header with the file's size
        return {name: checkpoint.tensor(name) for name in checkpoint.keys()}  # noqa: SIM118
    except ModelError:
        return None


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file whose tensors lie as those in memory do.

    A product of a matrix and a vector can differ in its last bit with the place of the matrix: PyTorch gives
    memory at multiples of 64 bytes. The format has no gaps, so sizes divisible by high powers of two come first.
    """
    placed = sorted(tensors.items(), key=lambda item: -min(item[1].nbytes & -item[1].nbytes, _ALIGNMENT))
    header: dict[str, object] = {}
    end = 0
    for name, tensor in placed:
        place = [end, end + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    temporary = file.with_name(f".{file.stem}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for _, tensor in placed:
                stream.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _lock_of(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f".{folder.name}.lock"), thread_local=False)


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _remove_stale(parent: Path) -> None:
    """Remove the folders of processes that are gone."""
    for folder in parent.glob(f"{_PREFIX}*"):
        lock = _lock_of(folder)
        try:
            lock.acquire(timeout=0)
        except (OSError, Timeout):  # its process is alive, or it is another user's
            continue
        _remove(folder, lock)
