"""The study record: append-only JSON lines, one per finished trial, on disk before the next trial begins.

The first line is the header (format, versions, the parts of the recipe that decide the trials, the family's
shape). Then come lines of five kinds: a session (a process began or ended its work), the dense base model's
measurement, a trial, a validation, and what stands for lost lines. Each has a number and a checksum
(:mod:`tailorlib.records`), and what is written has been read back before. A study resumes by replaying the trials.
"""

from __future__ import annotations

import json
import math
import secrets
from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tailorlib.exceptions import JournalError, TailorError, error_text, shown
from tailorlib.files import replace_file
from tailorlib.fitness import Measurement
from tailorlib.journal_header import FORMAT_VERSION, JournalHeader
from tailorlib.plain_data import plain, safe_text
from tailorlib.records import (
    DisturbedError,
    LineFile,
    RawLine,
    RecordError,
    check_levels,
    cut,
    decode,
    encode,
    parse,
    whole_lines,
)
from tailorlib.run_lock import RunLock
from tailorlib.trial import MAX_REASON, Trial

READ_FORMATS = (1, FORMAT_VERSION)
FILE_NAME = "journal.jsonl"
HEADER_NAME = "journal.header.json"
"""A copy of the first line, for the day on which that is damaged."""
RESCUED_NAME = "journal.rescued.jsonl"
"""What a process knew whose journal was changed by another one."""
MAX_LOST = 1_000_000
"""Most lost lines that a line stands for."""


class Journal:
    """An open study record; exclusive to one process.

    Use :meth:`create` or :meth:`open`, and :meth:`close` at the end.
    """

    def __init__(self, path: Path, header: JournalHeader, lock: RunLock | None = None) -> None:
        self.path, self.header = path, header
        self.dense: Measurement | None = None
        self.trials: list[Trial] = []
        """The trials by their numbers; those that are :attr:`lost` are missing."""
        self.validations: dict[int, Measurement] = {}
        """What validation found, by the number of the trial that was the best then."""
        self.sessions: list[dict[str, Any]] = []
        """A mapping for each process that worked on the study: when and where it began, with which versions, how
        many trials there were, and under ``"ended"`` how it ended. One that was killed has none."""
        self.lost: set[int] = set()
        """Numbers of trials whose lines were damaged: a resumed study makes them again."""
        self.recovered: str | None = None
        """What was cut off a torn last line when the journal was opened, or ``None``."""
        self._lock, self._file, self._gap = lock, LineFile(path), 0
        self._file.number = 2

    @classmethod
    def create(cls, directory: Path, header: JournalHeader, beside: Mapping[str, str] | None = None) -> Journal:
        """Start a new record in a folder.

        Args:
            directory: The run folder.
            header: What the trials depend on.
            beside: Texts of other files of the run, by name: where there is a record, they are there, too.

        Raises:
            JournalError: If the folder already has one, or can't be written.
        """
        path = directory / FILE_NAME
        header = replace(header, study=header.study or secrets.token_hex(4))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = RunLock(directory)
            if path.exists():
                lock.release()
                refuse_occupied(directory)
            _write_beside(directory, beside)
            for name in (HEADER_NAME, FILE_NAME):
                replace_file(directory / name, header.line() + b"\n")
        except OSError as error:
            raise JournalError(f"The run folder {str(directory)!r} can't be written: {error}.") from error
        journal = cls(path, header, lock)
        journal._file.adopt(2)
        return journal

    @classmethod
    def open(cls, directory: Path) -> Journal:
        """Open a record to continue it; a torn last line is cut off and kept in :attr:`recovered`.

        Raises:
            JournalError: If there is none, another process holds it, it is of an earlier format, or a line before
                the last is damaged.
        """
        path = directory / FILE_NAME
        if not path.is_file():
            raise JournalError(f"A study is resumed from its run folder; {str(directory)!r} has no {FILE_NAME}.")
        lock = RunLock(directory)
        try:
            journal, torn = cls._load(path, lock)
            if journal.header.format != FORMAT_VERSION:
                raise JournalError(
                    f"{str(path)!r} is of journal format {journal.header.format}, which an earlier version of "
                    f"tailorlib wrote, and a study goes on in format {FORMAT_VERSION}. It can be looked at and "
                    "exported (tailor show, report, export); start a new study in another folder "
                    "(study.directory)."
                )
            if torn is not None:
                cut(path, torn.start)
                journal.recovered = torn.content.decode("utf-8", errors="replace") + "\n" * torn.ended
            journal._file.adopt(journal._file.number)
        except BaseException:
            lock.release()
            raise
        return journal

    @classmethod
    def read(cls, directory: Path, name: str = FILE_NAME) -> Journal:
        """Look into the record of a run, without locking or changing anything; nothing can be appended.

        Args:
            directory: The run folder.
            name: The record's file; another one is a record that a later one started over from.

        Raises:
            JournalError: If there is no journal, or it is damaged before its last line.
        """
        path = directory / name
        if not path.is_file():
            raise JournalError(f"A run folder has a {name}; {str(directory)!r} has none.")
        return cls._load(path)[0]

    @property
    def next_number(self) -> int:
        """Number of the first trial that was never made."""
        return self.trials[-1].number + 1 if self.trials else 0

    def lacks(self, number: int) -> bool:
        """Say whether a trial isn't on record: one that was never made, or that was lost."""
        return number in self.lost or number >= self.next_number

    def begin_session(self, facts: Mapping[str, Any]) -> None:
        """Record that a process begins to work on the study.

        Args:
            facts: Plain data: versions, host, time, number of processes.

        Raises:
            JournalError: If the disk doesn't take it.
        """
        self._append({"kind": "session", "trials": len(self.trials), **facts})

    def end_session(self, how: str, time: str) -> None:
        """Record that the process ends its work.

        Args:
            how: In a few words.
            time: When, in ISO format.

        Raises:
            JournalError: If the disk doesn't take it.
        """
        how = safe_text(how, MAX_REASON)
        self._append({"kind": "session_end", "how": how, "time": time, "trials": len(self.trials)})

    def set_dense(self, dense: Measurement) -> None:
        """Record the dense base model's measurement.

        Raises:
            JournalError: If it can't be recorded, or the disk doesn't take it.
        """
        self._append({"kind": "dense", **asdict(dense)})

    def add_validation(self, trial: int, found: Measurement) -> None:
        """Record what validation found of a trial.

        Raises:
            JournalError: If it can't be recorded, or the disk doesn't take it.
        """
        self._append({"kind": "validation", "trial": trial, **asdict(found)})

    def append(self, trial: Trial) -> None:
        """Record a trial: when this returns, the trial is on disk.

        Args:
            trial: The next trial, or one that was lost. :func:`~tailorlib.trial.as_recorded` gives one that can be
                read back.

        Raises:
            JournalError: If it can't be recorded, or the disk doesn't take it; the record then still ends with the
                trial before.
        """
        if trial.number != self.next_number and trial.number not in self.lost:
            raise JournalError(f"The journal's next trial is {self.next_number}, got {trial.number}.")
        self._append({"kind": "trial", **trial.to_dict()})

    def close(self) -> None:
        """Let other processes open the record."""
        if self._lock is not None:
            self._lock.release()

    def start_over(self, header: JournalHeader, beside: Mapping[str, str] | None = None) -> Journal:
        """Begin a new record in the same folder; this one is kept beside it, as what the new one continues.

        Args:
            header: What the new trials depend on.
            beside: Texts of other files of the run, by name.

        Returns:
            The new record, which has this one's lock.

        Raises:
            JournalError: If the folder can't be written; then this record is what it was.
        """
        folder, number = self.path.parent, 1
        while (kept := self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")).exists():
            number += 1
        header = replace(header, study=secrets.token_hex(4), continues=kept.name)
        try:
            replace_file(kept, self.path.read_bytes())
            _write_beside(folder, beside)
            for name in (FILE_NAME, HEADER_NAME):
                replace_file(folder / name, header.line() + b"\n")
        except OSError as error:
            raise JournalError(f"The run folder {str(folder)!r} can't be written: {error}.") from error
        journal = Journal(self.path, header, self._lock)
        journal._file.adopt(2)
        return journal

    # -- Writing --------------------------------------------------------------------------------------------------

    def _append(self, data: Mapping[str, Any]) -> None:
        """Write a line, if the reader takes it."""
        line = encode({**plain(data, "A line of the journal"), "study": self.header.study}, self._file.number)
        try:
            keep = self._accept(decode(line)[1])
        except TailorError as error:
            raise JournalError(f"{str(self.path)!r} can't keep this: {error}.") from error
        try:
            if self._lock is not None and not self._lock.valid:
                raise DisturbedError(
                    f"The lock of {str(self.path.parent)!r} was deleted or replaced while this process works "
                    "there: another one may work there, too."
                )
            self._file.write(line)
        except DisturbedError as error:
            keep()
            raise JournalError(f"{error} {self._rescue()}") from error
        except JournalError as error:
            folder = self.path.parent
            raise JournalError(f"{error} Nothing is lost: make room and resume with --resume {folder}.") from error
        keep()

    def _rescue(self) -> str:
        """Write what this process knows to a file of its own, and return what to do with it."""
        path = self.path.with_name(RESCUED_NAME)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, b"".join(line + b"\n" for line in self.lines()))
        except OSError as error:
            return f"Nothing was written to it, and what was found can't be kept in {str(path)!r}: {error}."
        return (
            f"Nothing was written to it; all {len(self.trials)} trials are in {str(path)!r}. See that no other "
            f"process works there, then put them in place with tailor check {path.parent} --repair, and resume."
        )

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, without newlines, of a journal that holds what this one does."""
        yield self.header.line()
        number = 2
        for data in self._contents():
            yield encode({**data, "study": self.header.study}, number)
            number += data.get("lines", 1)

    def _contents(self) -> Iterator[dict[str, Any]]:
        for session in self.sessions:
            yield {"kind": "session", **{key: value for key, value in session.items() if key != "ended"}}
            if "ended" in session:
                yield {"kind": "session_end", **session["ended"]}
        if self.dense is not None:
            yield {"kind": "dense", **asdict(self.dense)}
        expected = 0
        for trial in self.trials:
            if trial.number > expected:
                yield {"kind": "lost", "lines": trial.number - expected}
            expected = trial.number + 1
            yield {"kind": "trial", **trial.to_dict()}
        for number, found in self.validations.items():
            yield {"kind": "validation", "trial": number, **asdict(found)}

    # -- Reading --------------------------------------------------------------------------------------------------

    @classmethod
    def _load(cls, path: Path, lock: RunLock | None = None) -> tuple[Journal, RawLine | None]:
        lines, torn = journal_lines(path)
        journal = cls(path, read_header(lines[0] if lines else None, path), lock)
        for line in lines[1:]:
            try:
                journal.take(line)
            except JournalError as error:
                raise JournalError(
                    f"{str(path)!r} is damaged in line {line.number}: {error}. {remedy(path)}"
                ) from error
        return journal, torn

    def take(self, line: RawLine) -> None:
        """Take in a line as the next one of the file.

        Raises:
            JournalError: If it isn't as it was written, or can't follow on those before.
        """
        try:
            if self.header.format == FORMAT_VERSION:
                number, data = line.data()
                if number != self._file.number:
                    raise JournalError(f"it is line {number}, and {self._file.number} belongs there")
                if data.get("study") != self.header.study:
                    raise JournalError("it is of another study")
            else:
                data = parse(line.content)
            keep = self._accept(data)
        except JournalError:
            raise
        except Exception as error:  # whatever a damaged line breaks, the remedy is the same
            raise JournalError(error_text(error) if isinstance(error, TailorError) else repr(error)) from error
        self._file.number += data["lines"] if data["kind"] == "lost" else 1
        keep()

    def lose(self, lines: int = 1) -> bytes:
        """Take in that the next lines of the file are lost, and return the line that stands for them.

        Raises:
            JournalError: If they are too many.
        """
        data = {"kind": "lost", "lines": lines}
        self._accept(data)()
        if self.header.format != FORMAT_VERSION:
            return json.dumps(data).encode()
        line = encode({**data, "study": self.header.study}, self.place)
        self._file.number += lines
        return line

    @property
    def place(self) -> int:
        """Number of the next line of the file."""
        return self._file.number

    def _accept(self, data: dict[str, Any]) -> Callable[[], None]:
        """Check what a line says against those before; return what takes it in."""
        kind = data.get("kind")
        if kind == "trial":
            return self._accept_trial(Trial.from_dict(data))
        if kind == "dense":
            if self.dense is not None:
                raise JournalError("a second measurement of the dense model")
            return partial(setattr, self, "dense", _measurement(data))
        if kind == "validation":
            return self._accept_validation(data["trial"], _measurement(data))
        if kind == "session":
            check_levels(data)
            return partial(self.sessions.append, {k: v for k, v in data.items() if k not in ("kind", "study")})
        if kind == "session_end":
            ended = {"how": str(data["how"]), "time": str(data["time"]), "trials": int(data["trials"])}
            unended = bool(self.sessions) and "ended" not in self.sessions[-1]
            return partial(self.sessions[-1].update, ended=ended) if unended else lambda: None
        if kind == "lost":
            if type(data["lines"]) is not int or not 0 < data["lines"] <= MAX_LOST:
                raise JournalError(f"{shown(data['lines'])} lost lines")
            return partial(setattr, self, "_gap", self._gap + data["lines"])
        raise JournalError(f"a line of kind {shown(kind)}")

    def _accept_trial(self, trial: Trial) -> Callable[[], None]:
        expected = self.next_number
        if trial.number not in self.lost and not 0 <= trial.number - expected <= self._gap:
            raise JournalError(f"trial {trial.number} stands where {expected} belongs")

        def keep() -> None:
            if trial.number in self.lost:
                self.lost.remove(trial.number)
            else:
                self.lost |= set(range(expected, trial.number))
                self._gap = 0
            insort(self.trials, trial, key=lambda t: t.number)

        return keep

    def _accept_validation(self, trial: object, found: Measurement) -> Callable[[], None]:
        if type(trial) is not int or not 0 <= trial < self.next_number + self._gap:
            raise JournalError(f"a validation of trial {shown(trial)}, which does not exist")
        if trial in self.validations:
            raise JournalError(f"a second validation of trial {trial}")
        return partial(self.validations.__setitem__, trial, found)


def _measurement(data: Mapping[str, Any]) -> Measurement:
    found = Measurement(data["score"], data["metrics"], data["chance"], data["parts"])
    if not math.isfinite(found.score):
        raise JournalError(f"a score is finite, got {found.score}")
    return found


def read_header(line: RawLine | None, path: Path) -> JournalHeader:
    """Return the header that the first line of a journal holds.

    Raises:
        JournalError: If it holds none, or one of another format.
    """
    if line is None:
        raise JournalError(f"{str(path)!r} has no whole line; a journal begins with its header. {remedy(path)}")
    try:
        data = parse(line.content) if is_legacy(line) else line.data()[1]
        check_levels(data)
        if data["kind"] != "header":
            raise JournalError(f"it is a line of kind {shown(data['kind'])}")
        version = int(data["format"])
        header = JournalHeader.from_dict(data) if version in READ_FORMATS else None
    except Exception as error:  # whatever is wrong with the first line, it is no header
        raise JournalError(
            f"{str(path)!r} has no header in its first line, which is damaged or no journal's: "
            f"{error_text(error) if isinstance(error, TailorError) else repr(error)}. {remedy(path)}"
        ) from error
    if header is None:
        raise JournalError(
            f"{str(path)!r} is of journal format {version}, and this version of tailorlib reads the formats "
            f"{' and '.join(map(str, READ_FORMATS))}. Use the version that wrote it."
        )
    return header


def journal_lines(path: Path) -> tuple[list[RawLine], RawLine | None]:
    """Return the lines of a journal of any format, and its last one apart if that is torn.

    Raises:
        JournalError: If the file can't be read.
    """
    lines, torn = whole_lines(path)
    if torn is not None and is_legacy(lines[0] if lines else torn):
        with suppress(RecordError):
            if torn.ended and parse(torn.content):
                return [*lines, torn], None
    return lines, torn


def is_legacy(line: RawLine) -> bool:
    """Say whether a header is of a format other than this one, whose lines have no checksum."""
    with suppress(RecordError):
        data = parse(line.content)
        return "sum" not in data and type(data.get("format")) is int and data["format"] != FORMAT_VERSION
    return False


def remedy(path: Path) -> str:
    """Return what to do about a journal that is damaged."""
    return (
        f"See what is damaged with tailor check {path.parent}; with --repair it keeps every sound line, and "
        "what is lost is made again when the study is resumed."
    )


def read_trials(directory: Path) -> tuple[Measurement | None, list[Trial]]:
    """Return the dense measurement and the trials of a run; see :meth:`Journal.read`."""
    journal = Journal.read(directory)
    return journal.dense, journal.trials


def refuse_occupied(directory: Path) -> NoReturn:
    """Refuse to start a new study in a folder that has one.

    Raises:
        JournalError: Always, with the ways out.
    """
    raise JournalError(
        f"A new study starts in a folder without one; {str(directory)!r} already holds a journal. Continue it "
        f"with --resume {directory}, move it aside with --study.existing archive, or choose another "
        "--study.directory."
    )


def _write_beside(directory: Path, texts: Mapping[str, str] | None) -> None:
    for name, text in (texts or {}).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(directory / name, text.encode())
