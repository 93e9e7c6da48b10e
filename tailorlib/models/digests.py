"""What models are: digests of their files, each read once as long as the file stays what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tailorlib.contents import digest_of
from tailorlib.exceptions import ModelError
from tailorlib.models import adapter
from tailorlib.models.cache import file_digest
from tailorlib.models.checkpoint import INDEX, SINGLE
from tailorlib.models.own_code import code_files
from tailorlib.models.source import ModelSource

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
"""What a tokenizer is read from; beside it lie templates."""
TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja", "chat_template.json")


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
