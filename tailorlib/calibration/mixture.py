"""Calibration text: a mixture of domains, each with a part that nothing is fitted on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailorlib.evaluation.overlap import Fingerprint, text_fingerprint
from tailorlib.evaluation.text import first_tokens, prefix_token
from tailorlib.exceptions import DataError, RecipeError, shown
from tailorlib.models.statistics.collect import calibration_rows
from tailorlib.seeding import numpy_generator
from tailorlib.text import TextSource

_LEAST_ROWS = 8
"""Rows that a domain is laid out in, at least: one of them is held out."""
_ROWS_OF_ONE = 4
"""Rows that one document fills at most, as long as there are others."""
_MOST_HELD = 512
"""Tokens of a domain that are held out, at most."""


@dataclass(frozen=True)
class Calibration:
    """Text that compensation is fitted on: several domains in given shares.

    What a domain shows is what comes back there, and what no domain shows can get worse. So give one for each kind
    of text that the model is for, and for each variant what it was fine-tuned on.

    Args:
        sources: Text by domain.
        written_by: Names of models of the family that write text themselves, each a domain "written by NAME": it
            needs no data, and covers what they know. It is kept in the cache.
        shares: Share of the tokens by domain, in any unit; equal shares by default.
        tokens: Number of tokens of all domains together, those held out included.
        context_length: Length of the rows in tokens that the text is laid out in.
        held_out: Share of each domain's tokens that is not fitted on: settings are chosen on it, and no domain of
            it may get worse.
        seed: Seed of the order of documents.

    Raises:
        RecipeError: If there is no source, a share is of no source or not positive, or a number is out of range.
    """

    sources: dict[str, TextSource] = field(default_factory=dict)
    written_by: list[str] = field(default_factory=list)
    shares: dict[str, float] | None = None
    tokens: int = 65_536
    context_length: int = 512
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        if not self.domains:
            faults.append(
                "calibration.sources names one text or more by its domain, got none. Or name models that write "
                "one: written_by."
            )
        for name, share in (self.shares or {}).items():
            if name not in self.domains:
                faults.append(f"calibration.shares are of its domains {sorted(self.domains)}, got {shown(name)}.")
            elif not (math.isfinite(share) and share > 0):
                faults.append(f"A share of calibration is a positive number, got {shown(name)}: {share}.")
        for name in self.domains if self.shares else ():
            if name not in (self.shares or {}):
                faults.append(f"calibration.shares gives each domain a share, and lacks {shown(name)}.")
        if self.tokens < 1:
            faults.append(f"calibration.tokens is at least 1, got {self.tokens}.")
        if self.context_length < 8:
            faults.append(f"calibration.context_length is at least 8, got {self.context_length}.")
        if not 0 < self.held_out <= 0.5:
            faults.append(f"calibration.held_out is more than 0 and at most 0.5, got {self.held_out}.")
        if faults:
            raise RecipeError(faults)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of all domains: of the texts, and of those that models write."""
        return (*self.sources, *(written(name) for name in self.written_by))

    def tokens_of(self, domain: str) -> int:
        """Return the number of tokens of a domain, those held out included."""
        shares = self.shares or dict.fromkeys(self.domains, 1.0)
        return max(1, round(self.tokens * shares[domain] / math.fsum(shares.values())))


def written(model: str) -> str:
    """Return the name of the domain that a model writes."""
    return f"written by {model}"


@dataclass(frozen=True)
class CalibrationRows:
    """A calibration text as token ids.

    Args:
        fit: Rows to fit on, of all domains.
        held: Rows that are held out, by domain.
        documents: The documents that they are made of, as far as they are used.
    """

    fit: tuple[tuple[int, ...], ...]
    held: Mapping[str, tuple[tuple[int, ...], ...]]
    documents: tuple[tuple[int, ...], ...] = ()

    @property
    def tokens(self) -> int:
        """Number of tokens to fit on; the one that begins a row is not counted."""
        return sum(len(row) - 1 for row in self.fit)

    @property
    def held_tokens(self) -> int:
        """Number of tokens that are held out."""
        return sum(len(row) - 1 for rows in self.held.values() for row in rows)


def fingerprints(rows: CalibrationRows, tokenizer: Any) -> list[Fingerprint]:
    """Return what stands for a calibration text where shared data is looked for."""
    return [text_fingerprint(tokenizer.decode(document)) for document in rows.documents]


def lay_out(
    calibration: Calibration,
    tokenizer: Any,
    longest: int | None,
    write: Callable[[str, int, int], Sequence[tuple[int, ...]]] | None = None,
) -> CalibrationRows:
    """Return a calibration text in rows of tokens: of each domain the first ones, its last rows held out.

    Args:
        calibration: The text.
        tokenizer: The base's.
        longest: Longest row in tokens that the models take, if there is a limit.
        write: Lets a model write, given its name, a number of tokens and the length of a row; without, such
            domains are left out.

    Raises:
        DataError: If a domain has too little text to hold something out.
    """
    fit: list[tuple[int, ...]] = []
    held: dict[str, tuple[tuple[int, ...], ...]] = {}
    used: list[tuple[int, ...]] = []
    most = min(calibration.context_length, longest or 2**31)
    for domain, source in calibration.sources.items():
        wanted = calibration.tokens_of(domain)
        documents = _drawn(source.documents(), tokenizer, wanted, _ROWS_OF_ONE * most, calibration.seed)
        rows = _rows(documents, prefix_token(tokenizer), wanted, most)
        used += map(tuple, documents)
        _share_out(calibration, domain, rows, fit, held)
    for model in calibration.written_by if write is not None else ():
        assert write is not None
        domain = written(model)
        _share_out(calibration, domain, write(model, calibration.tokens_of(domain), most), fit, held)
    return CalibrationRows(tuple(fit), held, tuple(used))


def _share_out(
    calibration: Calibration,
    domain: str,
    rows: Sequence[tuple[int, ...]],
    fit: list[tuple[int, ...]],
    held: dict[str, tuple[tuple[int, ...], ...]],
) -> None:
    """Hold some rows of a domain out, and fit on the others."""
    if len(rows) < 2:
        raise DataError(
            f"The calibration text {domain!r} has {sum(map(len, rows))} tokens: too few to fit on some and "
            "hold out others. Give more text, or leave the domain out."
        )
    share = max(1, round(len(rows) * calibration.held_out))
    number = min(share, max(1, _MOST_HELD // len(rows[0])), len(rows) - 1)
    fit += rows[:-number]
    held[domain] = tuple(rows[-number:])


def _rows(documents: Sequence[Sequence[int]], prefix: int, tokens: int, longest: int) -> list[tuple[int, ...]]:
    """Return documents in rows of one length, shorter ones where there is little text."""
    there = min(tokens, sum(map(len, documents)))
    length = max(8, min(longest, there // _LEAST_ROWS))
    rows = calibration_rows(documents, prefix, tokens, length)
    return [tuple(row) for row in rows if len(row) == length or len(rows) == 1]


def _drawn(documents: Sequence[str], tokenizer: Any, tokens: int, most: int, seed: int) -> list[Sequence[int]]:
    """Return documents as token ids, in a seeded order: beginnings of many, or whole ones if those are too few."""
    order = numpy_generator(seed, "calibration").permutation(len(documents))
    found: list[Sequence[int]] = []
    for limit in (most, tokens):
        found, left = [], tokens
        for i in order:
            found.append(first_tokens(tokenizer, documents[int(i)], min(limit, left)))
            left -= len(found[-1])
            if left <= 0:
                return found
    return found
