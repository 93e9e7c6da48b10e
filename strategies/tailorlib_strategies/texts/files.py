"""Texts from files of the user's own."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence

from tailorlib.exceptions import DataError
from tailorlib.files import open_regular, os_reason
from tailorlib.text import TextSource


class JSONLines(TextSource):
    """One document per line of a JSON Lines file.

    Args:
        path: The file, in UTF-8: one JSON object per line; empty lines are skipped.
        field: The object's field that holds the text.
        limit: Number of documents to read from the beginning; ``None`` for all.

    Raises:
        DataError: If the limit is less than one.
    """

    def __init__(self, path: str, field: str = "text", limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise DataError(f"JSONLines.limit is a number of documents of at least 1, got {limit}.")
        self.path, self.field, self.limit = path, field, limit

    def documents(self) -> Sequence[str]:
        """Return the documents that hold more than white space.

        Raises:
            DataError: If the file can't be read, a line is malformed or lacks the field, or all is empty.
        """
        found: list[str] = []
        for number, line in _lines(self.path):
            if line.strip():
                document = self._document(line, number)
                if document.strip():
                    found.append(document)
            if len(found) == self.limit:
                break
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
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise DataError(f"A text is Unicode, got half a character (a lone surrogate) in {where}. Remove it.")
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
        lines = "".join(line for _, line in _lines(self.path, most=MAX_BYTES))
        text = lines.replace("\r\n", "\n").replace("\r", "\n")
        if not text.strip():
            raise DataError(f"A text is not empty, got {self.path!r} with nothing but white space.")
        return [text]


MAX_BYTES = 2**30
"""Longest text file that is read, and longest line of one."""


def _lines(path: str, most: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers, from 1; each is read when it is asked for.

    Args:
        path: The file.
        most: Most bytes of the file.

    Raises:
        DataError: If it is no file, can't be read, or has a line that is too long or no text.
    """
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if most is not None and size > most:
                raise ValueError(f"it has {size:,} bytes and at most {most:,} are read. Cut it, or use JSONLines")
            for number in itertools.count(1):
                line = stream.readline(MAX_BYTES + 1)
                if not line:
                    return
                yield number, _text(line, number, path)
    except (OSError, ValueError) as error:  # a ValueError is what a path with a NUL in it gives
        reason = os_reason(error) if isinstance(error, OSError) else error
        raise DataError(f"The text file {path!r} can't be read: {reason}.") from error


def _text(line: bytes, number: int, path: str) -> str:
    where = f"line {number} of {path!r}"
    if len(line) > MAX_BYTES:
        raise DataError(f"A line of a text has at most {MAX_BYTES:,} bytes; {where} has more. Break it.")
    if b"\0" in line:
        raise DataError(f"A text has no NUL characters; {where} has one. Is it a text file, in UTF-8?")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"A text file is in UTF-8; {where} is not: {error}. Convert it.") from error
