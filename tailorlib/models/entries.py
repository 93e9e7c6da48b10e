"""Entries of config.json, compared with the header of the weights before transformers builds anything of them.

A config is a stranger's text: one number in it can ask for a billion layers or a table of a terabyte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from tailorlib.exceptions import ModelError, shown
from tailorlib.models.architecture import Architecture
from tailorlib.models.checkpoint import Checkpoint

CONFIG = "config.json"
_MAX_CONFIG = 10_000_000
_MOST = 2**31
_WIDTHS = (
    *("hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "num_kv_heads", "head_dim", "vocab_size", "n_inner"),
    *("ffn_hidden_size", "num_experts", "num_local_experts", "num_experts_per_tok"),
)
"""Entries that are sizes of a tensor, or divide one: none is larger than the largest dimension in the file."""
_COUNTS = ("num_hidden_layers", "max_position_embeddings", "decoder_sparse_step")
_LIMITS = ("sliding_window", "max_window_layers")
"""Entries that count something, and those that may be 0 besides."""
_INDICES = ("mlp_only_layers",)


def read_entries(folder: Path) -> dict[str, Any]:
    """Return the entries of a model's config.json.

    Raises:
        ModelError: If there is none, or it is no JSON object of a sensible size.
    """
    file = folder / CONFIG
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_CONFIG + 1)
        if len(text) > _MAX_CONFIG:
            raise ValueError(f"it has more than {_MAX_CONFIG:,} bytes")
        entries = json.loads(text)
        if not isinstance(entries, dict):
            raise ValueError(f"it is a JSON object, got {shown(entries)}")
    except FileNotFoundError:
        raise ModelError(f"{str(folder)!r} has no {CONFIG}. Give a folder with a model.") from None
    except RecursionError:
        raise ModelError(f"The config {str(file)!r} can't be read: it is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"The config {str(file)!r} can't be read: {shown(str(error))}. Correct it.") from error
    return entries


def check_entries(folder: Path, entries: Mapping[str, Any], checkpoint: Checkpoint, row: Architecture) -> None:
    """Check that the sizes in a config.json can be those of the weights beside it.

    Args:
        folder: The model's folder, for messages.
        entries: What its config.json says.
        checkpoint: Its weights.
        row: Where the parts of such a model live.

    Raises:
        ModelError: With every entry that makes no sense or contradicts the header of the weights.
    """
    # a lazy mapping: its get() finds nothing
    known = CONFIG_MAPPING[row.model_type] if row.model_type in CONFIG_MAPPING else None  # noqa: SIM401
    named: Mapping[str, str] = getattr(known, "attribute_map", {})
    _refuse(folder, checkpoint, row, lambda name: entries.get(named.get(name, name), entries.get(name)))


def check_config(folder: Path, config: Any, checkpoint: Checkpoint, row: Architecture) -> None:
    """Check the same of a transformers config, which has defaults for what config.json leaves out.

    Raises:
        ModelError: As :func:`check_entries`.
    """
    _refuse(folder, checkpoint, row, lambda name: getattr(config, name, None))


def _refuse(folder: Path, checkpoint: Checkpoint, row: Architecture, get: Callable[[str], Any]) -> None:
    faults = [*_faults(checkpoint, row, get)]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ModelError(
            f"The config {str(folder / CONFIG)!r} doesn't fit its weights: {'; '.join(faults[:5])}{more}. Give "
            "the config that the weights were saved with."
        )


def _faults(checkpoint: Checkpoint, row: Architecture, get: Callable[[str], Any]) -> Iterator[str]:
    shapes = {name: checkpoint.shape(name) for name in checkpoint.keys()}  # noqa: SIM118
    largest = max((max(s, default=1) for s in shapes.values() if prod(s)), default=0)
    wrong = set()
    for name in (*_WIDTHS, *_COUNTS, *_LIMITS):
        value, least = get(name), 0 if name in _LIMITS else 1
        if value is None:
            continue
        if type(value) is not int or not least <= value < _MOST:
            yield f"{name} is a whole number from {least} to {_MOST - 1:,}, got {shown(value)}"
            wrong.add(name)
        elif name in _WIDTHS and value > largest:
            yield f"{name} is {value:,}, and the largest dimension of a tensor is {largest:,}"
            wrong.add(name)
    layers, said = _layers(shapes, row), get("num_hidden_layers")
    if said is not None and "num_hidden_layers" not in wrong and said != layers:
        yield f"num_hidden_layers is {said:,}, and the weights have {layers:,} layers"
    yield from _list_faults(row, get, layers)
    for module, name in zip(row.embeddings, ("vocab_size", "max_position_embeddings"), strict=False):
        shape, value = shapes.get(f"{module}.weight"), get(name)
        if shape and len(shape) == 2 and value is not None and name not in wrong and value != shape[0]:
            yield f"{name} is {value:,}, and {module}.weight has the shape {list(shape)}"


def _list_faults(row: Architecture, get: Callable[[str], Any], layers: int) -> Iterator[str]:
    for name in row.per_layer:
        values, kind = get(name), str if name == "layer_types" else (int, str)
        if values is not None and not (isinstance(values, list) and all(isinstance(v, kind) for v in values)):
            yield f"{name} is a list with one entry per layer, got {shown(values)}"
        elif values is not None and len(values) != layers:
            yield f"{name} has {len(values)} entries, and the weights have {layers:,} layers"
    for name in _INDICES:
        values = get(name)
        if values is not None and not (isinstance(values, list) and all(type(v) is int for v in values)):
            yield f"{name} is a list of layers, got {shown(values)}"


def _layers(shapes: Mapping[str, Any], row: Architecture) -> int:
    pattern = re.compile(rf"{re.escape(row.layers)}\.(\d{{1,9}})\.")
    return max((int(match[1]) for match in map(pattern.match, shapes) if match), default=-1) + 1
