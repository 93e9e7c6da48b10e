from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorlib.cli import main
from tailorlib.exceptions import RecipeError
from tailorlib.journal import read_trials
from tailorlib.models.family import ModelFamily
from tailorlib.search.study import StudySettings
from tailorlib.search.time_limit import EXIT_CODE, TrialTimeoutError, time_limit

Write = Callable[[dict[str, Any]], str]
FOREVER = (
    "import ctypes; ctypes.CDLL(None).sigwait(ctypes.create_string_buffer(128), ctypes.byref(ctypes.c_int()))"
)
"""Waits for none of all signals: a call of a library that no handler of Python can interrupt."""


def test_a_block_that_takes_too_long_is_interrupted() -> None:
    began = time.monotonic()
    with pytest.raises(TrialTimeoutError, match=r"study.trial_seconds=0.2"), time_limit(0.2, lambda reason: None):
        time.sleep(30)
    assert time.monotonic() - began < 5
    time.sleep(0.3)  # nothing goes off later


def test_code_that_catches_everything_is_interrupted_again() -> None:
    caught = 0
    with pytest.raises(TrialTimeoutError), time_limit(0.1, lambda reason: None):
        while caught < 2:
            try:
                time.sleep(30)
            except Exception:
                caught += 1
                if caught == 2:
                    raise
    assert caught == 2


def test_an_error_that_a_library_makes_of_the_interruption_is_one() -> None:
    with pytest.raises(TrialTimeoutError, match=r"trial_seconds=0\.1"), time_limit(0.1, lambda why: None):
        try:
            time.sleep(5)
        except TrialTimeoutError:
            raise ValueError("could not determine the shape") from None
    with pytest.raises(ValueError, match="its own"), time_limit(5, lambda why: None):
        raise ValueError("its own")


@pytest.mark.parametrize("seconds", [1e-6, 1e-4])
def test_a_limit_that_is_over_at_once_leaves_nothing_behind(seconds: float) -> None:
    before = signal.getsignal(signal.SIGALRM)
    for _ in range(20):
        with pytest.raises(TrialTimeoutError), time_limit(seconds, lambda why: None):
            time.sleep(5)
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL)[1] == 0.0  # pytest's own alarm does not repeat
    assert not [thread for thread in threading.enumerate() if thread.name == "time limit" and _waits(thread)]


def _waits(thread: threading.Thread) -> bool:
    thread.join(5)
    return thread.is_alive()


def test_somebody_elses_alarm_still_goes_off() -> None:
    rung: list[int] = []
    former = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        before = signal.setitimer(signal.ITIMER_REAL, 0.5)
        with time_limit(30, lambda reason: None):
            time.sleep(0.1)
        assert not rung
        time.sleep(0.6)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, former)
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_what_can_not_be_interrupted_ends_the_process_and_leaves_its_reason(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from tailorlib.search.time_limit import time_limit\n"
        "left = pathlib.Path(sys.argv[1])\n"
        f"with time_limit(0.2, left.write_text, grace=0.2):\n    {FOREVER}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "left")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == EXIT_CODE, done.stderr
    assert "could not be interrupted" in (tmp_path / "left").read_text()
    assert "Resume the study" in done.stderr


PLUGIN = """
import os, time
from tailorlib import MergeOperation

class Sleepy(MergeOperation):
    def merge(self, tensors, *, base, params, generators):
        HANG
        return sum(tensors) / len(tensors)
"""


def test_a_candidate_that_hangs_is_a_failed_trial(recipe: dict[str, Any], write: Write, tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text(PLUGIN.replace("HANG", "time.sleep(30)"))
    recipe["search_space"]["init_args"]["merges"] = ["Sleepy"]
    recipe["plugins"] = [str(tmp_path / "sleepy.py")]
    recipe["study"] |= {"trials": 6, "trial_seconds": 2.0, "max_failures": 100}
    del recipe["benchmark"]  # a random tailoring would hang there, too
    assert main(["search", "--config", write(recipe)]) == 0
    trials = read_trials(tmp_path / "run")[1]
    failed = [t for t in trials if t.state == "failed"]
    assert 0 < len(failed) < 6
    assert {t.reason for t in failed} == {"The candidate took longer than study.trial_seconds=2."}
    assert all(any(p.operation == "Sleepy" for p in t.tailoring.layers) for t in failed)


def test_a_limit_that_the_dense_base_exceeds_is_told(
    recipe: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelFamily, "stitch", lambda family, tailoring: time.sleep(5))
    recipe["study"]["trial_seconds"] = 0.1
    assert main(["search", "--config", write(recipe)]) == 2
    error = capsys.readouterr().err
    assert "the dense base, which can't be scored itself" in error
    assert "study.trial_seconds=0.1" in error
    assert "Traceback" not in error


def test_a_process_that_was_ended_leaves_a_failed_trial(
    recipe: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    (tmp_path / "sleepy.py").write_text(PLUGIN.replace("HANG", FOREVER))
    recipe["search_space"]["init_args"]["merges"] = ["Sleepy"]
    recipe["plugins"] = [str(tmp_path / "sleepy.py")]
    recipe["study"] |= {"trials": 6, "trial_seconds": 2.0, "max_failures": 100, "existing": "resume"}
    del recipe["benchmark"]
    script = (
        "import sys, tailorlib.search.time_limit as t\nt.GRACE = 0.5\n"
        "from tailorlib.cli import main\nsys.exit(main())"
    )
    path = write(recipe)
    ends = []
    while 0 not in ends and len(ends) < 7:
        command = [sys.executable, "-c", script, "search", "--config", path]
        ends.append(subprocess.run(command, capture_output=True, timeout=120, check=False).returncode)
    assert ends == [EXIT_CODE] * (len(ends) - 1) + [0]
    trials = read_trials(tmp_path / "run")[1]
    failed = [t for t in trials if t.state == "failed"]
    assert len(trials) == 6
    assert len(failed) == len(ends) - 1 > 0
    assert all("could not be interrupted" in str(t.reason) for t in failed)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_limit_is_more_than_nothing(seconds: float) -> None:
    with pytest.raises(RecipeError, match="trial_seconds is more than 0"):
        StudySettings(trial_seconds=seconds)
