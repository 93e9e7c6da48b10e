"""Splits that no document crosses: a piece of text belongs to a split by the SHA-256 of its name alone."""

from __future__ import annotations

import hashlib
from typing import Literal

from tailorlib.exceptions import DataError

Split = Literal["train", "search", "test"]
"""Fine-tuning sees ``train``, a search's fitness ``search``, and the final comparison ``test``."""

SHARES: dict[Split, float] = {"train": 0.6, "search": 0.2, "test": 0.2}
"""The part of all text that each split is given."""


def position(name: str) -> float:
    """Return a number in [0, 1) that is spread evenly over names and the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def split_of(name: str) -> Split:
    """Return the split that a name falls into."""
    here = position(name)
    if here < SHARES["train"]:
        return "train"
    return "search" if here < SHARES["train"] + SHARES["search"] else "test"


def check_split(split: str) -> Split:
    """Return ``split`` if it is one.

    Raises:
        DataError: Otherwise.
    """
    for known in SHARES:
        if split == known:
            return known
    raise DataError(f"A text has the splits {', '.join(SHARES)}, got {split!r}.")


def check_count(count: int) -> int:
    """Return ``count`` if it is positive.

    Raises:
        DataError: Otherwise.
    """
    if count < 1:
        raise DataError(f"A text has at least one document, got count={count}.")
    return count


def pack(pieces: list[str], *, low: int, high: int) -> list[str]:
    """Join neighbouring pieces into documents of ``low`` to ``high`` characters.

    A piece longer than ``high`` is cut at the end of a line; a rest shorter than ``low`` is dropped.
    """
    documents: list[str] = []
    current = ""
    for piece in pieces:
        if len(current) + len(piece) > high:
            if len(current) >= low:
                documents.append(current)
                current = piece
            else:  # too short to stand alone: take what fits of the next piece
                current += piece
        else:
            current += piece
        if len(current) > high:
            end = current.rfind("\n", 0, high) + 1
            documents.append(current[: end or high])
            current = ""
    if len(current) >= low:
        documents.append(current)
    return [d.strip("\n") + "\n" for d in documents]
