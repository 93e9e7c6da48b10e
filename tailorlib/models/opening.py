"""Models of a family are found, opened and held against each other; no weight is read."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from tailorlib.exceptions import ModelError, shown
from tailorlib.models.adapter import AdapterCheckpoint
from tailorlib.models.architecture import (
    ARCHITECTURES,
    Architecture,
    architecture_named,
    architecture_of,
    layer_kinds,
)
from tailorlib.models.checkpoint import Checkpoint, SafetensorsCheckpoint
from tailorlib.models.compatibility import config_differences, shape_differences
from tailorlib.models.entries import check_config, check_entries, read_entries
from tailorlib.models.multimodal import refuse_multimodal
from tailorlib.models.own_code import is_own_code, needs_own_code, place_code, untrusted_note
from tailorlib.models.prefixed import with_prefix
from tailorlib.models.source import ModelSource, resolve
from tailorlib.models.stitching import build_skeleton
from tailorlib.models.storage import FLOATS, STORAGE_ENTRIES, check_storage
from tailorlib.models.tying import head_of, settle_tie, with_head
from tailorlib.models.vocabulary import Member, align
from tailorlib.operation import is_finite

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """An open base model.

    Args:
        reference: Where it comes from, as a recipe names it.
        source: Where it lies.
        checkpoint: Its weights, by the architecture's names.
        config: Its transformers config.
        architecture: Where its parts live.
        live: Shapes of the live model's tensors by name; a tied head is none of them.
        shapes: Shapes of the stored tensors by name, as every model of the family has them.
    """

    reference: str
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
    entries = read_entries(source.folder)
    refuse_multimodal(source.folder, entries)
    kind = entries.get("model_type")
    if isinstance(kind, str) and (kind in CONFIG_MAPPING or kind in ARCHITECTURES):
        architecture_named(kind)  # refused before anything is made of what the config says
    opened = SafetensorsCheckpoint(source.folder)
    note = check_storage(source.folder, entries, opened)
    if note:
        _log.warning("The base has %s.", note)
    config = _load_checked(source, entries, opened)
    architecture = architecture_of(config)
    checkpoint, note = settle_tie(with_prefix(opened, architecture), config, architecture)
    if note:
        _log.warning("The base has %s.", note)
    return _base(reference, source, checkpoint, config, architecture)


def with_own_head(base: Base) -> Base:
    """Return a base whose head is its embeddings as one with a head of its own, equal to them."""
    config = copy.deepcopy(base.config)
    config.tie_word_embeddings = False
    checkpoint = with_head(base.checkpoint, base.architecture)
    return _base(base.reference, base.source, checkpoint, config, base.architecture)


def _base(reference: str, source: ModelSource, checkpoint: Checkpoint, config: Any, row: Architecture) -> Base:
    live = {n: tuple(p.shape) for n, p in _skeleton(config, source).state_dict().items()}
    if config.tie_word_embeddings:
        live = {n: s for n, s in live.items() if not n.startswith(row.head + ".")}
    shapes = row.stored_shapes(live)
    wrong = shape_differences(row, shapes, checkpoint)
    if wrong:
        raise ModelError(f"The checkpoint {str(source.folder)!r} doesn't fit its config: {wrong}.")
    _check_floats(source, shapes, checkpoint)
    return Base(reference, source, checkpoint, config, row, live, shapes)


@dataclass(frozen=True)
class Opened:
    """An open candidate.

    Args:
        source: Where it lies.
        checkpoint: Its weights, with the base's names and vocabulary.
        stored: Its weights, with the base's names and its own vocabulary.
        own_head: Whether it has a head that is not its embeddings.
        own_settings: Whether its config has settings of its own that a layer computes with.
    """

    source: ModelSource
    checkpoint: Checkpoint
    stored: Checkpoint
    own_head: bool
    own_settings: bool = False


def open_candidate(base: Base, name: str, reference: str, *, trusted: bool) -> Opened:
    """Open a model that was fine-tuned from a base, or an adapter on it.

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
        tied = bool(base.config.tie_word_embeddings)
        adapter = AdapterCheckpoint(base.checkpoint, source.folder, base.architecture, tied=tied)
        for note in adapter.notes(base.reference):
            _log.warning("Candidate %r has %s.", name, note)
        return Opened(source, adapter, adapter, own_head=not tied)
    entries = read_entries(source.folder)
    refuse_multimodal(source.folder, entries)
    stored = SafetensorsCheckpoint(source.folder)
    note = check_storage(source.folder, entries, stored)
    if note:
        _log.warning("Candidate %r has %s.", name, note)
    kind = entries.get("model_type")
    if kind != base.config.model_type:
        raise ModelError(
            f"A candidate has the base's architecture; it has model_type {shown(kind)} (base: "
            f"{base.config.model_type!r}).{note_on(source)}"
        )
    config = _load_checked(source, entries, stored, like=base.config)
    opened, note = settle_tie(with_prefix(stored, base.architecture), config, base.architecture)
    if note:
        _log.warning("Candidate %r has %s.", name, note)
    hard, soft = config_differences(base.config, config)
    if hard:
        raise ModelError(f"A candidate has the base's architecture; it has {'; '.join(hard)}.")
    own_head = not config.tie_word_embeddings
    if own_head and base.config.tie_word_embeddings:
        base = with_own_head(base)
        size = (
            prod(opened.shape(head_of(base.architecture)))
            * base.checkpoint.dtype(head_of(base.architecture)).itemsize
        )
        _log.warning(
            "Candidate %r has a head of its own (%s), and the base's is its embeddings: every tailored model gets "
            "a head of its own, which takes %.1f MB more.",
            name,
            head_of(base.architecture),
            size / 1e6,
        )
    own, theirs = Member(opened, config, source), Member(base.checkpoint, base.config, base.source)
    checkpoint, note = align(theirs, own, base.architecture)
    if note:
        _log.warning("Candidate %r has %s.", name, note)
    wrong = shape_differences(base.architecture, base.shapes, checkpoint)
    if wrong:
        raise ModelError(f"A candidate has the base's tensors; in {str(source.folder)!r}, {wrong}.")
    _check_floats(source, base.shapes, checkpoint)
    if soft:
        _log.warning("Candidate %r has %s. Its layers run with the base's.", name, "; ".join(soft))
    return Opened(source, checkpoint, opened, own_head, own_settings=bool(soft))


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
        raise ModelError(f"The config of {str(source.folder)!r} can't be read: {_in_one_line(error)}") from error


def _load_checked(source: ModelSource, entries: Mapping[str, Any], stored: Checkpoint, *, like: Any = None) -> Any:
    """Return a model's config without what it says of storage; its sizes are those of the weights.

    Both what the file says and what transformers makes of it are compared with them: before the first comparison,
    making anything could take for ever, and only after it are there values for what the file leaves out.
    """
    row = ARCHITECTURES.get(str(entries.get("model_type")))
    if row is not None:
        check_entries(source.folder, entries, with_prefix(stored, row), row)
    config = load_config(source, like=like)
    for name in STORAGE_ENTRIES:
        vars(config).pop(name, None)
    row = architecture_of(config)
    check_config(source.folder, config, with_prefix(stored, row), row)
    try:
        layer_kinds(config)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise ModelError(
            f"The config of {str(source.folder)!r} doesn't say of which kind each layer is: {_in_one_line(error)}"
        ) from error
    return config


def _check_floats(source: ModelSource, names: Iterable[str], checkpoint: Checkpoint) -> None:
    for name in names:
        if checkpoint.dtype(name) not in FLOATS:
            kind = str(checkpoint.dtype(name)).removeprefix("torch.")
            raise ModelError(
                f"Weights are 16- to 64-bit floats; in {str(source.folder)!r}, {name!r} is {kind}. If they are "
                "quantised, give the 16-bit model."
            )


def _skeleton(config: Any, source: ModelSource) -> PreTrainedModel:
    try:
        model = build_skeleton(config, torch.float32, trust_remote_code=source.trust_remote_code)
    except Exception as error:  # own code may raise anything, and transformers many kinds for a senseless config
        raise ModelError(
            f"The model of {str(source.folder)!r} can't be built: {type(error).__name__}: "
            f"{_in_one_line(error)}{note_on(source)}"
        ) from error
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and not buffer.is_meta and not is_finite(buffer):
            raise ModelError(
                f"The config of {str(source.folder)!r} gives the table {name!r} NaN or Inf: its rope entries make "
                "no sense. Give the config that the weights were saved with."
            )
    return model


def _in_one_line(error: Exception) -> str:
    """Return what an error says; a validator's report has many lines."""
    return " ".join(str(error).split())[:500]


def note_on(source: ModelSource) -> str:
    """Return a sentence on own code that a model has and that may not be run; empty if there is none."""
    return "" if source.trust_remote_code else untrusted_note(source.folder)
