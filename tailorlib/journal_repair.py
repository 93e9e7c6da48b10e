"""Finding out what is damaged of a run's record, and keeping all that is not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tailorlib.exceptions import JournalError
from tailorlib.files import replace_file
from tailorlib.journal import FILE_NAME, HEADER_NAME, MAX_LOST, RESCUED_NAME, Journal, journal_lines, read_header
from tailorlib.journal_header import FORMAT_VERSION, JournalHeader
from tailorlib.records import RawLine, RecordError, raw_lines, whole_lines
from tailorlib.run_lock import RunLock

BESIDE = ("samples.jsonl", "deaths.jsonl", "pending.*.jsonl")
"""Files of a run folder whose lines have checksums, beside the journal: what is lost of them is made again."""


@dataclass
class Checked:
    """What was found in a file of lines.

    Args:
        path: The file.
        lines: Number of its sound lines.
        faults: What is damaged, in words.
        remarks: What is worth to be said and no damage.
        content: The file as a repair would write it; ``None`` if it can't be repaired.
        journal: What a repaired journal holds.
    """

    path: Path
    lines: int = 0
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    content: bytes | None = None
    journal: Journal | None = None


def check_journal(directory: Path) -> Checked:
    """Look through the journal of a run, line by line.

    Raises:
        JournalError: If there is none, or it can't be read.
    """
    path = directory / FILE_NAME
    if not path.is_file() and not (directory / RESCUED_NAME).is_file():
        raise JournalError(f"A run folder has a {FILE_NAME}; {str(directory)!r} has none.")
    found = Checked(path)
    if path.is_file():
        _check_lines(found, path)
    else:
        found.faults.append("it is missing")
    _compare_rescued(found, directory)
    return found


def check_lines(path: Path) -> Checked:
    """Look through another file of lines; a repair keeps those that are sound.

    Raises:
        JournalError: If it can't be read.
    """
    found, before, kept = Checked(path), 0, list[bytes]()
    lines, torn = whole_lines(path)
    for line in lines:
        try:
            number, _ = line.data()
            if number <= before:
                raise RecordError(f"it is line {number}, which was there before")
        except RecordError as error:
            found.faults.append(f"line {line.number}: {error}")
        else:
            before = number
            kept.append(line.content + b"\n")
    if torn is not None:
        found.remarks.append(f"the last line is torn ({torn.size:,} bytes); what it held is made again")
    found.lines, found.content = len(kept), b"".join(kept)
    return found


def repair(directory: Path, checked: Checked) -> Path:
    """Write a damaged file anew, from what is sound of it, and return where the damaged one lies.

    Raises:
        JournalError: If a process works in the folder, the file can't be repaired, or the disk doesn't take it.
    """
    if checked.content is None:
        raise JournalError(f"{str(checked.path)!r} can't be repaired: {'; '.join(checked.faults)}.")
    lock = RunLock(directory)
    try:
        backup, number = checked.path.with_name(f"{checked.path.name}.damaged"), 1
        while backup.exists():
            backup, number = checked.path.with_name(f"{checked.path.name}.damaged.{number}"), number + 1
        if checked.path.exists():
            replace_file(backup, checked.path.read_bytes())
        replace_file(checked.path, checked.content)
    except OSError as error:
        raise JournalError(f"{str(checked.path)!r} can't be repaired: {error}.") from error
    finally:
        lock.release()
    return backup


def _check_lines(found: Checked, path: Path) -> None:
    lines, torn = journal_lines(path)
    header = _header(found, path, lines)
    if torn is not None:
        found.remarks.append(f"the last line is torn ({torn.size:,} bytes): what it held is made again")
    if header is None:
        return
    journal, kept = Journal(path, header), [header.line() if header.study else lines[0].content]
    for number, line in _in_order(found, lines, header):
        try:
            if number > journal.place:
                kept.append(journal.lose(number - journal.place))
            journal.take(line)
        except JournalError as error:
            found.faults.append(f"line {line.number}: {error}")
            kept.append(journal.lose())
        else:
            kept.append(line.content)
            found.lines += 1
    found.lines += 1
    found.journal, found.content = journal, b"".join(line + b"\n" for line in kept)


def _in_order(found: Checked, lines: list[RawLine], header: JournalHeader) -> list[tuple[int, RawLine]]:
    """Return the lines behind the header that are as they were written, by their numbers."""
    if header.format != FORMAT_VERSION:  # nothing says where its lines belong: they stay where they are
        return [(0, line) for line in lines[1:]]
    sound: dict[int, RawLine] = {}
    expected, bad = 2, 0  # the next line's number, and how many damaged lines stand where it belongs
    for place, line in enumerate(lines, start=1):
        try:
            number, data = line.data()
            if number == 1 and data.get("kind") == "header":
                if place > 1:
                    raise RecordError("it is the header, which is the first line")
                continue
            if number in sound or number < 2:
                raise RecordError(f"it is line {number}, which was there before")
            if number > len(lines) + MAX_LOST:
                raise RecordError(f"it is line {number} of {len(lines)}")
        except RecordError as error:
            if place > 1:  # the header's fault was told
                found.faults.append(f"line {place}: {error}")
                bad += 1
            continue
        if not expected <= number <= expected + bad:
            found.faults.append(f"line {place}: it is line {number}, and {expected} belongs there")
        lost = data.get("lines", 1) if data.get("kind") == "lost" else 1
        expected, bad = max(expected, number + (lost if type(lost) is int else 1)), 0
        sound[number] = line
    return sorted(sound.items())


def _header(found: Checked, path: Path, lines: list[RawLine]) -> JournalHeader | None:
    try:
        return read_header(lines[0] if lines else None, path)
    except JournalError:
        found.faults.append("line 1: it is no header, as it was written")
    copy = path.with_name(HEADER_NAME)
    with suppress(JournalError):
        return read_header(next(raw_lines(copy), None), copy)
    found.faults.append(f"the copy of the header, {HEADER_NAME}, can't be read either")
    return None


def _compare_rescued(found: Checked, directory: Path) -> None:
    """Take what a process saved whose journal was changed by another, if it holds more."""
    path = directory / RESCUED_NAME
    if not path.is_file():
        return
    saved = Checked(path)
    _check_lines(saved, path)
    if saved.faults or saved.journal is None:
        found.remarks.append(f"{RESCUED_NAME} is damaged, too")
        return
    here = {} if found.journal is None else {trial.number: trial for trial in found.journal.trials}
    there = {trial.number: trial for trial in saved.journal.trials}
    if here.items() <= there.items() and len(here) < len(there):
        found.faults.append(f"{RESCUED_NAME} holds {len(there)} trials, and {FILE_NAME} only {len(here)} of them")
        found.content, found.journal, found.lines = saved.content, saved.journal, saved.lines
    elif there.items() <= here.items():
        found.remarks.append(f"{RESCUED_NAME} holds nothing that {FILE_NAME} lacks; it can be deleted")
    else:
        found.remarks.append(
            f"{RESCUED_NAME} and {FILE_NAME} hold different trials, of two processes; keep the one you want"
        )
