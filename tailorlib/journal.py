"""The study record: append-only JSON lines, one per finished trial, on disk before the next trial begins.

The first line is the header (format, versions, the parts of the recipe that decide the trials, the family's
shape). Then come lines of four kinds: a session (a process began or ended its work), the dense base model's
measurement, a trial, a validation. A study resumes by replaying the trials.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from tailorlib.exceptions import JournalError
from tailorlib.files import replace_file
from tailorlib.fitness import Measurement
from tailorlib.search_space import FamilyLayout
from tailorlib.trial import Trial

FORMAT_VERSION = 1
FILE_NAME = "journal.jsonl"


@dataclass(frozen=True)
class JournalHeader:
    """What the trials of a journal depend on.

    Args:
        identity: The recipe's sections that decide the trials.
        environment: Versions of the libraries that wrote it, for information.
        layout: The family's layout, for reports; ``None`` where it isn't known.
        parameters: Number of parameters of the dense base model.
        layer_parameters: Number of parameters of each of its layers.
        format: Version of the file format.
    """

    identity: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    layout: FamilyLayout | None = None
    parameters: int | None = None
    layer_parameters: tuple[int, ...] | None = None
    format: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the first line of the journal."""
        return {
            "format": self.format,
            "environment": dict(self.environment),
            "layout": None if self.layout is None else asdict(self.layout),
            "parameters": self.parameters,
            "layer_parameters": self.layer_parameters,
            "identity": dict(self.identity),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JournalHeader:
        """Rebuild a header from :meth:`to_dict`; what describes the family may be missing.

        Raises:
            KeyError: If something else is.
            TypeError: If something is of the wrong type.
            ValueError: If something has a value that it can't have.
        """
        layout, layers = data.get("layout"), data.get("layer_parameters")
        if layout is not None:
            lists = {key: tuple(map(str, layout[key])) for key in ("candidates", "layer_types", "branches")}
            layout = FamilyLayout(num_layers=int(layout["num_layers"]), **lists)  # type: ignore[arg-type]
        return cls(
            identity=dict(data["identity"]),
            environment={str(k): str(v) for k, v in data["environment"].items()},
            layout=layout,
            parameters=None if data.get("parameters") is None else int(data["parameters"]),
            layer_parameters=None if layers is None else tuple(map(int, layers)),
            format=int(data["format"]),
        )


class Journal:
    """An open study record; exclusive to one process.

    Use :meth:`create` or :meth:`open`, and :meth:`close` at the end.
    """

    def __init__(self, path: Path, header: JournalHeader, lock: FileLock) -> None:
        self.path, self.header = path, header
        self.dense: Measurement | None = None
        self.trials: list[Trial] = []
        self.validations: dict[int, Measurement] = {}
        """What validation found, by the number of the trial that was the best then."""
        self.sessions: list[dict[str, Any]] = []
        """A mapping for each process that worked on the study: when and where it began, with which versions, how
        many trials there were, and under ``"ended"`` how it ended. One that was killed has none."""
        self.recovered: str | None = None
        """What was cut off a torn last line when the journal was opened, or ``None``."""
        self._lock = lock

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
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _acquire(directory)
            if path.exists():
                lock.release()
                refuse_occupied(directory)
            for name, text in (beside or {}).items():
                replace_file(directory / name, text.encode())
            replace_file(path, _line({"kind": "header", **header.to_dict()}))
        except OSError as error:
            raise JournalError(f"The run folder {str(directory)!r} can't be written: {error}.") from error
        return cls(path, header, lock)

    @classmethod
    def open(cls, directory: Path) -> Journal:
        """Open a record to continue it; a torn last line is cut off and kept in :attr:`recovered`.

        Raises:
            JournalError: If there is none, another process holds it, or a line before the last is damaged.
        """
        path = directory / FILE_NAME
        if not path.is_file():
            raise JournalError(f"A study is resumed from its run folder; {str(directory)!r} has no {FILE_NAME}.")
        lock = _acquire(directory)
        try:
            lines, torn = _complete_lines(path.read_bytes())
            journal = cls(path, _header(lines, path), lock)
            for number, line in enumerate(lines[1:], start=2):
                journal._take(line, number)
            if torn:
                with path.open("r+b") as file:
                    file.truncate(sum(len(line) + 1 for line in lines))
                    os.fsync(file.fileno())
                journal.recovered = torn.decode("utf-8", errors="replace")
        except BaseException:
            lock.release()
            raise
        return journal

    @classmethod
    def read(cls, directory: Path) -> Journal:
        """Look into the record of a run, without locking or changing anything; nothing can be appended.

        Raises:
            JournalError: If there is no journal, or it is damaged before its last line.
        """
        path = directory / FILE_NAME
        if not path.is_file():
            raise JournalError(f"A run folder has a {FILE_NAME}; {str(directory)!r} has none.")
        lines, _ = _complete_lines(path.read_bytes())
        journal = cls(path, _header(lines, path), FileLock(os.devnull))
        for number, line in enumerate(lines[1:], start=2):
            journal._take(line, number)
        return journal

    def begin_session(self, facts: Mapping[str, Any]) -> None:
        """Record that a process begins to work on the study.

        Args:
            facts: Plain data: versions, host, time, number of processes.

        Raises:
            JournalError: If the disk doesn't take it.
        """
        session = {"trials": len(self.trials), **facts}
        self._append({"kind": "session", **session})
        self.sessions.append(session)

    def end_session(self, how: str, time: str) -> None:
        """Record that the process ends its work.

        Args:
            how: In a few words.
            time: When, in ISO format.

        Raises:
            JournalError: If the disk doesn't take it.
        """
        ended = {"how": how, "time": time, "trials": len(self.trials)}
        self._append({"kind": "session_end", **ended})
        if self.sessions:
            self.sessions[-1]["ended"] = ended

    def set_dense(self, dense: Measurement) -> None:
        """Record the dense base model's measurement.

        Raises:
            JournalError: If the disk doesn't take it.
        """
        self._append({"kind": "dense", **_measured(dense)})
        self.dense = dense

    def add_validation(self, trial: int, found: Measurement) -> None:
        """Record what validation found of a trial.

        Raises:
            JournalError: If the disk doesn't take it.
        """
        self._append({"kind": "validation", "trial": trial, **_measured(found)})
        self.validations[trial] = found

    def append(self, trial: Trial) -> None:
        """Record a trial: when this returns, the trial is on disk.

        Raises:
            JournalError: If the disk doesn't take it; the record then still ends with the trial before.
        """
        if trial.number != len(self.trials):
            raise JournalError(f"The journal's next trial is {len(self.trials)}, got {trial.number}.")
        self._append({"kind": "trial", **trial.to_dict()})
        self.trials.append(trial)

    def close(self) -> None:
        """Let other processes open the record."""
        self._lock.release()

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Check that a recipe would make the same trials.

        Raises:
            JournalError: If not, naming every difference.
        """
        differences = _differences(self.header.identity, _plain(identity))
        if differences:
            raise JournalError(
                "A study resumes with the recipe it began with; the recipe differs in "
                + "; ".join(differences)
                + ". Start a new study in another folder (study.directory), or undo the change."
            )

    def _append(self, data: Mapping[str, Any]) -> None:
        before = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write(_line(data))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with self.path.open("r+b") as file:
                file.truncate(before)
            raise JournalError(
                f"The journal {str(self.path)!r} can't be written: {error}. Nothing is lost: make room and resume "
                f"with --resume {self.path.parent}."
            ) from error

    def _take(self, line: bytes, number: int) -> None:
        try:
            data = json.loads(line)
            kind = data["kind"]
            if kind == "trial":
                trial = Trial.from_dict(data)
                if trial.number != len(self.trials):
                    raise JournalError(f"trial {trial.number} stands where {len(self.trials)} belongs")
                self.trials.append(trial)
            elif kind == "dense":
                self.dense = Measurement(data["score"], data["metrics"], data["chance"], data["parts"])
            elif kind == "session":
                self.sessions.append({key: value for key, value in data.items() if key != "kind"})
            elif kind == "session_end":
                if self.sessions:
                    self.sessions[-1]["ended"] = {key: data[key] for key in ("how", "time", "trials")}
            elif kind == "validation":
                found = Measurement(data["score"], data["metrics"], data["chance"], data["parts"])
                self.validations[int(data["trial"])] = found
            else:
                raise JournalError(f"a line of kind {kind!r}")
        except Exception as error:  # whatever a damaged line breaks, the remedy is the same
            raise JournalError(
                f"{str(self.path)!r} is damaged in line {number}: {error}. Lines after it can't be trusted: cut "
                "the file before that line to resume from there."
            ) from error


def _measured(found: Measurement) -> dict[str, Any]:
    maps = {"metrics": dict(found.metrics), "chance": dict(found.chance), "parts": dict(found.parts)}
    return {"score": found.score, **maps}


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


def holder(directory: Path) -> str | None:
    """Return which process works in a run folder now, or ``None``."""
    lock = FileLock(directory / ".lock")
    if not (directory / ".lock").exists():
        return None
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return _holder_of(directory)
    lock.release()
    return None


def archive(directory: Path) -> Path:
    """Rename a run folder to ``NAME.1`` (``.2``, ...) and return where it went.

    Raises:
        JournalError: If a process is working in it.
    """
    _acquire(directory).release()
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    return directory.rename(target)


def _acquire(directory: Path) -> FileLock:
    # The operating system drops the lock with the process that holds it, so a dead holder blocks nobody.
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=1)  # somebody who only asks who is here is gone by then
    except Timeout as error:
        raise JournalError(
            f"One process at a time works in {str(directory)!r}; {_holder_of(directory)} holds it. Wait until it "
            "ends, or stop it: all that it finished is on disk."
        ) from error
    with suppress(OSError):  # only a name for the message above; a full disk shows where it matters
        (directory / ".holder").write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    return lock


def _holder_of(directory: Path) -> str:
    try:
        return (directory / ".holder").read_text(encoding="utf-8") or "an unknown process"
    except (OSError, UnicodeDecodeError):
        return "an unknown process"


def _complete_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """Split into complete lines and a torn rest: what follows the last newline, or a last line that is no JSON."""
    *lines, torn = content.split(b"\n")
    if lines and not torn and not _is_json(lines[-1]):  # a power cut can leave a line of zeros
        torn = lines.pop() + b"\n"
    return lines, torn


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _header(lines: list[bytes], path: Path) -> JournalHeader:
    try:
        data = json.loads(lines[0])
        if data["kind"] != "header" or data["format"] != FORMAT_VERSION:
            raise JournalError(f"format {data.get('format')}")
        return JournalHeader.from_dict(data)
    except Exception as error:  # whatever is wrong with the first line, it is no header
        raise JournalError(
            f"{str(path)!r} has no header of journal format {FORMAT_VERSION} in its first line ({error!r}); it "
            "was written by another version of tailorlib, or is no journal."
        ) from error


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _plain(data: Any) -> Any:
    return json.loads(json.dumps(data))


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{where}.{k}" if where else k)]
    return [] if old == new else [f"{where}: was {json.dumps(old)}, is {json.dumps(new)}"]
