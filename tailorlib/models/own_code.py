"""A model's own code: Python files beside it, whose classes the ``auto_map`` of its config or tokenizer names.

It is run only of models that the recipe lists in ``family.init_args.trust_remote_code``: by transformers, which
copies the files to its cache of modules (``HF_MODULES_CACHE``) and imports them from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import CONFIG_MAPPING, dynamic_module_utils

from tailorlib.exceptions import ModelError, shown

SETTING = "family.init_args.trust_remote_code"
_CONFIG, _TOKENIZER = "config.json", "tokenizer_config.json"
_REFERENCE = re.compile(r"^([\w-]+)\.\w+$")


def needs_own_code(folder: Path) -> bool:
    """Say whether transformers can read a model's config only with the model's own code."""
    config = _read(folder / _CONFIG)
    known = isinstance(config.get("model_type"), str) and config["model_type"] in CONFIG_MAPPING
    return not known and any(name == "AutoConfig" for name, _ in _references(folder, _CONFIG))


def has_own_tokenizer(folder: Path) -> bool:
    """Say whether a model's tokenizer is of a class of the model's own code."""
    return any(name == "AutoTokenizer" for name, _ in _references(folder, _TOKENIZER))


def is_own_code(thing: object) -> bool:
    """Say whether the class of a config or model came with the model."""
    package: str = dynamic_module_utils.TRANSFORMERS_DYNAMIC_MODULE_NAME
    return type(thing).__module__.partition(".")[0] == package


def untrusted_note(folder: Path) -> str:
    """Return what a message adds where own code was not run: the files, and what to do; nothing without files."""
    references = (reference.rpartition("--")[2] for _, reference in _references(folder, _CONFIG, _TOKENIZER))
    files = dict.fromkeys(f"{reference.rpartition('.')[0]}.py" for reference in references)
    if not files:
        return ""
    return (
        f" It comes with Python code of its own ({shown(', '.join(files))}), which is run only of models that the "
        f"recipe lists. Read that code, then list the model in {SETTING}."
    )


def code_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a model's own code: those that its configs name, and what these import from beside them.

    Raises:
        ModelError: If one is missing or can't be read.
    """
    found: set[Path] = set()
    for file in _named_files(folder):
        try:
            found |= {file, *map(Path, dynamic_module_utils.get_relative_import_files(file))}
        except (OSError, ValueError) as error:
            raise ModelError(f"What {str(file)!r} imports from beside it can't be read: {error}.") from error
    outside = [str(file) for file in found if file.parent != folder]
    if outside:
        raise ModelError(f"A model's own code lies in the model's folder {str(folder)!r}, got {shown(outside)}.")
    return tuple(sorted(found))


def place_code(folder: Path) -> None:
    """Let transformers copy a trusted model's own code to its cache of modules, one process at a time.

    transformers does so without a lock when it imports the code: processes that begin together could import half a
    file. No code of the model runs here; packages that it imports are imported.

    Raises:
        ModelError: If code lies in another repository, or the environment lacks what the code imports.
    """
    elsewhere = next((r for _, r in _references(folder, _CONFIG, _TOKENIZER) if "--" in r), None)
    if elsewhere is not None:
        raise ModelError(
            f"To trust a model is to trust the code beside it; {str(folder)!r} names code of another repository "
            f"({shown(elsewhere)}). Copy its .py files into the model's folder, and in each auto_map leave out "
            "what stands before the class's file, with '--'."
        )
    files = _named_files(folder)
    if not files:
        return
    cache = Path(dynamic_module_utils.HF_MODULES_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".tailorlib.lock"):
            for file in files:
                dynamic_module_utils.get_cached_module_file(str(folder), file.name)
    except Exception as error:  # transformers imports what the code imports, and that may raise anything
        raise ModelError(f"The model's own code in {str(folder)!r} can't be made ready: {error}") from error


def _named_files(folder: Path) -> list[Path]:
    """Return the files that the configs name, of those that are there: not every class is needed here."""
    matches = (_REFERENCE.match(reference) for _, reference in _references(folder, _CONFIG, _TOKENIZER))
    files = dict.fromkeys(folder / f"{match[1]}.py" for match in matches if match is not None)
    return [file for file in files if file.is_file()]


def _references(folder: Path, *names: str) -> Iterator[tuple[str, str]]:
    """Yield the class references of some configs, each with the name of the Auto class that it is for."""
    for name in names:
        mapped = _read(folder / name).get("auto_map")
        entries = (
            {"AutoTokenizer": mapped} if isinstance(mapped, list) else mapped
        )  # a list: as older files have it
        for auto_class, value in entries.items() if isinstance(entries, Mapping) else ():
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, str):
                    yield auto_class, reference


def _read(file: Path) -> Mapping[str, Any]:
    """Return a config's entries; none if it can't be read, which whoever needs it says."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
