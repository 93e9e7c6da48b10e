"""GGUF files, converted once to a folder that transformers and everything else here reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from tailorlib.console import say
from tailorlib.exceptions import ModelError
from tailorlib.models.cache import build_once, cache_root, is_sealed
from tailorlib.models.gguf_header import write_statements

FORMAT = 2
"""Version of the conversion; a new one makes every file be converted again."""


def converted(file: Path, digest: str) -> Path:
    """Return a bfloat16 safetensors folder of a GGUF file; made once per content and kept in the cache.

    Args:
        file: The GGUF file.
        digest: Its SHA-256 checksum: equal contents share one folder, wherever the file lies.

    Raises:
        ModelError: If transformers can't read the file.
    """
    target = cache_root() / "gguf" / f"{digest[:32]}-v{FORMAT}"
    return build_once(target, lambda folder: _build(file, folder))


def _build(file: Path, folder: Path) -> None:
    _convert(file, folder)
    write_statements(file, folder)


def outlined(file: Path, digest: str) -> tuple[Path, bool]:
    """Return a folder with what a conversion writes but the weights, and whether it has them after all.

    Args:
        file: The GGUF file.
        digest: Its SHA-256 checksum.

    Raises:
        ModelError: If transformers can't read the file's header.
    """
    target = cache_root() / "gguf" / f"{digest[:32]}-v{FORMAT}"
    if is_sealed(target):
        return target, True
    return build_once(target.with_name(f"{target.name}-outline"), lambda folder: _outline(file, folder)), False


def _outline(file: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    with _reading(file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    plain = _plain(config)
    plain.dtype = torch.bfloat16
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        with redirect_stderr(io.StringIO()):  # transformers draws bars that nothing else turns off
            yield
    except Exception as error:  # transformers and gguf raise many kinds for a file that they can't read
        raise ModelError(
            f"The GGUF file {str(file)!r} can't be converted: {type(error).__name__}: {error}. Give a "
            "transformers folder of the model instead."
        ) from error


def _plain(config: Any) -> Any:
    """Return a config without what it says of its file."""
    settings: dict[str, Any] = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        settings.pop(key, None)
    return type(config)(**settings)


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(f"Converting {escape(file.name)}, once: the result is kept in the cache")
    with _reading(file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        loaded = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    # a de-quantised model refuses save_pretrained, so it is made anew from its config
    config = _plain(loaded.config)
    with torch.device("meta"):
        plain = type(loaded)(config)
    # buffers that no checkpoint holds stay behind; only parameters and persistent buffers are saved
    plain.load_state_dict(loaded.to(torch.bfloat16).state_dict(), assign=True)
    plain.config.dtype = torch.bfloat16
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    with redirect_stderr(io.StringIO()):
        plain.save_pretrained(folder, max_shard_size="1000GB")
    tokenizer.save_pretrained(folder)
