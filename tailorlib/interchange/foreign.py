"""Files of other programs: found out what they are, and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tailorlib.bounded import check_size, read_text
from tailorlib.exceptions import ModelError, RecipeError, shown
from tailorlib.interchange.genotype import KEY, from_genotype
from tailorlib.interchange.imported import Imported
from tailorlib.interchange.mergekit_import import from_mergekit
from tailorlib.interchange.names import TensorNames
from tailorlib.models.source import path_of


def read_foreign(
    path: str | Path,
    *,
    base: str | None = None,
    candidates: Sequence[str] | None = None,
    num_layers: int | None = None,
    legacy_base_index: bool = False,
) -> Imported:
    """Read a configuration of mergekit (YAML), or a genotype of the GPTailor paper's code (JSON).

    Of the models, nothing but their configs is looked at.

    Args:
        path: The file.
        base: The base model of a genotype.
        candidates: The candidates of a genotype, in the order of the search.
        num_layers: Number of layers of each model; found in the config by default.
        legacy_base_index: See :func:`~tailorlib.interchange.genotype.from_genotype`.

    Raises:
        RecipeError: If the file can't be read, is neither, or has faults; with all of them.
        ModelError: If the number of layers is needed and the config can't be read.
    """
    text = read_text(path, "file")
    genotype = _as_genotype(text)
    if genotype is not None:
        if base is None or not candidates:
            raise RecipeError(
                "A genotype names no models: give the base, and the candidates in the order of the search."
            )
        return from_genotype(
            genotype,
            base=base,
            candidates=list(candidates),
            num_layers=_layers_of(base) if num_layers is None else num_layers,
            legacy_base_index=legacy_base_index,
        )
    if base is not None or candidates or legacy_base_index:
        raise RecipeError(
            f"A mergekit configuration names its own models, and {str(path)!r} is one: leave out base, candidates "
            "and legacy_base_index. They belong to genotypes."
        )
    return from_mergekit(text, num_layers=_layers_of if num_layers is None else num_layers, names=_names_of)


def _as_genotype(text: str) -> dict[str, Any] | None:
    """Return the data of a genotype, or ``None`` if the text is none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None  # YAML may also begin with a brace
    if not isinstance(data, dict) or "merge_method" in data:
        return None
    check_size(data, "A genotype")
    if data and not any(KEY.fullmatch(key) for key in data):
        raise RecipeError(
            f"A JSON file to import is a genotype, with keys such as remove_idx_0; got {shown(data)}."
        )
    return data


def _layers_of(reference: str) -> int:
    return int(_config_of(reference).num_hidden_layers)


def _names_of(reference: str) -> TensorNames | None:
    """Return the names of the tensors of a model on the disk; ``None`` of one that lies elsewhere."""
    try:
        if not path_of(reference.partition("+")[0]).is_dir():
            return None
    except ModelError:
        return None
    return TensorNames.of_config(_config_of(reference))


def _config_of(reference: str) -> Any:
    location, _, revision = reference.partition("+")[0].partition("#")[0].partition("@")
    folder = path_of(location)
    try:
        return AutoConfig.from_pretrained(
            str(folder) if folder.is_dir() else location, revision=revision or None, trust_remote_code=False
        )
    except Exception as error:  # transformers and the hub's client raise many kinds
        raise ModelError(
            f"The number of layers of {reference!r} can't be found: {type(error).__name__}: {str(error)[:300]}. "
            "Give it."
        ) from error
