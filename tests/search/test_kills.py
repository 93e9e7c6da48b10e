"""A study that is killed again and again ends where an undisturbed one does."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorlib.journal import FILE_NAME, Journal, read_trials
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import Tailoring

Write = Callable[..., str]
KILLS = 50
WRITES = ("fsync", "replace", "rename", "truncate", "unlink", "mkdir")
"""Calls of the operating system behind which something may be half done."""


def search(argv: list[str], calls: int | None) -> None:
    """Run a command in a process of its own; it is killed at a number of calls that write, or not at all."""
    from tailorlib.cli import main

    os.setpgrp()
    torch.set_num_threads(1)  # sums have one order
    os.environ["OMP_NUM_THREADS"] = "1"  # or Lightning's launcher takes all cores for one process
    seen = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == calls and seen % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if seen == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in WRITES:
        setattr(os, name, counted(getattr(os, name)))
    os._exit(main([*argv, "--quiet"]))


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes that needn't import everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tailorlib.lightning_cli", "tailorlib_strategies.fitness", __name__])
    return context


def run(context: Any, argv: list[str], *, calls: int | None = None, after: float | None = None) -> int:
    """Run a command, and kill it after some seconds or writing calls; return its exit status."""
    process = context.Process(target=search, args=(argv, calls))
    process.start()
    process.join(after if after is not None else 120)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode is not None
    return int(process.exitcode)


def trials_of(directory: Path) -> list[dict[str, Any]]:
    plain = [trial.to_dict() for trial in read_trials(directory)[1]]
    for trial in plain:
        del trial["seconds"], trial["costs"]  # what a resumed study finds in its caches differs
    return plain


@pytest.fixture
def halving(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe that writes all that a study can: pieces of batches, samples, validations."""
    perplexity = recipe["benchmark"]["fitness"]
    recipe["scheduler"] = {"class_path": "SuccessiveHalving", "init_args": {"eta": 2.0, "min_samples": 2}}
    recipe["validation"] = {
        "fitness": {**perplexity, "init_args": {**perplexity["init_args"], "context_length": 32}}
    }
    recipe["study"] |= {"trials": 10, "batch_size": 3, "existing": "resume"}
    return recipe


@pytest.mark.slow
def test_a_study_that_is_killed_fifty_times_ends_as_if_it_had_not_been(
    halving: dict[str, Any], write: Write, tmp_path: Path, context: Any
) -> None:
    path, directory = write(halving), tmp_path / "run"
    argv = ["search", "--config", path]
    began = time.monotonic()
    assert run(context, [*argv, "--study.directory", str(tmp_path / "whole")]) == 0
    whole, expected = time.monotonic() - began, trials_of(tmp_path / "whole")
    rng, kills, ended, known = numpy_generator("kills"), 0, 0, 0
    while kills < KILLS:
        began, anew = time.monotonic(), not directory.exists()
        if kills % 2:
            code = run(context, argv, after=float(rng.uniform(0.2, 1.0)) * whole)
        else:
            code = run(context, argv, calls=int(rng.integers(1, 40)))
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        if code == 0 and anew:  # the first run also waited for the imports, and other work comes and goes
            whole = time.monotonic() - began
        if (directory / FILE_NAME).exists():
            found = trials_of(directory)
            assert found == expected[: len(found)]
            assert len(found) >= known  # nothing that was finished is ever lost
            known = len(found)
        if code == 0:  # it ended before it could be killed: begin anew, so that all ages of a study are hit
            ended, known = ended + 1, 0
            assert_whole(directory, expected)
            shutil.rmtree(directory)
    assert run(context, argv) == 0
    assert_whole(directory, expected)
    assert ended < 2 * KILLS, f"{ended} runs ended, {whole:.1f} s each"


def assert_whole(directory: Path, expected: list[dict[str, Any]]) -> None:
    """The run folder has all that a search leaves, and nothing half done."""
    assert trials_of(directory) == expected
    journal = Journal.read(directory)
    assert journal.validations
    model = directory / "model"
    assert json.loads((model / "config.json").read_text())["num_hidden_layers"] == 4
    assert Tailoring.load(model / "tailoring.yaml") == Tailoring.load(directory / "tailoring.yaml")
    assert not [p.name for p in directory.rglob("*") if p.name.endswith((".tmp", ".partial"))]


def test_a_study_goes_on_in_another_place(
    recipe: dict[str, Any], write: Write, tmp_path: Path, context: Any
) -> None:
    recipe["study"]["existing"] = "resume"
    argv = ["search", "--config", write(recipe)]
    assert run(context, [*argv, "--study.directory", str(tmp_path / "whole")]) == 0
    for calls in range(10, 60):
        assert run(context, argv, calls=calls) == -signal.SIGKILL
        if (tmp_path / "run" / FILE_NAME).exists() and trials_of(tmp_path / "run"):
            break
    assert 0 < len(trials_of(tmp_path / "run")) < 8
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    (tmp_path / "run").rename(moved)
    assert run(context, ["search", "--resume", str(moved)]) == 0
    assert trials_of(moved) == trials_of(tmp_path / "whole")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # two processes that import everything
def test_a_study_goes_on_with_another_number_of_processes(
    recipe: dict[str, Any], write: Write, tmp_path: Path, context: Any
) -> None:
    recipe["family"]["init_args"]["dtype"] = "float32"
    recipe["study"] |= {"existing": "resume", "batch_size": 2}
    argv = ["search", "--config", write(recipe), "--trainer.strategy", "candidates"]
    assert run(context, [*argv, "--study.directory", str(tmp_path / "whole")]) == 0
    assert run(context, [*argv, "--study.trials", "4"]) == 0
    command = [sys.executable, "-m", "tailorlib.cli", *argv, "--trainer.devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=300, stdout=subprocess.DEVNULL)
    assert trials_of(tmp_path / "run") == trials_of(tmp_path / "whole")
    assert [s["ranks"] for s in Journal.read(tmp_path / "run").sessions] == [1, 2]


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_journal_that_lost_its_end_goes_on_from_what_is_left(
    recipe: dict[str, Any], write: Write, tmp_path: Path, context: Any, cut: int
) -> None:
    argv = ["search", "--config", write(recipe)]
    assert run(context, argv) == 0
    expected = trials_of(tmp_path / "run")
    journal = tmp_path / "run" / FILE_NAME
    lines = [line for line in journal.read_bytes().split(b"\n") if line and b'"kind":"session_end"' not in line]
    journal.write_bytes(b"\n".join([*lines[:-2], lines[-2][:-cut]]))  # in the midst of the trial before the last
    assert run(context, ["search", "--resume", str(tmp_path / "run")]) == 0
    assert trials_of(tmp_path / "run") == expected
