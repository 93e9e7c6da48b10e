"""Files of JSON lines that say when they were altered: each line has its number and a checksum.

A line's checksum covers its own bytes, its number included, and nothing else: a damaged line makes no other one
doubtful, and a line that was moved or copied is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorlib.exceptions import JournalError, shown

MAX_LINE = 64 << 20
"""Most bytes of a line."""
MAX_LEVELS = 100
"""Most levels of a line's data."""
_MARK, _END = b',"sum":"', b'"}'
_TAIL = len(_MARK) + 16 + len(_END)


class RecordError(JournalError):
    """A line that can't be written or read."""


class DisturbedError(JournalError):
    """A file that somebody else changed while this process appends to it."""


@dataclass(frozen=True)
class RawLine:
    """A line as it stands in a file.

    Args:
        number: Where it stands, from 1.
        start: Number of bytes before it.
        content: Its bytes, without the newline; none if it is too long to be read.
        ended: Whether a newline follows.
        size: Number of bytes, the newline included.
    """

    number: int
    start: int
    content: bytes
    ended: bool
    size: int

    @property
    def torn(self) -> bool:
        """Whether a process or a machine was stopped while it wrote this line: it has no proper end."""
        return self.size <= MAX_LINE and not (self.ended and _sum_of(self.content))

    def data(self) -> tuple[int, dict[str, Any]]:
        """Return the line's number and data.

        Raises:
            RecordError: If the line isn't as it was written.
        """
        if self.size > MAX_LINE:
            raise RecordError(f"it has {self.size:,} bytes, and at most {MAX_LINE:,} are read")
        return decode(self.content)


def encode(data: Mapping[str, Any], number: int) -> bytes:
    """Return a line, without the newline.

    Args:
        data: Plain data, without the names ``line`` and ``sum``.
        number: The line's number in its file, from 1.

    Raises:
        RecordError: If JSON can't hold the data, or the line is too long.
    """
    try:
        body = json.dumps({**data, "line": number}, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"A line holds plain data; this can't be written: {error}.") from error
    line = body[:-1] + _MARK + _checksum(body) + _END
    if len(line) >= MAX_LINE:
        raise RecordError(f"A line has at most {MAX_LINE:,} bytes; this one would have {len(line):,}.")
    return line


def decode(line: bytes) -> tuple[int, dict[str, Any]]:
    """Return a line's number and data.

    Raises:
        RecordError: If the line isn't as it was written.
    """
    found = _sum_of(line)
    if not found:
        raise RecordError("it has no checksum at its end")
    body = line[:-_TAIL] + b"}"
    if _checksum(body) != found:
        raise RecordError("its checksum is another")
    data = parse(body)
    number = data.pop("line", None)
    if type(number) is not int or number < 1:
        raise RecordError(f"its number is {shown(number)}")
    return number, data


def parse(line: bytes) -> dict[str, Any]:
    """Return the mapping that a line of JSON holds.

    Raises:
        RecordError: If it holds none, or one that is too long or too deep.
    """
    if len(line) > MAX_LINE:
        raise RecordError(f"it has more than {MAX_LINE:,} bytes")
    try:
        data = json.loads(line.decode("utf-8"))
        if b"\\u" in line:
            json.dumps(data, ensure_ascii=False).encode("utf-8")  # half a character could not be shown
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise RecordError(f"it is no mapping, but {type(data).__name__}")
    return data


def check_levels(data: object) -> None:
    """Check that data can be walked through level by level.

    Raises:
        RecordError: If it has more than :data:`MAX_LEVELS` levels.
    """
    level = [data]
    for _ in range(MAX_LEVELS):
        level = [
            v for d in level for v in (d.values() if isinstance(d, dict) else d if isinstance(d, list) else ())
        ]
        if not level:
            return
    raise RecordError(f"it has more than {MAX_LEVELS} levels")


def raw_lines(path: Path) -> Iterator[RawLine]:
    """Yield the lines of a file, whatever they are; of one that is too long, no byte is kept.

    Raises:
        JournalError: If the file can't be read.
    """
    start, number = 0, 0
    try:
        with path.open("rb") as file:
            while content := file.readline(MAX_LINE + 1):
                size, number, last = len(content), number + 1, content
                while not last.endswith(b"\n") and (last := file.readline(MAX_LINE)):
                    size, content = size + len(last), b""
                ended = content.endswith(b"\n") or last.endswith(b"\n")
                yield RawLine(number, start, content.removesuffix(b"\n"), ended, size)
                start += size
    except OSError as error:
        raise JournalError(f"{str(path)!r} can't be read: {error}.") from error


def whole_lines(path: Path) -> tuple[list[RawLine], RawLine | None]:
    """Return the lines of a file, and its last one apart if that is torn.

    Raises:
        JournalError: If the file can't be read.
    """
    lines = list(raw_lines(path))
    torn = lines.pop() if lines and lines[-1].torn else None
    return lines, torn


def sound_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the data of all lines that are as they were written, in the order of their numbers; skip the others.

    For files whose lines can be made again.
    """
    before = 0
    if not path.is_file():
        return
    for line in raw_lines(path):
        with suppress(RecordError):
            number, data = line.data()
            if number > before:
                before = number
                yield data


class LineFile:
    """A file that this process alone appends lines to.

    Args:
        path: The file.
        durable: Whether a line is on the disk when :meth:`write` returns, as after a power cut; otherwise it is
            safe from the end of this process alone.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path, self._durable = path, durable
        self.number = 1
        """Number of the next line."""
        self._pid = os.getpid()
        self._known: tuple[int, int, int] | None = None

    def adopt(self, number: int) -> None:
        """Take the file as it is now; the next line has a number."""
        self._known, self.number = self._state(), number

    def resume(self) -> None:
        """Take the file as it is now, if there is one: cut off a torn line, go on behind the last sound one."""
        number = 0
        if self.path.exists():
            lines, torn = whole_lines(self.path)
            if torn is not None:
                cut(self.path, torn.start)
            for line in lines:
                with suppress(RecordError):
                    number = max(number, line.data()[0])
            number = max(number, len(lines))
        self.adopt(number + 1)

    def append(self, data: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            RecordError: If the data makes no line.
            DisturbedError: If somebody else changed the file.
            JournalError: If the disk doesn't take it.
        """
        self.write(encode(data, self.number))

    def write(self, line: bytes) -> None:
        """Add the line of the next number, made by :func:`encode`.

        Raises:
            DisturbedError: If somebody else changed the file.
            JournalError: If the disk doesn't take it, or in a process that was forked from the file's own; the
                file is as it was.
        """
        if os.getpid() != self._pid:
            raise JournalError(f"{str(self.path)!r} is written by one process, and not by those that it forks.")
        if self._state() != self._known:
            raise DisturbedError(self._disturbance())
        before = 0 if self._known is None else self._known[2]
        try:
            with self.path.open("ab") as file:
                file.write(line + b"\n")
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError), self.path.open("r+b") as file:
                file.truncate(before)
            raise JournalError(f"{str(self.path)!r} can't be written: {error}.") from error
        self.adopt(self.number + 1)

    def clear(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
        self._known, self.number = None, 1

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size

    def _disturbance(self) -> str:
        now, before = self._state(), self._known
        if now is None or before is None:
            what = "was deleted or moved away" if now is None else "was put there"
        elif now[:2] != before[:2]:
            what = "was replaced by another file"
        else:
            what = f"has {now[2]:,} bytes where this process left {before[2]:,}"
        return f"{str(self.path)!r} {what} while this process works on it."


def cut(path: Path, size: int) -> None:
    """Cut a file off behind a number of bytes, on the disk.

    Raises:
        JournalError: If it can't be written.
    """
    try:
        with path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())
    except OSError as error:
        raise JournalError(f"{str(path)!r} can't be written: {error}.") from error


def _sum_of(line: bytes) -> bytes:
    """Return the checksum at the end of a line, or nothing."""
    tail = line[-_TAIL:]
    found = tail[len(_MARK) : -len(_END)]
    proper = tail.startswith(_MARK) and tail.endswith(_END) and set(found) <= set(b"0123456789abcdef")
    return found if proper and len(found) == 16 else b""


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8).hexdigest().encode()
