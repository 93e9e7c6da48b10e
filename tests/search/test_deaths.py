"""A candidate that kills its process is met a few times, and not for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorlib.cli import main
from tailorlib.journal import Journal, read_trials
from tailorlib.search.deaths import BOOT, Deaths, count_deaths, drop_deaths

PLUGIN = """
import os, signal
from pathlib import Path
from tailorlib import Fitness, Measurement

class Deadly(Fitness):
    num_samples, min_samples = 4, 1
    def _score_samples(self, model, samples):
        score = float(sum(p.double().abs().sum() for p in model.parameters())) / 1e5
        deadly = Path(PATH)
        if deadly.exists() and deadly.read_text() == repr(score):
            os.kill(os.getpid(), signal.SIGKILL)
        return [score for _ in samples]
    def _summarise(self, results):
        return Measurement(sum(results) / len(results))
"""


def in_a_process(call: Callable[[], int]) -> int:
    """Call a function in a forked process; return its exit status."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(call())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("batch", [1, 3])
def test_a_candidate_that_kills_its_process_twice_is_a_failed_trial(
    recipe: dict[str, Any], write: Callable[..., str], tmp_path: Path, batch: int
) -> None:
    name, deadly = f"Deadly{batch}", tmp_path / "deadly"
    (tmp_path / "deadly.py").write_text(PLUGIN.replace("Deadly", name).replace("PATH", repr(str(deadly))))
    recipe |= {"plugins": [str(tmp_path / "deadly.py")], "fitness": name, "optimizer": "RandomSearch"}
    for section in ("warm_starts", "benchmark"):
        del recipe[section]
    recipe["study"] |= {"trials": 6, "existing": "resume", "export": False, "batch_size": batch, "shards": batch}
    argv = ["search", "--config", write(recipe)]
    assert main([*argv, "--study.directory", str(tmp_path / "whole")]) == 0
    expected = read_trials(tmp_path / "whole")[1]
    deadly.write_text(repr(expected[3].fitness))
    assert [in_a_process(lambda: main(argv)) for _ in range(3)] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    trials = read_trials(tmp_path / "run")[1]
    assert [t.tailoring for t in trials] == [t.tailoring for t in expected]  # random search asks for them anyway
    for found, before in zip(trials, expected, strict=True):
        assert found.fitness == (None if found.number == 3 else before.fitness)
    assert str(trials[3].reason).startswith("The process that scored it was killed 2 times")
    assert not list((tmp_path / "run").glob("begun.*"))
    assert len(Journal.read(tmp_path / "run").sessions) == 3


def killed(folder: Path, name: str, rank: int = 0) -> None:
    def die() -> int:
        with Deaths(folder, rank).watch(name):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert in_a_process(die) == -signal.SIGKILL


def test_deaths_are_counted_by_what_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path, "a")
    killed(tmp_path, "b", rank=1)
    assert count_deaths(tmp_path) == {"a": 1, "b": 1} == count_deaths(tmp_path)
    killed(tmp_path, "a")
    deaths = Deaths(tmp_path, most=2)
    deaths.counts = count_deaths(tmp_path)
    assert deaths.counts == {"a": 2, "b": 1}
    assert "killed 2 times" in str(deaths.reason("a")) and deaths.reason("b") is deaths.reason("c") is None
    with pytest.raises(KeyboardInterrupt), deaths.watch("b"):
        assert list(tmp_path.glob("begun.*"))
        raise KeyboardInterrupt
    with deaths.watch("b"):
        deaths.excuse()  # a SIGTERM arrives, and a kill -9 follows
        assert not list(tmp_path.glob("begun.*"))
    (tmp_path / "begun.0.json").write_text("torn")
    assert count_deaths(tmp_path) == {"a": 2, "b": 1}
    if BOOT.exists():  # the machine was started again
        killed(tmp_path, "b")
        (tmp_path / "boot").write_text("another")
        monkeypatch.setattr("tailorlib.search.deaths.BOOT", tmp_path / "boot")
        assert count_deaths(tmp_path) == {"a": 2, "b": 1}
    drop_deaths(tmp_path)
    assert count_deaths(tmp_path) == {}
