"""A text of one's own: the files of a folder."""

from collections.abc import Sequence
from pathlib import Path

from tailorlib import TextSource
from tailorlib.exceptions import DataError


class TextFolder(TextSource):
    """One document per file, in the order of their names: the same on every call."""

    def __init__(self, path: str, pattern: str = "*.txt") -> None:
        self.path, self.pattern = path, pattern

    def documents(self) -> Sequence[str]:
        """Read the files."""
        found = [file.read_text(encoding="utf-8") for file in sorted(Path(self.path).rglob(self.pattern))]
        if not found:
            raise DataError(f"A text has at least one document; no file in {self.path!r} is {self.pattern!r}.")
        return found
