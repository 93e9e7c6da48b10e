from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorlib import records
from tailorlib.exceptions import JournalError
from tailorlib.fitness import Measurement
from tailorlib.journal import FILE_NAME, HEADER_NAME, RESCUED_NAME, Journal
from tailorlib.journal_header import JournalHeader
from tailorlib.light import main
from tailorlib.records import encode
from tailorlib.search.sample_store import SampleStore, read_samples
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial

Edit = Callable[[list[bytes]], list[bytes]]


def trial(number: int, fitness: float | None = 0.5) -> Trial:
    reason = None if fitness is not None else "too small"
    state = "failed" if fitness is None else "complete"
    whole = Tailoring.whole("base", 4, without=[number % 4])
    return Trial(number, {"removed": (number % 4,)}, whole, state, fitness, {"acc": 0.25}, reason=reason)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A record with lines of each kind: header, session, dense, trials 0 to 3, validation of 1, end."""
    journal = Journal.create(tmp_path / "run", JournalHeader({"seed": 3}), {"recipe.yaml": "study: {}\n"})
    journal.begin_session({"host": "h"})
    journal.set_dense(Measurement(0.7, {"acc": 0.5}))
    for number in range(4):
        journal.append(trial(number, None if number == 2 else 0.5 + number / 10))
        if number == 1:
            journal.add_validation(1, Measurement(0.4))
    journal.end_session("finished", "2026-01-01T00:00:00")
    journal.close()
    return tmp_path / "run"


def lines_of(run: Path) -> list[bytes]:
    return (run / FILE_NAME).read_bytes().splitlines(keepends=True)


def facts(run: Path) -> dict[str, Any]:
    journal = Journal.read(run)
    return {k: v for k, v in vars(journal).items() if not k.startswith("_") and k not in ("path", "recovered")}


def test_every_flipped_bit_is_noticed_or_the_last_line_is_made_again(run: Path) -> None:
    content, whole, lines = (run / FILE_NAME).read_bytes(), facts(run), lines_of(run)
    (run / FILE_NAME).write_bytes(b"".join(lines[:-1]))
    shorter = facts(run)
    accepted = 0
    for i in range(0, len(content), 5):
        for bit in range(8) if i % 25 == 0 else (i % 8,):
            (run / FILE_NAME).write_bytes(content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :])
            try:
                found = facts(run)
            except JournalError as error:
                assert "tailor check" in str(error) and "--repair" in str(error) and "cut" not in str(error)
            else:
                accepted += 1
                assert found == shorter != whole and i >= len(content) - len(lines[-1])
    assert accepted


def changed(line: bytes, **values: Any) -> bytes:
    data = json.loads(line)
    number = data.pop("line")
    del data["sum"]
    return encode({**data, **values}, number) + b"\n"


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (3, {"fitness": math.nan}),
        (3, {"fitness": math.inf}),
        (3, {"fitness": None}),
        (3, {"fitness": "0.5"}),
        (3, {"fitness": True, "state": "failed"}),
        (3, {"reason": "but complete"}),
        (3, {"state": "pruned"}),
        (3, {"number": 3}),
        (3, {"number": True}),
        (3, {"metrics": {"acc": None}}),
        (3, {"fidelity": 0.0}),
        (3, {"seconds": -1.0}),
        (3, {"samples": -1}),
        (3, {"objectives": {"a": math.nan}}),
        (3, {"study": "another"}),
        (6, {"fitness": 99.0}),
        (6, {"reason": None}),
        (6, {"reason": ""}),
        (6, {"objectives": {"a": 1.0}}),
        (5, {"trial": 9}),
        (5, {"trial": -1}),
        (5, {"trial": True}),
        (5, {"score": math.nan}),
        (4, {"kind": "dense", "score": 1.0, "chance": {}, "parts": {}}),
        (4, {"kind": "lost", "lines": 0}),
        (4, {"kind": "odd"}),
    ],
)
def test_a_line_that_contradicts_itself_or_the_others_is_refused(
    run: Path, line: int, values: dict[str, Any]
) -> None:
    lines = lines_of(run)
    lines[line] = changed(lines[line], **values)
    (run / FILE_NAME).write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=f"damaged in line {line + 1}:"):
        Journal.read(run)


@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"a":' * 200_000, b'{"kind":"session","a":' + b"[" * 500])
def test_deep_nesting_is_a_message(run: Path, text: bytes) -> None:
    lines = lines_of(run)
    deep = (
        text
        if text.startswith(b"{") and b"session" not in text
        else text + b"]" * 500 * (b"session" in text) + b"}"
    )
    body = deep.removesuffix(b"}") + b',"study":"x","line":3}'
    lines[2] = body[:-1] + b',"sum":"' + records._checksum(body) + b'"}\n'
    (run / FILE_NAME).write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match="damaged in line 3"):
        Journal.read(run)


def test_a_huge_line_is_a_message(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE", 5_000)
    for at in (2, len(lines_of(run))):
        lines = lines_of(run)
        lines.insert(at, b"x" * 50_000 + b"\n")
        (run / "x").mkdir(exist_ok=True)
        (run / "x" / FILE_NAME).write_bytes(b"".join(lines))
        with pytest.raises(JournalError, match="50,001 bytes, and at most 5,000 are read"):
            Journal.read(run / "x")


def test_a_journal_of_the_first_format_is_read_with_the_same_rules_and_not_continued(run: Path) -> None:
    before, old = facts(run), []
    for line in lines_of(run):
        data = json.loads(line)
        for name in ("line", "sum", "study"):
            data.pop(name)
        old.append(json.dumps({**data, "format": 1} if data["kind"] == "header" else data).encode() + b"\n")
    (run / FILE_NAME).write_bytes(b"".join(old))
    found = facts(run)
    assert found.pop("header").format == 1 and before.pop("header").format == 2
    assert found == before
    with pytest.raises(JournalError, match=r"journal format 1.*tailor show, report, export"):
        Journal.open(run)
    (run / FILE_NAME).write_bytes(b"".join(old).replace(b'"fitness": 0.6', b'"fitness": NaN'))
    with pytest.raises(JournalError, match="damaged in line 5"):
        Journal.read(run)
    (run / FILE_NAME).write_bytes(b"".join(old) + b'{"kind":"tri')
    assert Journal.read(run).trials == found["trials"]
    (run / FILE_NAME).write_bytes(b"".join([*old[:4], b"x" * 9 + b"\n", *old[5:]]))
    assert main(["check", str(run), "--repair"]) == 0
    assert [t.number for t in Journal.read(run).trials] == [0, 2, 3]


def damage(lines: list[bytes], at: int, text: bytes = b"") -> list[bytes]:
    return [*lines[:at], text or lines[at][:40] + b"X" + lines[at][41:], *lines[at + 1 :]]


DAMAGES: dict[str, tuple[Edit, set[int]]] = {
    "a trial": (lambda lines: damage(lines, 4), {1}),
    "two trials": (lambda lines: damage(damage(lines, 4), 6), {1, 2}),
    "a newline": (lambda lines: damage(lines, 3, lines[3][:-1] + b"x"), {0, 1}),
    "a line in two": (lambda lines: damage(lines, 4, lines[4][:50] + b"\n" + lines[4][51:]), {1}),
    "a line deleted": (lambda lines: [*lines[:4], *lines[5:]], {1}),
    "two lines exchanged": (lambda lines: [*lines[:4], lines[6], lines[5], lines[4], *lines[7:]], set()),
    "a line twice": (lambda lines: [*lines[:5], lines[4], *lines[5:]], set()),
    "the header": (lambda lines: damage(lines, 0), set()),
    "the dense model": (lambda lines: damage(lines, 2), set()),
    "the validation": (lambda lines: damage(lines, 5), set()),
    "the session": (lambda lines: damage(lines, 1), set()),
    "nonsense": (lambda lines: [*lines[:3], b"\xff\x00\n", b"[" * 300_000 + b"\n", *lines[3:]], set()),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_repair_keeps_every_sound_line_and_what_is_lost_can_be_made_again(
    run: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, lost = DAMAGES[what]
    before, damaged = Journal.read(run), b"".join(edit(lines_of(run)))
    assert main(["check", str(run)]) == 0
    (run / FILE_NAME).write_bytes(damaged)
    assert main(["check", str(run)]) == 1
    assert "tailor check" in capsys.readouterr().out and (run / FILE_NAME).read_bytes() == damaged
    assert main(["check", str(run), "--repair"]) == 0
    assert (run / f"{FILE_NAME}.damaged").read_bytes() == damaged
    assert main(["check", str(run)]) == 0
    journal = Journal.open(run)
    assert journal.lost == lost and journal.recovered is None
    assert journal.trials == [t for t in before.trials if t.number not in lost]
    assert journal.next_number == 4 and all(journal.lacks(n) == (n in lost or n > 3) for n in range(6))
    for number in sorted(lost, reverse=True):
        journal.append(before.trials[number])
    journal.append(trial(4))
    if journal.dense is None:
        journal.set_dense(Measurement(0.7, {"acc": 0.5}))
    if not journal.validations:
        journal.add_validation(1, Measurement(0.4))
    journal.close()
    again = Journal.read(run)
    assert again.trials == [*before.trials, trial(4)] and not again.lost
    assert (again.dense, again.validations, again.header) == (before.dense, before.validations, before.header)


def test_what_can_not_be_repaired_is_said_and_left(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / HEADER_NAME).unlink()
    damaged = b"".join(damage(lines_of(run), 0))
    (run / FILE_NAME).write_bytes(damaged)
    assert main(["check", str(run), "--repair"]) == 1
    assert "can't be repaired" in capsys.readouterr().out
    assert (run / FILE_NAME).read_bytes() == damaged


def test_a_rescued_record_is_put_in_place(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal.open(run)
    (run / FILE_NAME).write_bytes(b"".join(lines_of(run)[:5]))
    with pytest.raises(JournalError, match="all 5 trials are in"):
        journal.append(trial(4))
    journal.close()
    assert main(["check", str(run)]) == 1
    assert "holds 5 trials, and journal.jsonl only 2 of them" in capsys.readouterr().out
    assert main(["check", str(run), "--repair"]) == 0
    assert Journal.read(run).trials == [*journal.trials]
    (run / FILE_NAME).unlink()
    assert main(["check", str(run), "--repair"]) == 0
    assert len(Journal.read(run).trials) == 5
    (run / RESCUED_NAME).unlink()
    (run / FILE_NAME).unlink()
    assert main(["check", str(run)]) == 2


def test_samples_and_texts_are_checked_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = SampleStore(run)
    for start, digest in enumerate("aba"):
        store.extend(digest, [float(start)])
    path = run / "samples.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1.0", b"9.0"))
    (run / "tailoring.yaml").write_text("layers: [")
    assert main(["check", str(run)]) == 1
    shown = capsys.readouterr().out
    assert "samples.jsonl: line 2: its checksum is another" in shown and "tailoring.yaml" in shown
    assert main(["check", str(run), "--repair"]) == 1  # a text is nobody's to mend
    (run / "tailoring.yaml").unlink()
    assert main(["check", str(run)]) == 0
    assert read_samples(run) == {"a": [0.0, 2.0]}


def test_a_repair_waits_for_the_process_that_works_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal.open(run)
    (run / FILE_NAME).write_bytes(b"".join(damage(lines_of(run), 4)))
    assert main(["check", str(run), "--repair"]) == 2
    assert "One process at a time" in capsys.readouterr().err
    journal.close()
    assert main(["check", str(run), "--repair"]) == 0
