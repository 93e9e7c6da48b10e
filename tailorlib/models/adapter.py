"""LoRA adapters: a fine-tuned model as its base plus low-rank changes, made when a tensor is asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError
from tailorlib.models.checkpoint import Checkpoint, SafetensorsCheckpoint

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_UNDERSTOOD = frozenset(
    {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias"}
)
_WITHOUT_EFFECT = frozenset(
    # which modules have a pair of matrices is read from the weights; the rest matters to training only
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "task_type", "inference_mode"}
    | {"base_model_name_or_path", "revision", "peft_version", "auto_mapping", "lora_dropout", "init_lora_weights"}
    | {"runtime_config", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "ensure_weight_tying"}
)
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the base's weights
_PATTERN = re.compile(r"^[\w.\\^$|*-]{1,300}$")
_PAIR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


class AdapterCheckpoint(Checkpoint):
    """A base checkpoint with a PEFT LoRA adapter merged into it: ``W + scaling · B A``, tensor by tensor.

    The sum is taken in float32 and rounded once, to the base's stored data type.

    Args:
        base: The model that the adapter was trained on.
        folder: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ModelError: If the adapter is missing, damaged, of a kind that isn't understood, or doesn't fit the base.
    """

    def __init__(self, base: Checkpoint, folder: Path) -> None:
        self.base, self.folder = base, folder
        self._config = _read_config(folder)
        self._own = SafetensorsCheckpoint.of_file(folder / WEIGHTS)
        self._pairs = self._find_pairs()

    def keys(self) -> tuple[str, ...]:
        """Return the base's names."""
        return self.base.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape: the base's."""
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's data type: the base's."""
        return self.base.dtype(name)

    def tensor(self, name: str) -> Tensor:
        """Return the base's tensor, or a new one if the adapter changes it."""
        weight = self.base.tensor(name)
        if name not in self._pairs:
            return weight
        module = self._pairs[name]
        lora_a = self._matrix(module, "A")  # [r, in]
        lora_b = self._matrix(module, "B")  # [out, r]
        delta = (lora_b @ lora_a).mul_(self._scaling(module, lora_a.shape[0]))
        if self._config.get("fan_in_fan_out"):
            delta = delta.T.contiguous()  # in the order in which files hold it
        return delta.add_(weight.to(torch.float32)).to(weight.dtype)

    def origin(self, name: str) -> tuple[Checkpoint, str]:
        """Return the base for a tensor that the adapter leaves alone."""
        return (self, name) if name in self._pairs else self.base.origin(name)

    def where(self, name: str) -> str:
        """Return the adapter's file for a tensor that it changes, else the base's."""
        return str(self.folder / WEIGHTS) if name in self._pairs else self.base.where(name)

    def __contains__(self, name: str) -> bool:
        return name in self.base

    def _matrix(self, module: str, side: str) -> Tensor:
        return self._own.tensor(_matrix_name(module, side)).to(torch.float32)

    def _scaling(self, module: str, rank: int) -> float:
        alpha = float(_by_pattern(self._config.get("alpha_pattern"), module, self._config["lora_alpha"]))
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank

    def _find_pairs(self) -> dict[str, str]:
        sides: dict[str, set[str]] = {}
        for key in self._own.keys():  # noqa: SIM118
            match = _PAIR.match(key)
            if match is None:
                raise ModelError(
                    f"The adapter {str(self.folder)!r} holds {key!r}; tailorlib merges LoRA pairs of linear "
                    "layers only. Merge it with PEFT's merge_and_unload and give the saved model."
                )
            sides.setdefault(match["module"], set()).add(match["side"])
        pairs: dict[str, str] = {}
        for module, found in sides.items():
            name = f"{module}.weight"
            if found != {"A", "B"} or name not in self.base:
                what = f"only lora_{found.pop()}" if len(found) == 1 else "a change"
                raise ModelError(
                    f"The adapter {str(self.folder)!r} has {what} for {module!r}, and the base "
                    f"{'has' if name in self.base else 'has no'} such weight. Give its own base."
                )
            a, b = (self._own.shape(_matrix_name(module, side)) for side in "AB")
            shape = (a[1], b[0]) if self._config.get("fan_in_fan_out") else (b[0], a[1])
            rank = int(_by_pattern(self._config.get("rank_pattern"), module, self._config["r"]))
            if shape != self.base.shape(name) or not a[0] == b[1] == rank:
                raise ModelError(
                    f"The adapter {str(self.folder)!r} changes {name!r} as a {list(shape)} matrix of rank {a[0]} "
                    f"(its config says {rank}); the base's is {list(self.base.shape(name))}. Give its "
                    "own base."
                )
            pairs[name] = module
        return pairs


def _matrix_name(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"The adapter folder {str(folder)!r} has no {WEIGHTS}. If it has adapter_model.bin, load it with PEFT "
            "and save it again with save_pretrained."
        )
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["r"], config["lora_alpha"] = int(config.get("r", 0)), float(config.get("lora_alpha", 0))
        for name in ("rank_pattern", "alpha_pattern"):
            _check_patterns(name, config.get(name))
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(f"The adapter config {str(folder / CONFIG)!r} can't be read: {error}.") from error
    foreign = {
        k: v for k, v in config.items() if k not in _UNDERSTOOD | _WITHOUT_EFFECT and v and k != "megatron_core"
    }
    if config.get("peft_type") != "LORA":
        foreign["peft_type"] = config.get("peft_type")
    if config.get("bias", "none") != "none":
        foreign["bias"] = config["bias"]
    if not any(config.get("init_lora_weights", True) is known for known in _INITIALISATIONS[:3]) and (
        config["init_lora_weights"] not in _INITIALISATIONS[3:]
    ):
        foreign["init_lora_weights"] = config["init_lora_weights"]
    if foreign:
        listed = ", ".join(f"{k}={v!r}" for k, v in sorted(foreign.items()))
        raise ModelError(
            f"tailorlib merges plain LoRA adapters; {str(folder)!r} has {listed}. Merge it with PEFT's "
            "merge_and_unload and give the saved model."
        )
    return config


def _check_patterns(name: str, patterns: Any) -> None:
    """Check that patterns are a mapping from names, or regular expressions of a kind that is matched at once.

    They are a stranger's: with groups and nested repetitions, matching one can take for ever.

    Raises:
        ValueError: If they aren't.
    """
    for pattern, value in ({} if patterns is None else dict(patterns)).items():
        if not isinstance(pattern, str) or not _PATTERN.match(pattern):
            raise ValueError(f"{name} has the pattern {str(pattern)[:80]!r}; names are taken, with '.*' and '|'")
        re.compile(pattern)
        if not math.isfinite(float(value)):
            raise ValueError(f"{name} has the value {value}, no finite number")


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a module's name, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
