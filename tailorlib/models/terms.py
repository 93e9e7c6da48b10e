"""Terms: what is added to single tensors of a tailored model, as files that a run keeps.

A term is computed from text and a teacher, which an export may not have any more. So the run's folder keeps the
terms of its candidates, and everything that builds a model reads them from there. Their names say what they were
computed from; each file names its term and carries a checksum, so that none is taken for another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tailorlib.exceptions import ModelError
from tailorlib.files import sync
from tailorlib.models.cache import build_once, cache_root, is_sealed
from tailorlib.tailoring import any_number

if TYPE_CHECKING:
    from tailorlib.models.family import ModelFamily

_LIST = "terms.json"
FOLDER = "terms"
"""Folder of a run, or beside a tailoring file, that holds terms; and that of the cache."""


def term_path(name: str) -> Path:
    """Return where a term lies in a folder of terms."""
    kind, _, file = name.partition("/")
    return Path(kind) / f"{file}.safetensors"


def save_term(file: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a term.

    Args:
        file: The file.
        name: The term's name.
        tensors: What is added, by tensor's name inside the layer, in the shape that files have.

    Raises:
        OSError: If it can't be written.
    """
    own = {suffix: tensor.contiguous() for suffix, tensor in sorted(tensors.items())}
    save_file(own, file, metadata={"term": name, "sha256": _checksum(own)})


def save_terms(name: str, terms: Mapping[int, Mapping[str, Tensor]]) -> dict[int, tuple[str, ...]]:
    """Put the terms of one candidate into the cache.

    Args:
        name: What their names begin with.
        terms: What is added, by a layer's position and a tensor's name inside the layer.

    Returns:
        The names of the tensors, by position.

    Raises:
        ModelError: If the cache can't be written.
    """

    def build(folder: Path) -> None:
        for i, tensors in terms.items():
            save_term(folder / f"{i}.safetensors", f"{name}/{i}", tensors)
        listed = {str(i): sorted(tensors) for i, tensors in terms.items()}
        (folder / _LIST).write_text(json.dumps(listed), encoding="utf-8")

    build_once(cache_root() / FOLDER / name, build)
    return stored_terms(name) or {}


def stored_terms(name: str) -> dict[int, tuple[str, ...]] | None:
    """Return what :func:`save_terms` returned, if the cache has those terms, whole."""
    folder = cache_root() / FOLDER / name
    if not is_sealed(folder):
        return None
    listed = json.loads((folder / _LIST).read_text(encoding="utf-8"))
    return {int(i): tuple(suffixes) for i, suffixes in listed.items()}


class TermFiles:
    """Finds terms in a folder, and puts there what it lacks and others have.

    Args:
        folder: The folder that keeps them; it is made when the first term comes. ``None`` to keep nothing.
        cached: Whether the cache may give what the folder lacks.
        others: Folders that may give it before the cache does.
    """

    def __init__(self, folder: Path | None, *, cached: bool = False, others: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.sources = [*others, *([cache_root() / FOLDER] if cached else [])]
        self._sound: set[str] = set()

    def __call__(self, name: str, suffix: str) -> Tensor:
        """Return what a term adds to a tensor, on the CPU.

        Args:
            name: The term's name.
            suffix: The tensor's name inside its layer.

        Raises:
            ModelError: If there is no such term, or its file is damaged.
        """
        with self._opened(name) as opened:
            found = suffix if suffix in opened.keys() else any_number(suffix)  # noqa: SIM118 (no mapping)
            tensor: Tensor = opened.get_tensor(found)
            return tensor

    def check(self, name: str) -> None:
        """Find out whether a term is there, whole.

        Raises:
            ModelError: If not.
        """
        with self._opened(name):
            pass

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        file = self.keep(name)
        try:
            with safe_open(file, "pt") as opened:
                if name not in self._sound:
                    _check(opened, name)
                    self._sound.add(name)
                yield opened
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(
                f"The term {name!r} can't be read from {str(file)!r}: {error}. Remove the file, and resume the "
                "search; or fetch the run again."
            ) from error

    def keep(self, name: str) -> Path:
        """Return the file of a term, and put it into the folder first if only others have it.

        Raises:
            ModelError: If there is none, or it can't be put there.
        """
        own = None if self.folder is None else self.folder / term_path(name)
        if own is not None and own.is_file():
            return own
        stored = next((f for f in (source / term_path(name) for source in self.sources) if f.is_file()), None)
        if stored is None:
            place = self.folder or (self.sources[0] if self.sources else Path())
            raise ModelError(
                f"The tailoring adds the term {name!r}, which is not in {str(place)!r}. Name the run that made "
                "it, or keep the folder 'terms' beside the tailoring file."
            )
        if own is None:
            return stored
        _link(stored, own)
        return own


def keep_terms(family: ModelFamily, run: Path, *, cached: bool = False) -> None:
    """Let a family take terms from a run's folder.

    Args:
        family: A prepared family.
        run: The run's folder, or that of a tailoring file.
        cached: Whether the cache may give what the folder lacks.
    """
    family.assembly.terms = TermFiles(run / FOLDER, cached=cached)


def _link(stored: Path, file: Path) -> None:
    """Let a file of the cache stand in a run's folder, too: without a copy where the file system can."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another rank was there
            try:
                os.link(stored, file)
            except FileExistsError:
                raise
            except OSError:  # another file system, or one without links
                temporary = file.with_name(f".{file.name}.{os.getpid()}")
                shutil.copyfile(stored, temporary)
                temporary.replace(file)
        sync(file.parent)
    except OSError as error:
        raise ModelError(f"The term {file.name!r} can't be kept in {str(file.parent)!r}: {error}.") from error


def _check(opened: Any, name: str) -> None:
    metadata = opened.metadata() or {}
    tensors = {key: opened.get_tensor(key) for key in sorted(opened.keys())}
    if metadata.get("term") != name:
        raise ValueError(f"it holds the term {metadata.get('term')!r}")
    if metadata.get("sha256") != _checksum(tensors):
        raise ValueError("its checksum is another one than it says")


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for suffix, tensor in tensors.items():
        digest.update(f"{suffix} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
