"""The checks of a verification: each says in a few words what it found, or raises what differs and by how much."""

from __future__ import annotations

import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tailorlib.exceptions import ModelError, shown
from tailorlib.export.export import exported_config, tensor_specs, tensors
from tailorlib.models.architecture import PERIODS
from tailorlib.models.chat import ROLES
from tailorlib.models.checkpoint import SafetensorsCheckpoint
from tailorlib.models.family import ModelFamily
from tailorlib.models.precision import dtype_name
from tailorlib.models.reading import private_reads
from tailorlib.models.reference import compare_models
from tailorlib.models.stitching import Stitcher
from tailorlib.operation import is_finite
from tailorlib.tailoring import Tailoring

LENGTHS = (5, 32, 64)
"""Lengths of the token sequences that are compared, and one that is longer than a short sliding window."""
LONGEST = 1200
PROMPT, NEW_TOKENS = 12, 16
ROUNDING = 1e-2
"""How far a step's logits may be apart with a KV cache and without, as a share of the largest logit: both add up
the same numbers in another order. A layer that reads another layer's cache is off by much more."""
_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "def f(x):\n    return x + 1\n",
    "Größe, 東京, naïve — ok?",
)
_VARYING = ("transformers_version",)


class DifferenceError(Exception):
    """What a check found to be other than it should be."""


@dataclass(frozen=True)
class Subject:
    """What is verified: a folder, and what it was exported from."""

    family: ModelFamily
    tailoring: Tailoring
    folder: Path
    device: torch.device
    _loaded: dict[torch.dtype, PreTrainedModel] = field(default_factory=dict)

    @cached_property
    def stored(self) -> torch.dtype:
        """The data type of most of the exported weights."""
        return exported_config(self.family, self.tailoring).dtype  # type: ignore[no-any-return]

    def live(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return the live model in a data type, whatever the family computes in, and never quantised."""
        stitcher = Stitcher(
            self.family.assembly,
            self.family.config,
            device=self.device,
            dtype=dtype,
            merge_cache_bytes=0,
            generation_folder=self.family.generation_folder,
            trust_remote_code=self.family.source.trust_remote_code,
        )
        return stitcher.stitch(self.tailoring)

    def reloaded(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return the exported model in a data type, as transformers loads it; the last one is kept."""
        if dtype in self._loaded:
            return self._loaded[dtype]
        self._loaded.clear()
        try:
            with _quiet():
                model, info = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    dtype=dtype,
                    output_loading_info=True,
                    trust_remote_code=self.family.source.trust_remote_code,
                )
        except Exception as error:  # transformers raises many kinds for a folder that it can't load
            raise DifferenceError(f"transformers can't load it: {type(error).__name__}: {error}") from error
        wrong = {key: sorted(map(str, names)) for key, names in info.items() if names and key.endswith("_keys")}
        if wrong:
            raise DifferenceError(f"transformers reports {shown(wrong)}")
        self._loaded[dtype] = model.to(self.device).requires_grad_(False).eval()
        return self._loaded[dtype]


def _weights(subject: Subject) -> str:
    try:
        found = SafetensorsCheckpoint(subject.folder)
    except ModelError as error:
        raise DifferenceError(str(error).rstrip(".")) from error
    specs = {spec.name: spec for spec in tensor_specs(subject.family, subject.tailoring)}
    missing, surplus = sorted(specs.keys() - set(found.keys())), sorted(set(found.keys()) - specs.keys())
    if missing or surplus:
        raise DifferenceError(f"the files lack {shown(missing)} and have {shown(surplus)} more")
    with private_reads():
        for name, made in tensors(subject.family, subject.tailoring, subject.device):
            if found.shape(name) != specs[name].shape or found.dtype(name) != specs[name].dtype:
                raise DifferenceError(
                    f"{name!r} is {found.dtype(name)} {list(found.shape(name))} instead of {specs[name].dtype} "
                    f"{list(specs[name].shape)}"
                )
            _compare(name, found.tensor(name), made.cpu())
    size = sum(spec.nbytes for spec in specs.values())
    return f"{len(specs)} tensors, {size / 1e6:,.1f} MB: finite, and the tailoring's to the bit"


def _compare(name: str, found: Tensor, made: Tensor) -> None:
    if found.is_floating_point() and not is_finite(found):
        raise DifferenceError(f"{name!r} holds NaN or Inf at {int((~torch.isfinite(found)).sum())} entries")
    if torch.equal(_bytes(found), _bytes(made)):
        return
    width = found.dtype.itemsize
    other = (_bytes(found) != _bytes(made)).view(-1, width).any(dim=1)
    gap = (found.flatten()[other].double() - made.flatten()[other].double()).abs().max()
    raise DifferenceError(
        f"{name!r} is not the tailoring's at {int(other.sum())} of {found.numel()} entries, by up to {gap:.3g}"
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _config(subject: Subject) -> str:
    with tempfile.TemporaryDirectory() as folder:
        exported_config(subject.family, subject.tailoring).save_pretrained(folder)
        expected = _read_config(Path(folder))
        _same_config(_read_config(subject.folder), expected, "the tailoring's config has")
        model = subject.reloaded(subject.stored)
        with _quiet():
            model.save_pretrained(folder, state_dict={})  # the config alone
        found, written = _read_config(subject.folder), _read_config(Path(folder))
        for config in (found, written):
            # transformers writes a class's own file, where the base may name another one, and a default period
            for name in ("auto_map", *PERIODS):
                config.pop(name, None)
        _same_config(found, written, "transformers writes")
    return f"{expected['num_hidden_layers']} layers; what transformers writes after loading it"


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DifferenceError(f"config.json can't be read: {error}") from error
    return {key: value for key, value in config.items() if key not in _VARYING}


def _same_config(found: Mapping[str, Any], expected: Mapping[str, Any], whose: str) -> None:
    keys = sorted(k for k in found.keys() | expected.keys() if found.get(k, ...) != expected.get(k, ...))
    if keys:
        listed = "; ".join(
            f"{k}={shown(found.get(k, 'nothing'))} where {whose} {shown(expected.get(k, 'nothing'))}"
            for k in keys[:3]
        )
        raise DifferenceError(f"config.json differs in {len(keys)} entries: {listed}")


def _parameters(subject: Subject) -> str:
    model = subject.reloaded(subject.stored)
    found, expected = model.num_parameters(), subject.family.num_parameters(subject.tailoring)
    if found != expected:
        raise DifferenceError(f"the reloaded model has {found:,} parameters instead of {expected:,}")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied != bool(subject.family.config.tie_word_embeddings):
        raise DifferenceError(
            f"the head is {'' if tied else 'not '}tied to the embeddings, and the family's is not so"
        )
    return f"{found:,}; the head is {'the embeddings' if tied else 'its own'}"


def _logits(subject: Subject, dtype: torch.dtype) -> str:
    sequences = list(_sequences(subject))
    live = [_run(model, ids) for model in [subject.live(dtype)] for ids in sequences]
    model = subject.reloaded(dtype)
    for ids, expected in zip(sequences, live, strict=True):
        found = _run(model, ids)
        if not torch.equal(found, expected):
            gap, largest = (found - expected).abs().max(), expected.abs().max()
            raise DifferenceError(
                f"on {ids.shape[1]} tokens they differ by up to {gap:.3g} from the live model's, whose largest is "
                f"{largest:.3g} ({dtype_name(dtype)})"
            )
    lengths = ", ".join(str(ids.shape[1]) for ids in sequences)
    return f"{dtype_name(dtype)}, {lengths} tokens: the live model's to the bit"


def _float32_logits(subject: Subject) -> str:
    return "as stored" if subject.stored == torch.float32 else _logits(subject, torch.float32)


def _run(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(ids).logits.cpu()
    return logits


def _sequences(subject: Subject) -> Iterator[Tensor]:
    """Yield batches [1, length] of random tokens, the same ones at every call."""
    config = subject.family.config
    generator = torch.Generator().manual_seed(0)
    lengths = set(LENGTHS)
    window = getattr(config, "sliding_window", None)
    if window and window + 16 <= LONGEST:
        lengths.add(window + 16)
    for length in sorted(min(n, int(config.max_position_embeddings)) for n in lengths):
        yield torch.randint(config.vocab_size, (1, length), generator=generator).to(subject.device)


def _generation(subject: Subject) -> str:
    model = subject.reloaded(torch.float32)
    ids = torch.randint(model.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    ids = ids.to(subject.device)
    try:
        with _quiet():
            cached, plain = (
                model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use, **settings)
                for use in (True, False)
            )
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise DifferenceError(f"it fails: {type(error).__name__}: {error}") from error
    worst = 0.0
    for step, (a, b) in enumerate(zip(cached.logits, plain.logits, strict=True), start=1):
        gap, largest = float((a - b).abs().max()), float(b.abs().max())
        worst = max(worst, gap / largest)
        if not gap <= ROUNDING * largest:
            raise DifferenceError(
                f"at token {step} the logits differ by {gap:.3g} (the largest is {largest:.3g}) with a KV cache"
            )
        if cached.sequences[0, PROMPT + step - 1] != plain.sequences[0, PROMPT + step - 1]:
            return f"{step - 1} tokens equal; then two are equally likely up to rounding ({worst:.0e})"
    return f"{NEW_TOKENS} tokens equal with a KV cache and without; logits within {worst:.0e} of the largest"


def _tokenizer(subject: Subject) -> str:
    try:
        original = subject.family.tokenizer
    except ModelError:
        return "the base has none"
    try:
        found = AutoTokenizer.from_pretrained(
            subject.folder, trust_remote_code=subject.family.source.trust_remote_code
        )
    except Exception as error:  # transformers raises many kinds for a tokenizer that it can't load
        raise DifferenceError(f"transformers can't load it: {type(error).__name__}: {error}") from error
    for text in _TEXTS:
        ids, expected = found(text)["input_ids"], original(text)["input_ids"]
        if ids != expected or found.decode(ids) != original.decode(expected):
            raise DifferenceError(f"{text!r} becomes {shown(ids)} instead of {shown(expected)}")
    for name in ("chat_template", *ROLES):
        if getattr(found, name, None) != getattr(original, name, None):
            raise DifferenceError(f"its {name} is {shown(getattr(found, name, None))}")
    chat = "" if subject.family.chat is None else f", the chat template {subject.family.chat.name}'s"
    return f"{len(found):,} tokens; ids and texts are the base's{chat}"


def _models(subject: Subject) -> str:
    """Compare the family's whole models with transformers' reading: all other checks use tailorlib's own."""
    found = compare_models(subject.family, everything=True)
    return "; ".join(f"{name}: {what}" for name, what in found.items())


CHECKS: Mapping[str, Callable[[Subject], str]] = {
    "whole models": _models,
    "weights": _weights,
    "config": _config,
    "parameters": _parameters,
    "logits, as stored": lambda subject: _logits(subject, subject.stored),
    "logits, float32": _float32_logits,
    "generation": _generation,
    "tokenizer": _tokenizer,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute progress bars and remarks of transformers: what they could tell is checked."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
