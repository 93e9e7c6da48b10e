"""Outlines: models that a plan looks at before they are fetched, converted or trained.

An outline has the names, shapes and data types that the model will have, and no weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError
from tailorlib.models.adapter import CONFIG
from tailorlib.models.architecture import architecture_of
from tailorlib.models.checkpoint import Checkpoint
from tailorlib.models.opening import Base, Opened, load_config, open_base, open_candidate
from tailorlib.models.source import ModelSource, resolve
from tailorlib.models.stitching import build_skeleton


@dataclass(frozen=True)
class Unbuilt:
    """A candidate that a family makes when a search begins.

    Args:
        lora_rank: Rank of the LoRA on all linear layers that it is going to be; ``None`` for a whole model.
    """

    lora_rank: int | None = None


@dataclass(frozen=True)
class Planned:
    """What a family is going to consist of.

    Args:
        base: Reference of the base model.
        candidates: References of the candidates by name, or what they are going to be.
        first: What is done before the search begins, as sentences without a full stop.
    """

    base: str
    candidates: Mapping[str, str | Unbuilt] = field(default_factory=dict)
    first: tuple[str, ...] = ()


class OutlinedCheckpoint(Checkpoint):
    """A checkpoint that isn't there yet.

    Args:
        shapes: Shapes of its tensors by name.
        dtype: Data type that it is going to be stored in.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._shapes, self._dtype = dict(shapes), dtype

    def keys(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return tuple(sorted(self._shapes))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Return the data type that a tensor is going to be stored in."""
        return self._dtype

    def tensor(self, name: str) -> Tensor:
        """Refuse.

        Raises:
            ModelError: Always.
        """
        raise _absent(name)

    def maps(self, name: str) -> bool:
        """Say that a file will be mapped."""
        return True


class OutlinedAdapter(Checkpoint):
    """A LoRA adapter on a base that isn't there yet.

    Args:
        base: The base's checkpoint.
        changed: Names of the matrices that it changes.
        rank: Its rank.
    """

    def __init__(self, base: Checkpoint, changed: Iterable[str], rank: int) -> None:
        self.base, self._changed, self._rank = base, frozenset(changed), rank

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
        """Refuse.

        Raises:
            ModelError: Always.
        """
        raise _absent(name)

    def origin(self, name: str) -> tuple[Checkpoint, str]:
        """Return the base for a tensor that the adapter leaves alone."""
        return (self, name) if name in self._changed else self.base.origin(name)

    def file_bytes(self) -> int:
        """Return the bytes of its pairs of matrices, in float32."""
        return sum(4 * self._rank * sum(self.shape(name)) for name in self._changed)


def outline_base(reference: str, *, trusted: bool, build: bool) -> Base:
    """Open a base model; one whose weights are not there yet from its config.

    Args:
        reference: Where it comes from.
        trusted: Whether its own code may be run.
        build: Whether weights may be converted or fetched: then they are.

    Raises:
        ModelError: If it can't be found, or is no base model.
    """
    source = None if build else resolve(reference, trust_remote_code=trusted, build=False)
    if source is None or not source.outlined or source.is_adapter:
        return open_base(reference, trusted=trusted)
    config = load_config(source)
    architecture = architecture_of(config)
    skeleton = build_skeleton(config, torch.float32, trust_remote_code=source.trust_remote_code)
    live = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    if config.tie_word_embeddings:
        live = {n: s for n, s in live.items() if not n.startswith(architecture.head + ".")}
    shapes = architecture.stored_shapes(live)
    return Base(reference, source, OutlinedCheckpoint(shapes, _dtype(config)), config, architecture, live, shapes)


def outline_candidate(base: Base, name: str, what: str | Unbuilt, *, trusted: bool, build: bool) -> Opened:
    """Open a candidate, or return what it is going to be.

    Args:
        base: The base.
        name: What the family calls it.
        what: Its reference, or what it is going to be.
        trusted: Whether its own code may be run.
        build: Whether weights may be converted or fetched: then they are.

    Raises:
        ModelError: If it can't be found, or is no model of the base's architecture.
    """
    tied = bool(base.config.tie_word_embeddings)
    if isinstance(what, Unbuilt):
        nowhere = ModelSource(base.source.folder, is_adapter=what.lora_rank is not None, outlined=True)
        checkpoint = (
            _like(base, base.config) if what.lora_rank is None else _lora(base, _linear(base), what.lora_rank)
        )
        return Opened(nowhere, checkpoint, checkpoint, own_head=not tied)
    source = None if build else resolve(what, trust_remote_code=trusted, build=False)
    if source is None or not source.outlined:
        return open_candidate(base, name, what, trusted=trusted)
    if source.is_adapter:
        settings = _adapter_settings(source)
        checkpoint = _lora(base, _targets(settings, _linear(base)), settings["r"])
        return Opened(source, checkpoint, checkpoint, own_head=not tied)
    config = load_config(source, like=base.config)
    checkpoint = _like(base, config)
    return Opened(source, checkpoint, checkpoint, own_head=not config.tie_word_embeddings)


def _lora(base: Base, changed: Iterable[str], rank: int) -> Checkpoint:
    return OutlinedAdapter(base.checkpoint, changed, rank)


def _dtype(config: Any) -> torch.dtype:
    named = getattr(config, "dtype", None)
    return named if isinstance(named, torch.dtype) else torch.float32


def _like(base: Base, config: Any) -> Checkpoint:
    return OutlinedCheckpoint(base.shapes, _dtype(config))


def _linear(base: Base) -> tuple[str, ...]:
    """Return the stored names of the layers' matrices."""
    layers = base.architecture.layers + "."
    matrices = {name: shape for name, shape in base.live.items() if name.startswith(layers) and len(shape) == 2}
    return tuple(base.architecture.stored_shapes(matrices))


def _adapter_settings(source: ModelSource) -> dict[str, Any]:
    file = source.folder / CONFIG
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        settings["r"] = int(settings["r"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ModelError(f"The adapter config {str(file)!r} can't be read: {error}.") from error
    return settings


def _targets(settings: Mapping[str, Any], matrices: Iterable[str]) -> list[str]:
    """Return which matrices an adapter changes; all of them where its config gives a rule and no names."""
    named = settings.get("target_modules")
    if not isinstance(named, list):
        return list(matrices)
    ends = tuple(f".{end}.weight" for end in named if isinstance(end, str))
    return [name for name in matrices if name.endswith(ends)]


def _absent(name: str) -> ModelError:
    return ModelError(f"The tensor {name!r} is planned and not there yet: a search makes it.")
