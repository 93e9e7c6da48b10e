"""Sources of the plugins that a user names: copied into the run folder, and loaded from there afterwards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape

from tailorlib.console import say
from tailorlib.contents import digest_of
from tailorlib.exceptions import PluginError
from tailorlib.recipe import read_recipe
from tailorlib.registry import PluginSource, load_plugin, plugin_sources

FOLDER = "plugins"
INDEX = "index.json"
_MODULES = "modules"


def plugin_copies() -> dict[str, str]:
    """Return the files that keep the named plugins in a run folder: their texts by name.

    Raises:
        PluginError: If a source is gone, or is no text.
    """
    copies: dict[str, str] = {}
    index: dict[str, str] = {}
    for source in plugin_sources():
        is_file = source.spec.endswith(".py")
        folder = f"{FOLDER}/{_MODULES}"
        if is_file:
            folder, number = FOLDER, 1
            while f"{folder}/{source.files[0].name}" in copies:  # of another folder, under the same name
                number += 1
                folder = f"{FOLDER}/{number}"
        for file in source.files:
            copies[f"{folder}/{file.relative_to(source.root).as_posix()}"] = _text(file)
        copied = f"{folder}/{source.files[0].name}" if is_file else folder
        index[source.spec] = copied.removeprefix(f"{FOLDER}/")
    return {**copies, f"{FOLDER}/{INDEX}": json.dumps(index, indent=1) + "\n"} if copies else {}


def load_plugins_of(recipe: Path, *, originals: bool = False) -> None:
    """Import the plugins that a recipe names: from the copies beside it, if it lies in a run folder that has some.

    Args:
        recipe: The recipe's file.
        originals: Import what the recipe names, where that is still there, instead of its copy.

    Raises:
        RecipeError: If the recipe can't be read.
        PluginError: If a plugin doesn't exist, or its import fails.
    """
    named = read_recipe(recipe).get("plugins") or []
    index = _index(recipe.parent / FOLDER)
    for spec in map(str, named if isinstance(named, list) else [named]):
        copy = recipe.parent / FOLDER / index[spec] if spec in index else None
        changed = copy is not None and copy.is_file() and Path(spec).is_file() and _text(Path(spec)) != _text(copy)
        if originals and (changed or copy is None):
            load_plugin(spec)
            continue
        if copy is not None and not copy.exists():
            raise PluginError(f"The plugin {spec!r} was copied to {str(copy)!r}, which is gone. Put it back.")
        load_plugin(spec, copy)
        if changed:
            say(
                f"[yellow]![/] The plugin {escape(spec)} has changed since the study began. Its copy in the run "
                "folder is used."
            )


def source_of(module: str) -> tuple[str, str] | None:
    """Return what a plugin's module is called in messages, and a digest of its source; ``None`` if it has none.

    Of a module in a package it is the whole package's.

    Raises:
        PluginError: If a source is gone, or is no text.
    """
    named = next((source for source in plugin_sources() if source.module == module), None)
    if named is None and (named := _installed(module)) is None:
        return None
    label = named.files[0].name if named.spec.endswith(".py") else named.module.partition(".")[0]
    texts = (text for file in named.files for text in (file.relative_to(named.root).as_posix(), _text(file)))
    return label, digest_of(texts)


def _installed(module: str) -> PluginSource | None:
    top = module.partition(".")[0]
    folders = [Path(folder) for folder in getattr(sys.modules.get(top), "__path__", [])]
    file = getattr(sys.modules.get(module), "__file__", None)
    if folders:
        return PluginSource(module, module, folders[0].parent, tuple(sorted(folders[0].rglob("*.py"))))
    return None if file is None else PluginSource(module, module, Path(file).parent, (Path(file),))


def _index(folder: Path) -> dict[str, str]:
    file = folder / INDEX
    if not file.is_file():
        return {}
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        index = {str(spec): str(copied) for spec, copied in data.items()}
        outside = [c for c in index.values() if not (folder / c).resolve().is_relative_to(folder.resolve())]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise PluginError(f"The list of copied plugins {str(file)!r} can't be read: {error}.") from error
    if outside:
        raise PluginError(f"Copies of plugins lie in {str(folder)!r}; {str(file)!r} names {outside[0]!r}.")
    return index


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PluginError(f"The source {str(file)!r} of a plugin can't be read: {error}.") from error
