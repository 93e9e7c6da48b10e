"""A study that was killed goes on elsewhere, with other processes, without its end; tests/proof kills more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "proof"))

from proof_process import AtWrite, run

from tailorlib.journal import FILE_NAME, Journal, read_trials

Write = Callable[..., str]


def trials_of(directory: Path) -> list[dict[str, Any]]:
    plain = [trial.to_dict() for trial in read_trials(directory)[1]]
    for trial in plain:
        del trial["seconds"], trial["costs"]  # what a resumed study finds in its caches differs
    return plain


def test_a_study_goes_on_in_another_place(recipe: dict[str, Any], write: Write, tmp_path: Path) -> None:
    recipe["study"]["existing"] = "resume"
    argv = ["search", "--config", write(recipe)]
    assert run([*argv, "--study.directory", str(tmp_path / "whole")], tmp_path).code == 0
    for calls in range(10, 60):
        assert run(argv, tmp_path, fault=AtWrite(calls)).code == -signal.SIGKILL
        if (tmp_path / "run" / FILE_NAME).exists() and trials_of(tmp_path / "run"):
            break
    assert 0 < len(trials_of(tmp_path / "run")) < 8
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    (tmp_path / "run").rename(moved)
    assert run(["search", "--resume", str(moved)], tmp_path).code == 0
    assert trials_of(moved) == trials_of(tmp_path / "whole")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # two processes that import everything
def test_a_study_goes_on_with_another_number_of_processes(
    recipe: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    recipe["family"]["init_args"]["dtype"] = "float32"
    recipe["study"] |= {"existing": "resume", "batch_size": 2}
    argv = ["search", "--config", write(recipe), "--trainer.strategy", "candidates"]
    assert run([*argv, "--study.directory", str(tmp_path / "whole")], tmp_path).code == 0
    assert run([*argv, "--study.trials", "4"], tmp_path).code == 0
    command = [sys.executable, "-m", "tailorlib.cli", *argv, "--trainer.devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=300, stdout=subprocess.DEVNULL)
    assert trials_of(tmp_path / "run") == trials_of(tmp_path / "whole")
    assert [s["ranks"] for s in Journal.read(tmp_path / "run").sessions] == [1, 2]


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_journal_that_lost_its_end_goes_on_from_what_is_left(
    recipe: dict[str, Any], write: Write, tmp_path: Path, cut: int
) -> None:
    argv = ["search", "--config", write(recipe)]
    assert run(argv, tmp_path).code == 0
    expected = trials_of(tmp_path / "run")
    journal = tmp_path / "run" / FILE_NAME
    lines = [line for line in journal.read_bytes().split(b"\n") if line and b'"kind":"session_end"' not in line]
    journal.write_bytes(b"\n".join([*lines[:-2], lines[-2][:-cut]]))  # in the midst of the trial before the last
    assert run(["search", "--resume", str(tmp_path / "run")], tmp_path).code == 0
    assert trials_of(tmp_path / "run") == expected
