"""Data that two fitnesses share, found by fingerprints of what they score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tailorlib.fitness import Fitness

SHINGLE = 256
"""Characters of a shingle, white space not counted: about fifty words of English. Shorter ones are found in texts
of the same pattern, too, such as the problems of one template."""
_NEIGHBOURS = 64
"""Of that many neighbouring shingles one is kept, so that a text of ``SHINGLE + _NEIGHBOURS`` is always found."""
_EXCERPT = 80
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Fingerprint:
    """What stands for one piece of data: a question, or a document that windows are cut from.

    Args:
        digests: Names of its content, the same on every machine; two pieces with a name in common share data.
        excerpt: Its beginning, for messages.
    """

    digests: frozenset[str]
    excerpt: str


@dataclass(frozen=True)
class Overlap:
    """Data of a fitness that another one has, too.

    Args:
        shared: Number of shared pieces: questions, and documents that windows are cut from.
        total: Number of pieces of the second fitness; 0 if it doesn't say what its data is.
        example: Beginning of the first shared piece; empty if there is none.
    """

    shared: int
    total: int
    example: str = ""

    @property
    def share(self) -> float:
        """Part of the second fitness's pieces that are shared, in [0, 1]."""
        return self.shared / self.total if self.total else 0.0


def overlap(a: Fitness, b: Fitness) -> Overlap:
    """Count the pieces of data of ``b`` that ``a`` has, too, after the setup of both.

    Of texts a piece is a document. It is shared if a stretch of it is also in a text of ``a``, wherever either is
    cut. Of tasks a piece is a question with its answers, without the few-shot examples. A fitness that has no
    :attr:`~tailorlib.fitness.Fitness.fingerprints` shares nothing that can be found.
    """
    return shared_pieces(a.fingerprints, b.fingerprints)


def shared_pieces(known: Sequence[Fingerprint], pieces: Sequence[Fingerprint]) -> Overlap:
    """Count the pieces of data that are among others that are known."""
    seen = frozenset[str]().union(*(piece.digests for piece in known))
    shared = [piece for piece in pieces if not seen.isdisjoint(piece.digests)]
    return Overlap(len(shared), len(pieces), shared[0].excerpt if shared else "")


def text_fingerprint(text: str) -> Fingerprint:
    """Return the fingerprint of a text; other line breaks, indentation or capitals don't change it.

    Of the hashes of all stretches of :data:`SHINGLE` characters the least one of each neighbourhood is kept
    (winnowing: Schleimer, Wilkerson and Aiken, "Winnowing: local algorithms for document fingerprinting", SIGMOD
    2003). A text that is shorter has one digest, of the whole.
    """
    bare = "".join(text.split()).casefold()
    if len(bare) < SHINGLE:
        return Fingerprint(frozenset([_digest("text", bare)]), _excerpt(text))
    hashes = _shingles(bare)
    width = min(_NEIGHBOURS, len(hashes))
    least = np.lib.stride_tricks.sliding_window_view(hashes, width).min(axis=-1)
    return Fingerprint(frozenset(f"{value:016x}" for value in np.unique(least).tolist()), _excerpt(text))


def question_fingerprint(context: str, answers: Sequence[str]) -> Fingerprint:
    """Return the fingerprint of a question: its context and answers; white space at their ends doesn't count."""
    parts = [context.strip(), *(answer.strip() for answer in answers)]
    return Fingerprint(frozenset([_digest("question", *parts)]), _excerpt(context or " / ".join(answers)))


def _shingles(text: str) -> NDArray[np.uint64]:
    """Return the hash of each stretch of :data:`SHINGLE` characters, [characters - SHINGLE + 1].

    It is the polynomial of the characters at a fixed base, modulo 2**64, for twice the length at each step: the
    hash of a stretch of 2n is that of its first half times base**n, plus that of its second half.
    """
    hashes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4").astype(np.uint64)
    factor, length = _BASE, 1
    with np.errstate(over="ignore"):
        while length < SHINGLE:
            hashes = hashes[:-length] * factor + hashes[length:]
            factor, length = factor * factor, 2 * length
        # the low bits depend on few characters' low bits alone: mixed (splitmix64) the least is any one
        hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = hashes ^ (hashes >> np.uint64(31))
    return mixed


def _digest(*parts: str) -> str:
    content = "\x1f".join(f"{len(part)}:{part}" for part in parts)  # lengths: no two lists give the same content
    return hashlib.sha256(content.encode("utf-8", errors="surrogatepass")).hexdigest()[:32]


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 3] + "..."
