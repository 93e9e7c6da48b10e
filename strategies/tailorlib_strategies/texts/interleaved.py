"""Interleaved: several texts as one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from tailorlib.exceptions import DataError
from tailorlib.text import TextSource


class Interleaved(TextSource):
    """The documents of several texts in turn, one of each: every beginning of it is a fair mixture.

    Args:
        texts: The texts, in the order of their turns; one that runs out is passed over.
    """

    def __init__(self, texts: list[TextSource]) -> None:
        self.texts = tuple(texts)

    def documents(self) -> Sequence[str]:
        """Return the documents of all texts.

        Raises:
            DataError: If there is no text, or one of them has no documents.
        """
        if not self.texts:
            raise DataError("Interleaved needs at least one text, got none.")
        rounds = zip_longest(*(text.documents() for text in self.texts))
        return [document for turn in rounds for document in turn if document is not None]
