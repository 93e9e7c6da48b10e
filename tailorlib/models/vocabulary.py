"""Vocabularies: candidates whose embeddings and head have other rows than the base's, aligned by token.

Fine-tunes add tokens, pad their vocabulary to a multiple of 64, or order it anew. A tailored model always has the
base's vocabulary: the row of a base token is the candidate's row of the same token, and the base's own row where
the candidate lacks the token. Rows behind the last token (padding) stay the base's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from tailorlib.exceptions import ModelError, shown
from tailorlib.models.architecture import Architecture
from tailorlib.models.checkpoint import Checkpoint
from tailorlib.models.own_code import has_own_tokenizer
from tailorlib.models.source import ModelSource

TOKENIZER = "tokenizer.json"
_ADDED = "added_tokens.json"
_SLOW = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")
_SHARED_AT_LEAST = 0.5
_CHUNK = 4096


@dataclass(frozen=True)
class Member:
    """A model of a family, before it is one.

    Args:
        checkpoint: Its tensors.
        config: Its transformers config.
        source: Where its tokenizer lies.
    """

    checkpoint: Checkpoint
    config: Any
    source: ModelSource


class AlignedCheckpoint(Checkpoint):
    """A candidate whose embeddings and head have the rows of the base's vocabulary.

    Rows are put together when a tensor is asked for, and not kept. All other tensors are the candidate's.

    Args:
        candidate: The candidate's tensors.
        base: The base's tensors.
        names: The tensors with one row per token: their names in the base, and which of the candidate's they are
            (a tied candidate's head is its embeddings).
        rows: For each of the base's rows the candidate's row, or -1 for the base's own: int64 [base's rows].
    """

    def __init__(self, candidate: Checkpoint, base: Checkpoint, names: Mapping[str, str], rows: Tensor) -> None:
        self.candidate, self.base, self.names, self.rows = candidate, base, dict(names), rows
        self._own = (rows < 0).nonzero().flatten()

    def keys(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return tuple(sorted({*self.candidate.keys(), *self.names}))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        if name not in self.names:
            return self.candidate.shape(name)
        return (len(self.rows), *self.candidate.shape(self.names[name])[1:])

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's data type: the candidate's, or one that holds the base's rows exactly too."""
        if name not in self.names:
            return self.candidate.dtype(name)
        theirs = self.candidate.dtype(self.names[name])
        return torch.promote_types(theirs, self.base.dtype(name)) if len(self._own) else theirs

    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU, not to be modified; a new one if its rows are the vocabulary's."""
        if name not in self.names:
            return self.candidate.tensor(name)
        aligned = torch.empty(self.shape(name), dtype=self.dtype(name))
        theirs = self.candidate.tensor(self.names[name])  # [candidate's rows, ...]
        for at in range(0, len(aligned), _CHUNK):
            aligned[at : at + _CHUNK] = theirs[self.rows[at : at + _CHUNK].clamp(min=0)]
        del theirs  # one source at a time: a private read takes as much memory as the result
        if len(self._own):
            aligned[self._own] = self.base.tensor(name)[self._own].to(aligned.dtype)
        return aligned

    def origin(self, name: str) -> tuple[Checkpoint, str]:
        """Return the checkpoint that really holds a tensor: this one for the vocabulary's."""
        return (self, name) if name in self.names else self.candidate.origin(name)

    def file_bytes(self) -> int:
        """Return the bytes of the candidate's files."""
        return self.candidate.file_bytes()

    def where(self, name: str) -> str:
        """Return where a tensor is stored; two places if some rows are the base's."""
        if name not in self.names:
            return self.candidate.where(name)
        theirs = self.candidate.where(self.names[name])
        return f"{theirs} and {self.base.where(name)}, aligned by token" if len(self._own) else theirs

    def __contains__(self, name: str) -> bool:
        return name in self.names or name in self.candidate


def align(base: Member, candidate: Member, architecture: Architecture) -> tuple[Checkpoint, str]:
    """Return a candidate's tensors with the rows of the base's vocabulary, and what that changes, for a warning.

    The candidate itself is returned where its vocabulary is the base's: where both have the same number of rows,
    and the same tokenizer files or the same ids of all tokens. Without a tokenizer, rows of the same number are
    taken to be the same. No weight is read.

    Args:
        base: The base model.
        candidate: The candidate, of the same architecture. If it has a head of its own, the base has one too.
        architecture: Where the parts of both live.

    Raises:
        ModelError: If its vocabulary can't be matched: it has other rows and no tokenizer, or too few of the
            base's tokens.
    """
    embeddings, *heads = _by_token(architecture, base.config)
    names = {} if _same_head(base, candidate, heads) else {heads[0]: embeddings}
    notes = [f"no {heads[0]!r}: its embeddings are its head"] if names else []
    both = [n for n in (embeddings, *heads) if n in base.checkpoint and n in candidate.checkpoint]
    if embeddings not in both or any(not candidate.checkpoint.shape(name) for name in both):
        return candidate.checkpoint, ""  # what lacks a tensor, or has a single number, is refused with its name
    ours, theirs = base.checkpoint.shape(embeddings)[0], _size(candidate, both)
    rows, found = torch.arange(ours), None
    if ours != theirs or not _same_files(base.source.folder, candidate.source.folder):
        found = _match(base, candidate, ours, theirs)
    if found is not None:
        rows, note = found
        names = {**{name: name for name in both}, **names}
        notes.append(note)
    if not names:
        return candidate.checkpoint, ""
    return AlignedCheckpoint(candidate.checkpoint, base.checkpoint, names, rows), " and ".join(notes)


def read_vocabulary(source: ModelSource) -> dict[str, int]:
    """Return the id of each token of a model's tokenizer; empty if there is none.

    ``tokenizer.json`` is read as it is; tokenizers of other formats are loaded with transformers.

    Raises:
        ModelError: If there is one that can't be read.
    """
    folder, trusted = source.folder, source.trust_remote_code
    try:
        if (folder / TOKENIZER).is_file():
            return _fast_vocabulary(folder)
        if any((folder / name).is_file() for name in _SLOW) or (trusted and has_own_tokenizer(folder)):
            loaded: dict[str, int] = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted).get_vocab()
            return loaded
    except Exception as error:  # transformers raises many kinds for a tokenizer that it can't read
        raise ModelError(
            f"The tokenizer in {str(folder)!r} can't be read: {type(error).__name__}: {str(error)[:300]}. Correct "
            "it, or remove it if the model has the base's."
        ) from error
    return {}


def _by_token(architecture: Architecture, config: Any) -> tuple[str, ...]:
    """Return the names of the tensors with one row per token: the embeddings, and the head's if it isn't tied."""
    head = () if config.tie_word_embeddings else ("weight", "bias")
    return (f"{architecture.embeddings[0]}.weight", *(f"{architecture.stored_head}.{n}" for n in head))


def _same_head(base: Member, candidate: Member, heads: list[str]) -> bool:
    """Say whether both have a head of their own, or both have none."""
    return bool(candidate.config.tie_word_embeddings) == (not heads)


def _size(candidate: Member, names: Iterable[str]) -> int:
    sizes = {name: candidate.checkpoint.shape(name)[0] for name in names}
    size = next(iter(sizes.values()))
    sizes["vocab_size in its config"] = getattr(candidate.config, "vocab_size", size)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {n}" for name, n in sizes.items())
        raise ModelError(f"A candidate's vocabulary has one size; it has several ({listed}). Fetch it again.")
    return size


def _match(base: Member, candidate: Member, ours: int, theirs: int) -> tuple[Tensor, str] | None:
    """Return the rows and what they change, or ``None`` if the vocabularies are the same.

    Args:
        base: The base model.
        candidate: The candidate.
        ours: Rows of the base's embeddings.
        theirs: Rows of the candidate's.
    """
    others = read_vocabulary(candidate.source)
    tokens = read_vocabulary(base.source) if others else {}
    if ours == theirs and not tokens:
        return None
    for folder, found in ((candidate.source.folder, others), (base.source.folder, tokens)):
        if not found:
            raise ModelError(
                f"Its vocabulary has {theirs} rows, the base's {ours}. They are matched by token, and "
                f"{str(folder)!r} has no tokenizer: neither {TOKENIZER} nor {', '.join(_SLOW[:4])}. Put the "
                "model's own tokenizer there, or leave the candidate out."
            )
    tokens, others = ({t: i for t, i in v.items() if i < n} for v, n in ((tokens, ours), (others, theirs)))
    if ours == theirs and tokens == others:
        return None
    lacking, dropped = ([t for t in a if t not in b] for a, b in ((tokens, others), (others, tokens)))
    shared = [t for t in tokens if t in others]
    if len(shared) < _SHARED_AT_LEAST * len(tokens) or not shared:
        raise ModelError(
            f"Its tokenizer is of another family: it has {len(shared)} of the base's {len(tokens)} tokens, and at "
            f"least half are needed. It lacks {_examples(lacking)} and has {_examples(dropped)} of its own. Leave "
            "it out."
        )
    rows = torch.full((ours,), -1)
    rows[[tokens[t] for t in shared]] = torch.tensor([others[t] for t in shared])
    counts = [f"{len(shared)} of the base's {len(tokens)} tokens are mapped"]
    counts += [f"{len(lacking)} that it lacks keep the base's rows ({_examples(lacking)})"] if lacking else []
    counts += [f"{len(dropped)} of its own are dropped ({_examples(dropped)})"] if dropped else []
    return rows, f"a vocabulary of {theirs} rows (base: {ours}), aligned by token: {', '.join(counts)}"


def _examples(tokens: list[str]) -> str:
    return ", ".join(shown(token[:40]) for token in tokens[:5]) + (", ..." if len(tokens) > 5 else "")


def _same_files(one: Path, other: Path) -> bool:
    """Say whether two folders' files define the same tokens; other settings of the tokenizers don't count."""
    names = (TOKENIZER, _ADDED) if (one / TOKENIZER).is_file() else (TOKENIZER, _ADDED, *_SLOW)
    if not all(_same_file(one / name, other / name) for name in names):
        return False
    try:
        return _configured(one) == _configured(other)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # whoever reads the vocabularies then says what is wrong


def _same_file(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return one.is_file() == other.is_file()
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def _fast_vocabulary(folder: Path) -> dict[str, int]:
    data = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    pieces = data["model"]["vocab"]
    tokens = {piece[0]: i for i, piece in enumerate(pieces)} if isinstance(pieces, list) else dict(pieces)
    tokens |= {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    legacy = json.loads((folder / _ADDED).read_text(encoding="utf-8")) if (folder / _ADDED).is_file() else {}
    tokens = {**legacy, **_configured(folder), **tokens}
    wrong = next((t for t, i in tokens.items() if not isinstance(t, str) or type(i) is not int or i < 0), None)
    if wrong is not None:
        raise ValueError(f"the id of {shown(wrong)} is {shown(tokens[wrong])}")
    return tokens


def _configured(folder: Path) -> dict[str, int]:
    """Return the ids of the tokens that ``tokenizer_config.json`` adds."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {token["content"]: int(i) for i, token in config.get("added_tokens_decoder", {}).items()}
