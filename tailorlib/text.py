"""TextSource: where documents for perplexity, calibration and fine-tuning come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from tailorlib.guards import Check, Guarded, gives_all
from tailorlib.registry import Registry


class TextSource(Guarded, ABC):
    """A fixed, ordered list of documents: the same on every call."""

    _guards: ClassVar[Mapping[str, Check]] = {"documents": gives_all(str, "texts")}

    @abstractmethod
    def documents(self) -> Sequence[str]:
        """Return the documents.

        Raises:
            DataError: If there are none, or they can't be read.
        """


TEXTS: Registry[TextSource] = Registry(TextSource, "tailorlib.texts")
