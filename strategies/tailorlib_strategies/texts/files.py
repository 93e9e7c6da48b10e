"""Texts from files of the user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tailorlib.exceptions import DataError
from tailorlib.text import TextSource


class JSONLines(TextSource):
    """One document per line of a JSON Lines file.

    Args:
        path: The file, in UTF-8: one JSON object per line; empty lines are skipped.
        field: The object's field that holds the text.
        limit: Number of documents to read from the beginning; ``None`` for all.
    """

    def __init__(self, path: str, field: str = "text", limit: int | None = None) -> None:
        self.path, self.field, self.limit = path, field, limit

    def documents(self) -> Sequence[str]:
        """Return the documents that hold more than white space.

        Raises:
            DataError: If the file can't be read, a line is malformed or lacks the field, or all is empty.
        """
        found: list[str] = []
        for number, line in enumerate(_read(self.path).split("\n"), start=1):
            if self.limit is not None and len(found) >= self.limit:
                break
            if line.strip():
                document = self._document(line, number)
                if document.strip():
                    found.append(document)
        if not found:
            raise DataError(f"A text has at least one document, got none in {self.path!r}.")
        return found

    def _document(self, line: str, number: int) -> str:
        where = f"line {number} of {self.path!r}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"Each line is a JSON object; {where} is none: {error}.") from error
        if not isinstance(record, dict):
            raise DataError(f"Each line is a JSON object; {where} is a {type(record).__name__}.")
        if self.field not in record:
            raise DataError(
                f"Each line has the field {self.field!r}; {where} has {', '.join(map(repr, record)) or 'none'}. "
                "Set field to the one that holds the text."
            )
        value = record[self.field]
        if not isinstance(value, str):
            raise DataError(f"The field {self.field!r} is a text; in {where} it is a {type(value).__name__}.")
        return value


class PlainText(TextSource):
    """A plain text file as one document.

    Args:
        path: The file, in UTF-8.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def documents(self) -> Sequence[str]:
        """Return the file's text.

        Raises:
            DataError: If the file can't be read or holds only white space.
        """
        text = _read(self.path)
        if not text.strip():
            raise DataError(f"A text is not empty, got {self.path!r} with nothing but white space.")
        return [text]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"A text file is in UTF-8; {path!r} is not: {error}. Convert it.") from error
    except (OSError, ValueError) as error:  # a ValueError is what a path with a NUL in it gives
        raise DataError(
            f"The text file {path!r} can't be read: {getattr(error, 'strerror', None) or error}."
        ) from error
