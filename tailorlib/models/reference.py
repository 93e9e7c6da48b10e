"""Another reading of a family: its whole, uncut models as transformers (and PEFT, of adapters) load them.

What tailorlib reads of a model is used by live models and exports alike: comparing the two finds no model that was
read wrong. Here each model of a family is held against what ``from_pretrained`` makes of its folder.
"""

from __future__ import annotations

import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tailorlib.exceptions import ModelError, shown
from tailorlib.models.checkpoint import Checkpoint
from tailorlib.models.opening import load_config
from tailorlib.models.own_code import is_own_code
from tailorlib.models.stitching import Stitcher
from tailorlib.models.storage import STORAGE_ENTRIES
from tailorlib.tailoring import BASE, Tailoring

if TYPE_CHECKING:
    from tailorlib.models.family import ModelFamily

SMALL = 600_000_000
"""Most bytes of a base in whose family tensors and logits are compared whenever a search opens it. In larger ones
names and shapes are compared, which reads no weight."""
_TOKENS = 12
_ROUNDING = 1e-5
"""How far an adapter's sum may be from PEFT's, as a share of a tensor's largest entry: both add up in float32."""


def compare_names(family: ModelFamily, name: str) -> str:
    """Compare names and shapes of a model's tensors with what transformers finds in its files; no weight is read.

    Args:
        family: The family, prepared.
        name: The model's name in the family.

    Returns:
        What was found, in a few words.

    Raises:
        ModelError: If transformers misses a tensor, has no use for one, or can't load the model.
    """
    if family.sources[name].is_adapter:
        return "an adapter: its shapes are the base's"
    if _needs_foreign_code(family, name):
        return "not loaded: its own code may not be run"
    model = _loaded(family, name, device_map="meta")
    _Reading(family, name).compare_shapes(model)
    return f"{len(model.state_dict())} names and shapes are transformers' own"


def compare_values(family: ModelFamily, name: str) -> str:
    """Compare all tensors of a model, and logits on a few tokens, with those of what transformers or PEFT loads.

    Args:
        family: The family, prepared.
        name: The model's name in the family.

    Returns:
        What was found, in a few words.

    Raises:
        ModelError: At the first difference.
    """
    if _needs_foreign_code(family, name):
        return "not loaded: its own code may not be run"
    reading = _Reading(family, name)
    if family.sources[name].is_adapter:
        return reading.compare_sums(_merged(family, name))
    model = _loaded(family, name, dtype=reading.dtype)
    count = reading.compare_tensors(model)
    if not reading.computes_alone:
        return f"{count} tensors are transformers' own; its layers run with the base's settings or vocabulary"
    reading.compare_logits(model)
    return f"{count} tensors and the logits are transformers' own"


def compare_models(family: ModelFamily, *, everything: bool = False) -> dict[str, str]:
    """Compare all models of a family with what transformers loads: names and shapes, and of small ones all values.

    Args:
        family: The family, prepared.
        everything: Compare the values of large models, too.

    Returns:
        What was found of each model, by name.

    Raises:
        ModelError: At the first difference.
    """
    base = family.checkpoints[BASE]
    size = sum(prod(base.shape(name)) * base.dtype(name).itemsize for name in base.keys())  # noqa: SIM118
    compare = compare_values if everything or size <= SMALL else compare_names
    return {name: compare(family, name) for name in family.checkpoints}


class _Reading:
    """What tailorlib reads of one model."""

    def __init__(self, family: ModelFamily, name: str) -> None:
        self.family, self.name = family, name
        self.checkpoint: Checkpoint = family.stored(name)
        row = family.architecture
        self.dtype = self.checkpoint.dtype(f"{row.embeddings[0]}.weight")

    @property
    def computes_alone(self) -> bool:
        """Whether a live model of its layers alone computes what it computes by itself."""
        return self.family.runs_as_itself(self.name)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors by their names in a live model, a layer at a time."""
        row = self.family.architecture
        for i, suffixes in enumerate(self.family.assembly.layer_suffixes):
            prefix = row.layer_prefix(i)
            live = row.live_layer({suffix: self.checkpoint.tensor(prefix + suffix) for suffix in suffixes})
            yield from ((prefix + suffix, tensor) for suffix, tensor in live.items())
        for name in self.family.assembly.outer_names:
            stored = row.stored_name(name)
            if stored in self.checkpoint:
                yield name, self.checkpoint.tensor(stored)

    def compare_shapes(self, model: PreTrainedModel) -> None:
        row, state = self.family.architecture, model.state_dict()
        shapes = {n: tuple(t.shape) for n, t in state.items()}
        for name, shape in row.stored_shapes(shapes).items():
            if name in self.checkpoint and self.checkpoint.shape(name) != shape:
                raise self._other(
                    name, f"has the shape {list(self.checkpoint.shape(name))} instead of {list(shape)}"
                )

    def compare_tensors(self, model: PreTrainedModel) -> int:
        state = dict(model.state_dict())
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is embeddings.weight:
            state.pop(f"{self.family.architecture.head}.weight", None)
        count = len(state)
        for name, ours in self.tensors():
            theirs = state.pop(name, None)
            if theirs is None and name.startswith(f"{self.family.architecture.head}."):
                continue  # a head that the family has, and this model's is its embeddings
            if theirs is None or ours.shape != theirs.shape or not _equal(ours.to(theirs.dtype), theirs):
                raise self._other(name, "differs" if theirs is not None else "is none of them")
        if state:
            raise self._other(next(iter(state)), "is missing")
        return count

    def compare_sums(self, merged: Mapping[str, Tensor]) -> str:
        for name, ours in self.tensors():
            theirs = merged[name]
            gap = float((ours.to(torch.float32) - theirs).abs().max()) if ours.numel() else 0.0
            if not gap <= _ROUNDING * max(1e-6, float(theirs.abs().max())):
                raise self._other(name, f"differs by {gap:.3g} from what PEFT merges")
        return f"{len(merged)} tensors are those that PEFT merges"

    def compare_logits(self, model: PreTrainedModel) -> None:
        family = self.family
        size = min(model.config.vocab_size, family.config.vocab_size)
        ids = torch.randint(size, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
        stitcher = Stitcher(
            family.assembly,
            family.config,
            device=torch.device("cpu"),
            dtype=self.dtype,
            merge_cache_bytes=0,
            trust_remote_code=family.source.trust_remote_code,
        )
        live = stitcher.stitch(Tailoring.whole(self.name, len(family.assembly.layer_suffixes)))
        with torch.inference_mode():
            ours, theirs = live(ids).logits, model(ids).logits
        if not torch.equal(ours, theirs):
            gap = float((ours - theirs).abs().max())
            raise self._other(
                "the logits", f"differ by {gap:.3g}, and the largest is {float(theirs.abs().max()):.3g}"
            )

    def _other(self, what: str, how: str) -> ModelError:
        return ModelError(
            f"The model {self.name!r} is read otherwise than transformers reads it: {what} {how}. "
            "tailorlib, or the row of a model type that a plugin registered, is at fault: please report it."
        )


def _needs_foreign_code(family: ModelFamily, name: str) -> bool:
    return is_own_code(family.config) and not family.sources[name].trust_remote_code


def _loaded(family: ModelFamily, name: str, **settings: Any) -> PreTrainedModel:
    source = family.sources[name]
    config = copy.deepcopy(load_config(source))
    for entry in STORAGE_ENTRIES:
        vars(config).pop(entry, None)
    try:
        with _quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                source.folder,
                config=config,
                output_loading_info=True,
                trust_remote_code=source.trust_remote_code,
                **settings,
            )
    except Exception as error:  # transformers raises many kinds for a folder that it can't load
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"transformers can't load the model {name!r} in {str(source.folder)!r}: {type(error).__name__}: "
            f"{reason}"
        ) from error
    obsolete = re.compile(rf"(^|\.)({family.architecture.obsolete})$")
    wrong = {
        key: sorted(str(n) for n in names if not obsolete.search(str(n)))
        for key, names in info.items()
        if key.endswith("_keys")
    }
    wrong = {key: names for key, names in wrong.items() if names}
    if wrong:
        raise ModelError(f"The model {name!r} in {str(source.folder)!r} doesn't fit itself: {shown(wrong)}.")
    loaded: PreTrainedModel = model.requires_grad_(False).eval()
    return loaded


def _merged(family: ModelFamily, name: str) -> dict[str, Tensor]:
    from peft import PeftModel  # its import takes seconds

    base = _loaded(family, BASE, dtype=torch.float32)
    try:
        with _quiet():
            merged = PeftModel.from_pretrained(base, str(family.sources[name].folder)).merge_and_unload()
    except Exception as error:  # PEFT raises many kinds, too
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"PEFT can't load the adapter {name!r}: {type(error).__name__}: {reason}") from error
    state: dict[str, Tensor] = merged.state_dict()
    return state


def _equal(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors have the same bits: NaN is another model's fault, and told elsewhere."""
    return torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (one, other)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute bars and remarks: what they could tell is checked. No global generator moves."""
    loggers = [logging.getLogger(name) for name in ("transformers", "peft")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
