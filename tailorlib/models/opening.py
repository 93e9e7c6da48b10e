"""Models of a family are found, opened and held against each other; no weight is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from tailorlib.exceptions import ModelError
from tailorlib.models.adapter import AdapterCheckpoint
from tailorlib.models.architecture import Architecture, architecture_of
from tailorlib.models.checkpoint import Checkpoint, SafetensorsCheckpoint
from tailorlib.models.compatibility import config_differences, shape_differences
from tailorlib.models.own_code import is_own_code, needs_own_code, place_code, untrusted_note
from tailorlib.models.prefixed import with_prefix
from tailorlib.models.source import ModelSource, resolve
from tailorlib.models.stitching import build_skeleton
from tailorlib.models.vocabulary import Member, align

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """An open base model.

    Args:
        source: Where it lies.
        checkpoint: Its weights, by the architecture's names.
        config: Its transformers config.
        architecture: Where its parts live.
        live: Shapes of the live model's tensors by name; a tied head is none of them.
        shapes: Shapes of the stored tensors by name, as every model of the family has them.
    """

    source: ModelSource
    checkpoint: Checkpoint
    config: Any
    architecture: Architecture
    live: dict[str, tuple[int, ...]]
    shapes: dict[str, tuple[int, ...]]

    @property
    def layer_suffixes(self) -> tuple[tuple[str, ...], ...]:
        """Names of each layer's stored tensors, without the layer's prefix."""
        prefixes = [self.architecture.layer_prefix(i) for i in range(self.config.num_hidden_layers)]
        return tuple(tuple(n.removeprefix(p) for n in self.shapes if n.startswith(p)) for p in prefixes)

    @property
    def outer(self) -> tuple[str, ...]:
        """Names of the live model's tensors outside the layers."""
        return tuple(n for n in self.live if not n.startswith(self.architecture.layers + "."))


def open_base(reference: str, *, trusted: bool) -> Base:
    """Open a base model.

    Args:
        reference: Where it comes from.
        trusted: Whether its own code may be run.

    Raises:
        ModelError: If it can't be found, is an adapter, or its weights don't fit its config.
    """
    source = resolve(reference, trust_remote_code=trusted)
    if source.is_adapter:
        raise ModelError(
            f"The base is a whole model; {str(source.folder)!r} is an adapter. Give the model that it was "
            "trained on as the base, and the adapter as a candidate."
        )
    opened = SafetensorsCheckpoint(source.folder)
    config = load_config(source)
    architecture = architecture_of(config)
    checkpoint = with_prefix(opened, architecture)
    live = {n: tuple(p.shape) for n, p in _skeleton(config, source).state_dict().items()}
    if config.tie_word_embeddings:
        live = {n: s for n, s in live.items() if not n.startswith(architecture.head + ".")}
    shapes = architecture.stored_shapes(live)
    wrong = shape_differences(architecture, shapes, checkpoint)
    if wrong:
        raise ModelError(f"The checkpoint {str(source.folder)!r} doesn't fit its config: {wrong}.")
    return Base(source, checkpoint, config, architecture, live, shapes)


def open_candidate(base: Base, name: str, reference: str, *, trusted: bool) -> tuple[ModelSource, Checkpoint]:
    """Open a model that was fine-tuned from a base, or an adapter on it; return where it lies, and its weights.

    Args:
        base: The base.
        name: What the family calls the candidate.
        reference: Where it comes from.
        trusted: Whether its own code may be run, to read its config and tokenizer.

    Raises:
        ModelError: If it can't be found, or is no model of the base's architecture.
    """
    source = resolve(reference, trust_remote_code=trusted)
    if source.is_adapter:
        return source, AdapterCheckpoint(base.checkpoint, source.folder)
    opened = with_prefix(SafetensorsCheckpoint(source.folder), base.architecture)
    config = load_config(source, like=base.config)
    hard, soft = config_differences(base.config, config)
    if hard:
        raise ModelError(f"A candidate has the base's architecture; it has {'; '.join(hard)}.")
    own, theirs = Member(opened, config, source), Member(base.checkpoint, base.config, base.source)
    checkpoint, note = align(theirs, own, base.architecture)
    if note:
        _log.warning("Candidate %r has %s.", name, note)
    wrong = shape_differences(base.architecture, base.shapes, checkpoint)
    if wrong:
        raise ModelError(f"A candidate has the base's tensors; in {str(source.folder)!r}, {wrong}.")
    if soft:
        _log.warning("Candidate %r has %s. Its layers run with the base's.", name, "; ".join(soft))
    return source, checkpoint


def load_config(source: ModelSource, *, like: Any = None) -> Any:
    """Return the transformers config of a model.

    Args:
        source: The model.
        like: Config of a base. If its class is of code that the base came with, it also reads a model of the same
            type whose own code may not be run.

    Raises:
        ModelError: If there is none, transformers can't read it, or that takes code which may not be run.
    """
    if source.trust_remote_code:
        place_code(source.folder)
    try:
        if not source.trust_remote_code and needs_own_code(source.folder):
            entries, _ = PreTrainedConfig.get_config_dict(source.folder)
            if is_own_code(like) and entries.get("model_type") == like.model_type:
                return type(like).from_pretrained(source.folder)
            raise ModelError(
                f"The config of {str(source.folder)!r} can't be read by transformers itself.{note_on(source)}"
            )
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=source.trust_remote_code)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a config that it can't read
        raise ModelError(f"The config of {str(source.folder)!r} can't be read: {error}") from error


def _skeleton(config: Any, source: ModelSource) -> PreTrainedModel:
    try:
        return build_skeleton(config, torch.float32, trust_remote_code=source.trust_remote_code)
    except Exception as error:  # own code may raise anything, and without it there may be no class
        if not untrusted_note(source.folder):  # no code of the model's own has a part in it
            raise
        raise ModelError(
            f"The model of {str(source.folder)!r} can't be built: {type(error).__name__}: {error}{note_on(source)}"
        ) from error


def note_on(source: ModelSource) -> str:
    """Return a sentence on own code that a model has and that may not be run; empty if there is none."""
    return "" if source.trust_remote_code else untrusted_note(source.folder)
