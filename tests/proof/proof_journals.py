"""Journals, samples and pieces that are cut or altered at every byte: never accepted as something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from proof_bench import as_json, tell
from proof_cases import Case, FaultClass

from tailorlib.exceptions import JournalError
from tailorlib.journal import FILE_NAME, Journal
from tailorlib.search.evaluator import Part
from tailorlib.search.pending import Pending, read_pending
from tailorlib.search.sample_store import SampleStore, read_samples

BLOCK = 64
"""Bytes whose bits are flipped in one case."""
VALUES = (None, True, 0, 1, -1, 99, 0.5, float("nan"), float("inf"), "", "complete", [], {}, 10**30)


def facts_of(folder: Path) -> dict[str, Any] | None:
    """Return all that a journal says, or ``None`` if it is refused as it should be."""
    try:
        journal = Journal.read(folder)
    except JournalError as error:
        assert str(folder) in str(error) and len(str(error)) < 2000, str(error)[:2000]
        return None
    return {k: v for k, v in vars(journal).items() if not k.startswith("_") and k not in ("path", "recovered")}


class JournalFaults(FaultClass):
    """Cuts, flipped bits, changed values and moved lines of a journal."""

    name = "journals"
    checked = "refused with its name, or cut back to what was whole; no other trial, score or setting is accepted"

    @cached_property
    def content(self) -> bytes:
        """A sound journal."""
        return (self.bench.run / FILE_NAME).read_bytes()

    @cached_property
    def starts(self) -> list[int]:
        """Where each line begins, and the end."""
        lines = self.content.splitlines(keepends=True)
        return [sum(map(len, lines[:i])) for i in range(len(lines) + 1)]

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        size, count = len(self.content), len(self.starts) - 1
        blocks = range(0, size, BLOCK)
        found = [Case(f"cut at bytes {i}+", partial(self._cut, i), min(BLOCK, size - i)) for i in blocks]
        found += [Case(f"bits of bytes {i}+", partial(self._flip, i), 8 * min(BLOCK, size - i)) for i in blocks]
        found += [
            Case(f"values of line {i}", partial(self._values, i), len(self._changed(i))) for i in range(count)
        ]
        found += [Case(f"line {i} moved", partial(self._moved, i), 2 * count + 1) for i in range(count)]
        found += [Case(f"line {i} repaired", partial(self._repaired, i), 3) for i in range(count)]
        return [*found, Case("no journals", self._none, len(_NO_JOURNALS))]

    def _judge(self, folder: Path, damaged: bytes, line: int, what: str) -> None:
        """Check a damaged journal; ``line`` is the first damaged one."""
        (folder / FILE_NAME).write_bytes(damaged)
        found = facts_of(folder)
        if found is None or found == self._whole(len(self.starts) - 1):
            return
        torn = damaged.rstrip(b"\n").rfind(b"\n") + 1 <= self.starts[line]  # nothing whole stands behind it
        assert torn and found == self._whole(line), f"{what}: accepted"

    def _whole(self, lines: int) -> dict[str, Any] | None:
        if lines not in self._known:
            folder = self.bench.folder / f"journal.{lines}.{id(self)}"
            folder.mkdir(exist_ok=True)
            (folder / FILE_NAME).write_bytes(self.content[: self.starts[lines]])
            self._known[lines] = facts_of(folder)
            shutil.rmtree(folder)
        return self._known[lines]

    @cached_property
    def _known(self) -> dict[int, dict[str, Any] | None]:
        return {}

    def _line_of(self, byte: int) -> int:
        return sum(start <= byte for start in self.starts) - 1

    def _cut(self, first: int, folder: Path) -> None:
        for size in range(first, min(first + BLOCK, len(self.content))):
            (folder / FILE_NAME).write_bytes(self.content[:size])
            expected = self._whole(self._line_of(size)) if size >= self.starts[1] else None
            assert facts_of(folder) == expected, f"cut at {size}"
        if expected is not None:
            Journal.open(folder).close()
            assert facts_of(folder) == expected
            assert (folder / FILE_NAME).read_bytes() == self.content[: self.starts[self._line_of(size)]]

    def _flip(self, first: int, folder: Path) -> None:
        for i in range(first, min(first + BLOCK, len(self.content))):
            for bit in range(8):
                damaged = bytearray(self.content)
                damaged[i] ^= 1 << bit
                self._judge(folder, bytes(damaged), self._line_of(i), f"byte {i} bit {bit}")

    def _lines(self) -> list[bytes]:
        return self.content.splitlines(keepends=True)

    def _changed(self, line: int) -> list[bytes]:
        data = json.loads(self._lines()[line])
        return [as_json(changed) + b"\n" for changed in _changes(data)]

    def _values(self, line: int, folder: Path) -> None:
        lines = self._lines()
        for changed in self._changed(line):
            if json.loads(changed) != json.loads(lines[line]):
                damaged = [*lines[:line], changed, *lines[line + 1 :]]
                self._judge(folder, b"".join(damaged), line, f"line {line} as {changed[:300]!r}")

    def _moved(self, line: int, folder: Path) -> None:
        lines, whole = self._lines(), self._whole(len(self.starts) - 1)
        assert whole is not None
        rest = [*lines[:line], *lines[line + 1 :]]
        variants = [b"".join(rest)]
        variants += [b"".join([*rest[:i], lines[line], *rest[i:]]) for i in range(len(lines))]
        variants += [b"".join([*lines[:i], lines[line], *lines[i:]]) for i in range(len(lines))]
        for content in variants:
            (folder / FILE_NAME).write_bytes(content)
            found = facts_of(folder)
            if found is not None:
                assert found["trials"] == whole["trials"][: len(found["trials"])], f"line {line} moved"
                assert found["header"] == whole["header"]

    def _repaired(self, line: int, folder: Path) -> None:
        """Let ``tailor check`` mend a journal with one damaged line: every sound trial is there afterwards."""
        lines, whole = self._lines(), self._whole(len(self.starts) - 1)
        assert whole is not None
        sound = [(t.params, t.fitness) for t in whole["trials"]]
        kinds = [json.loads(text)["kind"] for text in lines]
        if kinds[line] == "trial":
            del sound[kinds[:line].count("trial")]
        for damage in (lambda text: text[: len(text) // 2] + b"\n", lambda text: b"\xff" + text, lambda _: b"x\n"):
            content = b"".join([*lines[:line], damage(lines[line]), *lines[line + 1 :]])
            (folder / FILE_NAME).write_bytes(content)
            shutil.copy(self.bench.run / "recipe.yaml", folder)
            tell(["check", str(folder)], folder).check_message(1, *([0] if line == len(lines) - 1 else []))
            tell(["check", str(folder), "--repair"], folder).check_message(0 if line else 1)
            found = facts_of(folder)
            if line:
                assert found is not None, "it can't be read after the repair"
                assert [(t.params, t.fitness) for t in found["trials"]] == sound, "sound trials are lost"
            else:
                assert found is None

    def _none(self, folder: Path) -> None:
        for content in _NO_JOURNALS:
            (folder / FILE_NAME).write_bytes(content)
            assert facts_of(folder) is None, content[:80]
            (folder / FILE_NAME).write_bytes(self.content + content + b"\n")
            assert facts_of(folder) in (None, self._whole(len(self.starts) - 1)), content[:80]


_NO_JOURNALS = (
    *(b"", b"\n", b"{}", b"[]\n", b"null\n", b"\0" * 4096, b"\xff\xfe" * 9, b"x" * 9, b'{"kind":"header"}\n'),
    *(b"[" * 200_000 + b"\n", b'{"a":' * 200_000 + b"\n", b'{"kind":"trial"}\n', b"9" * 5000 + b"\n"),
)


def _changes(data: Any) -> list[Any]:
    """Return copies of plain data with one value changed, at any depth."""
    found = []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        replaced = [*_changes(value), *(VALUES if not isinstance(value, dict | list) else ())]
        for new in replaced:
            copy = dict(data) if isinstance(data, dict) else list(data)
            copy[key] = new  # type: ignore[index]
            found.append(copy)
        if isinstance(data, dict):
            found.append({k: v for k, v in data.items() if k != key})
    return found


class KeptResults(FaultClass):
    """Cuts and flipped bits of what a search keeps beside its journal."""

    name = "kept results"
    checked = "samples.jsonl and pending.*: what is read is part of what was written"

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        found = []
        for name, write, judge in (
            ("samples", _write_samples, _judge_samples),
            ("pending", _write_pending, _judge_pending),
        ):
            scratch = self.bench.folder / f"kept.{name}.{id(self)}"
            scratch.mkdir()
            size = len(write(scratch).read_bytes())
            shutil.rmtree(scratch)
            for i in range(0, size, BLOCK):
                count = 9 * min(BLOCK, size - i)
                found.append(Case(f"{name} bytes {i}+", partial(_damage, write, judge, i), count))
        return found


def _damage(write: Callable[[Path], Path], judge: Callable[[Path, Any], Any], first: int, folder: Path) -> None:
    file = write(folder)
    content = file.read_bytes()
    expected = judge(folder, None)
    for i in range(first, min(first + BLOCK, len(content))):
        flipped = (content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :] for bit in range(8))
        for damaged in (content[:i], *flipped):
            file.write_bytes(damaged)
            judge(folder, expected)


def _write_samples(folder: Path) -> Path:
    store = SampleStore(folder)
    for digest in ("a" * 64, "b" * 64):
        store.extend(digest, [[0.125, 32], [0.5, 31]])
        store.extend(digest, [[0.25, 30]])
    return folder / "samples.jsonl"


def _judge_samples(folder: Path, expected: Any) -> Any:
    found = read_samples(folder)
    for digest, results in found.items() if expected is not None else ():
        assert results == expected.get(digest, [])[: len(results)], f"{digest}: {results}"
    return found


def _write_pending(folder: Path) -> Path:
    pending = Pending(folder, 0)
    for i, digest in enumerate(("a" * 64, "b" * 64)):
        pending.add(Part(digest, (0, 4), i, [[0.125, 32], [0.5, 31]], seconds=0.25))
    return folder / "pending.0.jsonl"


def _judge_pending(folder: Path, expected: Any) -> Any:
    found = list(read_pending(folder))
    assert expected is None or all(part in expected for part in found), f"{found}"
    return found
