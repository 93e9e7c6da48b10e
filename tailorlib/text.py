"""TextSource: where documents for perplexity, calibration and fine-tuning come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tailorlib.registry import Registry


class TextSource(ABC):
    """A fixed, ordered list of documents: the same on every call."""

    @abstractmethod
    def documents(self) -> Sequence[str]:
        """Return the documents.

        Raises:
            DataError: If there are none, or they can't be read.
        """


TEXTS: Registry[TextSource] = Registry(TextSource, "tailorlib.texts")
