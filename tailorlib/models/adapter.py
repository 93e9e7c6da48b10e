"""LoRA adapters: a fine-tuned model as its base plus low-rank changes, made when a tensor is asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError, shown
from tailorlib.models.architecture import Architecture
from tailorlib.models.checkpoint import Checkpoint, SafetensorsCheckpoint
from tailorlib.models.storage import FLOATS
from tailorlib.operation import is_finite

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

    A changed tensor is the float32 sum, or a wider one: who takes it as it is rounds it once to the stored type,
    and a merge starts from the sum. In bfloat16 a few per cent of a change would be lost before the merge.

    Args:
        base: The model that the adapter was trained on.
        folder: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        row: Where the parts of the base live.
        tied: Whether the base's head is its embeddings.

    Raises:
        ModelError: If the adapter is missing, damaged, of a kind that isn't understood, or doesn't fit the base.
    """

    def __init__(
        self, base: Checkpoint, folder: Path, row: Architecture | None = None, *, tied: bool = False
    ) -> None:
        self.base, self.folder, self.row = base, folder, row or Architecture("")
        self._config = _read_config(folder)
        self._own = SafetensorsCheckpoint.of_file(folder / WEIGHTS)
        if not self._own.keys():
            raise ModelError(
                f"The adapter {str(folder)!r} holds no tensors. Fetch it again, or save it again from PEFT."
            )
        if tied:
            self._refuse_tied_head()
        self._check_depth()
        self._check_values()
        self._pairs = self._find_pairs()

    def _refuse_tied_head(self) -> None:
        head = f"{self.row.stored_head}."
        if any(name.startswith(f"base_model.model.{head}") and ".lora_" in name for name in self._own.keys()):  # noqa: SIM118
            raise ModelError(
                f"The adapter {str(self.folder)!r} changes '{head}weight', and the base's head is its embeddings: "
                "while it is apart PEFT changes the head alone, and when it is merged both. Merge it with PEFT's "
                "merge_and_unload, save the result, check it, and give that."
            )

    def notes(self, reference: str) -> list[str]:
        """Return what is worth a warning: an adapter that changes nothing, of another base, or of some layers.

        Args:
            reference: Where the base comes from, as a recipe names it.
        """
        notes = []
        dead = [name for name in self._pairs if self._is_dead(name)]
        if len(dead) == len(self._pairs):
            alpha = self._config["lora_alpha"]
            why = "lora_alpha is 0" if alpha == 0 else "one matrix of each pair is all zero"
            notes.append(f"an adapter that changes nothing ({why}): its layers are the base's")
        named = self._config.get("base_model_name_or_path")
        if isinstance(named, str) and named and not _same_model(named, reference):
            notes.append(
                f"an adapter whose config names {shown(named)} as its base; the family's is {shown(reference)}. "
                "The shapes fit; see that it is the same model"
            )
        layers, number = self._layers(self._pairs), len(self._layers(self.base.keys()))
        if layers and not self._config.get("layers_to_transform") and len(layers) < number:
            notes.append(f"an adapter that changes {len(layers)} of the {number} layers")
        return notes

    def _is_dead(self, name: str) -> bool:
        module = self._pairs[name]
        if self._scaling(module, self._own.shape(_matrix_name(module, "A"))[0]) == 0:
            return True
        return any(not self._own.tensor(_matrix_name(module, side)).any() for side in "BA")

    def _check_values(self) -> None:
        for name in self._own.keys():  # noqa: SIM118
            dtype = self._own.dtype(name)
            if dtype not in FLOATS:
                raise ModelError(
                    f"The adapter {str(self.folder)!r} holds {name!r} as {str(dtype).removeprefix('torch.')}; its "
                    "matrices are 16- to 64-bit floats. Save it again from PEFT, not quantised."
                )
            if not is_finite(self._own.tensor(name)):
                raise ModelError(
                    f"The adapter {str(self.folder)!r} holds NaN or Inf in {name!r}. Fetch it again, or "
                    "leave it out."
                )

    def _layers(self, names: Iterable[str]) -> set[int]:
        pattern = re.compile(rf"{re.escape(self.row.layers)}\.(\d{{1,9}})\.")
        return {int(match[1]) for match in map(pattern.match, names) if match}

    def keys(self) -> tuple[str, ...]:
        """Return the base's names."""
        return self.base.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape: the base's."""
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's data type: the base's, or float32 at least for one that the adapter changes."""
        stored = self.base.dtype(name)
        return torch.promote_types(stored, torch.float32) if name in self._pairs else stored

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
        wide = self.dtype(name)
        return delta.to(wide).add_(weight.to(wide))

    def origin(self, name: str) -> tuple[Checkpoint, str]:
        """Return the base for a tensor that the adapter leaves alone."""
        return (self, name) if name in self._pairs else self.base.origin(name)

    def file_bytes(self) -> int:
        """Return the bytes of the adapter's own file."""
        return self._own.file_bytes()

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

    def _check_depth(self) -> None:
        """Check that the adapter changes layers that the base has, by its tensors and by its config."""
        number = len(self._layers(self.base.keys()))
        listed = self._config.get("layers_to_transform")
        listed = [listed] if isinstance(listed, int) else listed or []
        prefix = "base_model.model."
        changed = self._layers(n.removeprefix(prefix) for n in self._own.keys())  # noqa: SIM118
        beyond = sorted({i for i in (*listed, *changed) if isinstance(i, int) and not 0 <= i < number})
        if number and beyond:
            raise ModelError(
                f"The adapter {str(self.folder)!r} changes layer {beyond[-1]}, and the base has the layers 0 to "
                f"{number - 1}: it was trained on a deeper model. Give its own base."
            )

    def _is_copy(self, key: str) -> bool:
        """Say whether a tensor is the base's own: PEFT saves the embeddings with an adapter on the head."""
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if name not in self.base or self.base.shape(name) != self._own.shape(key):
            return False
        ours, theirs = self.base.tensor(name), self._own.tensor(key)
        return torch.equal(ours, theirs.to(ours.dtype))

    def _find_pairs(self) -> dict[str, str]:
        sides: dict[str, set[str]] = {}
        for key in self._own.keys():  # noqa: SIM118
            match = _PAIR.match(key)
            if match is None and self._is_copy(key):
                continue
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
            if shape != self.base.shape(name) or not a[0] == b[1] == rank or rank < 1:
                raise ModelError(
                    f"The adapter {str(self.folder)!r} changes {name!r} as a {list(shape)} matrix of rank {a[0]} "
                    f"(its config says {rank}); the base's is {list(self.base.shape(name))}. Give its "
                    "own base."
                )
            pairs[name] = module
        return pairs


def _same_model(one: str, other: str) -> bool:
    """Say whether two references can mean one model: the last parts of their names are equal."""
    other = re.sub(r"(@[^/]*)?(#.*)?$", "", other)
    if re.search(r"\.gguf$", other):
        return True  # a file's name says which conversion it is, and not which model
    hub = re.search(r"models--(?:[^/]+--)?([^/]+)/snapshots/", other + "/")
    ends = (Path(one).name.lower(), (hub[1] if hub else Path(other).name).lower())
    return ends[0] == ends[1]


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
        if not math.isfinite(config["lora_alpha"]):
            raise ValueError(f"lora_alpha is {config['lora_alpha']}, no finite number")
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
