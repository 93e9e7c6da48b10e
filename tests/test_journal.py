from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tailorlib.journal as journal_module
from tailorlib.contents import Contents
from tailorlib.exceptions import JournalError
from tailorlib.fitness import Measurement
from tailorlib.journal import FILE_NAME, Journal, read_trials
from tailorlib.journal_header import JournalHeader
from tailorlib.run_lock import archive
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial

IDENTITY = {"optimizer": {"class_path": "RandomSearch"}, "study": {"seed": 3}}


def trial(number: int, fitness: float | None = 0.5) -> Trial:
    return Trial(
        number=number,
        params={"removed": (number % 4,), "layer.1.scale": 0.25},
        tailoring=Tailoring.whole("base", 4, without=[number % 4]),
        state="complete" if fitness is not None else "failed",
        fitness=fitness,
        metrics={"text/perplexity": 1 / 3, "ünï/acc": 0.25},
        seconds=1.5,
        reason=None if fitness is not None else "too small",
        objectives={} if fitness is None else {"quality": fitness, "parameters_removed": 0.25},
        samples=16,
        fidelity=16 / 48,
    )


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path / "run", JournalHeader(IDENTITY, {"python": "3"}))


def test_what_is_written_is_read_back(journal: Journal) -> None:
    dense = Measurement(0.7, {"acc": 0.5}, {"acc": 0.25}, {"text": 0.1})
    journal.set_dense(dense)
    trials = [trial(0), trial(1, None), trial(2, 1e-12)]
    for t in trials:
        journal.append(t)
    journal.close()
    again = Journal.open(journal.path.parent)
    assert (again.trials, again.dense, again.recovered) == (trials, dense, None)
    assert dict(again.header.identity) == IDENTITY
    again.close()
    assert read_trials(journal.path.parent) == (dense, trials)


@pytest.mark.parametrize("tail", [b'{"kind":"trial","num', b"\x00\x00\x00\n", b"{}x\n"])
def test_a_torn_last_line_is_cut_off_and_reported(journal: Journal, tail: bytes) -> None:
    journal.append(trial(0))
    journal.close()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + tail)
    again = Journal.open(journal.path.parent)
    assert again.trials == [trial(0)]
    assert again.recovered is not None
    assert again.recovered.encode() == tail
    again.append(trial(1))
    again.close()
    assert journal.path.read_bytes().startswith(whole)
    assert read_trials(journal.path.parent)[1] == [trial(0), trial(1)]


def test_every_truncation_leaves_a_prefix_of_the_trials(journal: Journal) -> None:
    for number in range(3):
        journal.append(trial(number))
    journal.close()
    content = journal.path.read_bytes()
    header = content.index(b"\n") + 1
    for size in range(header, len(content), 7):
        journal.path.write_bytes(content[:size])
        again = Journal.open(journal.path.parent)
        assert again.trials == [trial(i) for i in range(content[:size].count(b"\n") - 1)]
        again.close()


def test_damage_before_the_last_line_is_refused_with_its_number(journal: Journal) -> None:
    journal.append(trial(0))
    journal.append(trial(1))
    journal.close()
    lines = journal.path.read_bytes().split(b"\n")
    lines[1] = lines[1][:-4]
    journal.path.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalError, match="damaged in line 2"):
        Journal.open(journal.path.parent)


def test_a_missing_trial_is_noticed(journal: Journal) -> None:
    journal.append(trial(0))
    journal.append(trial(1))
    journal.close()
    lines = journal.path.read_bytes().split(b"\n")
    journal.path.write_bytes(b"\n".join([lines[0], *lines[2:]]))
    with pytest.raises(JournalError, match="damaged in line 2"):
        Journal.open(journal.path.parent)


def test_trials_are_appended_in_order(journal: Journal) -> None:
    with pytest.raises(JournalError, match="next trial is 0, got 4"):
        journal.append(trial(4))


def test_a_new_study_is_refused_where_one_is(journal: Journal) -> None:
    journal.close()
    with pytest.raises(JournalError, match="--resume"):
        Journal.create(journal.path.parent, JournalHeader(IDENTITY))


def test_a_changed_recipe_is_refused_with_every_difference(journal: Journal) -> None:
    assert not journal.header.differences(
        {"optimizer": {"class_path": "RandomSearch"}, "study": {"seed": 3}}, Contents()
    )
    other = {"optimizer": {"class_path": "Nevergrad"}, "study": {"seed": 4}}
    found = journal.header.differences(other, Contents())
    assert found == ['optimizer.class_path: was "RandomSearch", is "Nevergrad"', "study.seed: was 3, is 4"]


def test_a_second_process_is_refused_and_told_who_holds_the_run(journal: Journal) -> None:
    code = (
        "import sys; from pathlib import Path; from tailorlib.journal import Journal\n"
        "try: Journal.open(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(journal.path.parent)]
    refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "One process at a time" in refused
    assert "process " in refused
    journal.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_a_full_disk_leaves_the_journal_as_it_was(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append(trial(0))
    before = journal.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(JournalError, match="No space left on device"):
            journal.append(trial(1))
    assert journal.path.read_bytes() == before
    journal.append(trial(1))
    assert len(journal.trials) == 2


def test_archive_moves_the_run_aside_and_keeps_every_earlier_one(journal: Journal) -> None:
    journal.close()
    directory = journal.path.parent
    assert archive(directory) == directory.with_name("run.1")
    Journal.create(directory, JournalHeader(IDENTITY)).close()
    assert archive(directory) == directory.with_name("run.2")
    assert not directory.exists()


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({"kind": "header", "format": 99}) + "\n")
    with pytest.raises(JournalError, match="journal format 99"):
        Journal.open(tmp_path)
    with pytest.raises(JournalError, match="has no"):
        Journal.open(tmp_path / "nowhere")


def test_the_files_beside_a_record_are_there_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed on the way leaves either no study or one that can be resumed."""
    replace, written = journal_module.replace_file, list[str]()

    def killed_before_the_record(path: Path, data: bytes) -> None:
        if path.name == journal_module.FILE_NAME:
            raise KeyboardInterrupt
        written.append(path.name)
        replace(path, data)

    monkeypatch.setattr(journal_module, "replace_file", killed_before_the_record)
    with pytest.raises(KeyboardInterrupt):
        Journal.create(tmp_path / "run", JournalHeader({}), {"recipe.yaml": "study: {}\n"})
    assert (
        written == ["recipe.yaml", journal_module.HEADER_NAME]
        and not (tmp_path / "run" / journal_module.FILE_NAME).exists()
    )
    monkeypatch.setattr(journal_module, "replace_file", replace)
    Journal.create(tmp_path / "again", JournalHeader({}), {"recipe.yaml": "study: {}\n"}).close()
    assert (tmp_path / "again" / "recipe.yaml").read_text() == "study: {}\n"


def test_validations_are_read_back(journal: Journal) -> None:
    journal.append(trial(0))
    found = Measurement(0.75, {"acc": 0.5}, {"acc": 0.25}, {"part": 0.75})
    journal.add_validation(0, found)
    journal.append(trial(1))
    journal.close()
    again = Journal.read(journal.path.parent)
    assert again.validations == {0: found} and again.trials == [trial(0), trial(1)]
