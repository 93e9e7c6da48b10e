"""What models are: digests of their files, each read once as long as the file stays what it is."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from tailorlib.contents import digest_of
from tailorlib.exceptions import ModelError
from tailorlib.files import replace_file
from tailorlib.models import adapter
from tailorlib.models.cache import cache_root, sha256_of
from tailorlib.models.checkpoint import INDEX, SINGLE
from tailorlib.models.own_code import code_files
from tailorlib.models.source import ModelSource

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
"""What a tokenizer is read from; beside it lie templates."""
TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja", "chat_template.json")
_HUB_BLOB = re.compile(r"^[0-9a-f]{64}$")
_SETTLED = 2.0
"""Seconds after which a file that is written again has another time of change, on any file system."""


def model_contents(source: ModelSource) -> dict[str, str]:
    """Return digests of what a model is read from, by what it is.

    Args:
        source: Where the model lies.

    Returns:
        ``weights`` and ``config``, or those of an ``adapter``; ``tokenizer``, ``generation config`` and ``code``
        (of a model whose own code may be run) where there are any.

    Raises:
        ModelError: If a file can't be read.
    """
    folder = source.folder
    if source.is_adapter:
        parts = {"adapter": [folder / adapter.WEIGHTS, folder / adapter.CONFIG]}
    else:
        parts = {"weights": _weights(folder), "config": [folder / "config.json"]}
    parts["tokenizer"] = _matching(folder, (*TOKENIZER_FILES, *TEMPLATES))
    parts["generation config"] = _matching(folder, ("generation_config.json",))
    parts["code"] = list(code_files(folder)) if source.trust_remote_code else []
    return {what: digest_of_files(files, folder) for what, files in parts.items() if files}


def digest_of_files(files: Sequence[Path], folder: Path) -> str:
    """Return one digest of some files: of their names in a folder, and of their contents.

    Raises:
        ModelError: If one can't be read.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        digests = list(pool.map(file_digest, files))
    names = (file.relative_to(folder).as_posix() for file in files)
    return digest_of(text for pair in zip(names, digests, strict=True) for text in pair)


def file_digest(file: Path) -> str:
    """Return the SHA-256 checksum of a file, hexadecimal, without reading it again as long as it is the same.

    The cache keeps it by path, inode, size and times of change. A large file of a hub's snapshot is a link to one
    that is named by its checksum.

    Raises:
        ModelError: If it can't be read.
    """
    try:
        path = file.resolve(strict=True)
        if path.parent.name == "blobs" and file.is_symlink() and _HUB_BLOB.match(path.name):
            return path.name
        state = _state(path)
        note = cache_root() / "digests" / f"{sha256(str(path).encode()).hexdigest()[:32]}.json"
        if (known := _noted(note, state)) is not None:
            return known
        digest = sha256_of(path)
        unchanged = _state(path) == state
    except OSError as error:
        raise ModelError(f"The file {str(file)!r} can't be read: {error.strerror or error}.") from error
    if not unchanged:
        raise ModelError(f"The file {str(file)!r} changes while it is read. Let what writes it finish.")
    if time.time() - max(state[2:]) / 1e9 > _SETTLED:  # else another write could leave the same times
        with suppress(OSError):  # a cache that can't be written costs time alone
            note.parent.mkdir(parents=True, exist_ok=True)
            replace_file(note, json.dumps({"path": str(path), "state": state, "sha256": digest}).encode())
    return digest


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _noted(note: Path, state: list[int]) -> str | None:
    try:
        data = json.loads(note.read_text(encoding="utf-8"))
        return str(data["sha256"]) if data["state"] == state and _HUB_BLOB.match(data["sha256"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _weights(folder: Path) -> list[Path]:
    """Return the files that a checkpoint is read from."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"The index {str(folder / INDEX)!r} can't be read: {error}.") from error
    return [folder / INDEX, *(folder / str(shard) for shard in sorted(map(str, shards)))]


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
