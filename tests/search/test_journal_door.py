"""Whatever a fitness gives, the study goes on, and what stands in the journal can be read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tailorlib.cli import main
from tailorlib.journal import FILE_NAME, RESCUED_NAME, Journal, read_trials

NUMBERS = count()
Write = Callable[[dict[str, Any]], str]

PLUGIN = """
import json, multiprocessing, os, signal, sys
import numpy as np, torch
from pathlib import Path
from tailorlib import Fitness, Measurement

class Silent(Exception):
    def __str__(self): raise RuntimeError("no message")

def double(x): return 2 * x

class Odd(Fitness):
    calls = -1
    SAMPLES
    def _evaluate(self, model):
        Odd.calls += 1
        n = Odd.calls
        BODY
        return Measurement(0.5 + n / 100)
"""


@pytest.fixture
def odd(recipe: dict[str, Any], write: Write, tmp_path: Path) -> Callable[..., str]:
    """Write a recipe with a fitness of a given body; call 0 scores the dense model."""

    def make(body: str, samples: str = "", **study: Any) -> str:
        name = f"Odd{next(NUMBERS)}"  # parsers know all classes that ever were
        text = PLUGIN.replace("BODY", body.replace("\n", "\n        ")).replace("SAMPLES", samples)
        text = re.sub(r"\bOdd\b", name, text)
        (tmp_path / "odd.py").write_text(text)
        recipe["plugins"], recipe["fitness"] = [str(tmp_path / "odd.py")], name
        for section in ("warm_starts", "benchmark"):
            recipe.pop(section, None)
        recipe["optimizer"] = "RandomSearch"
        recipe["study"] |= {"trials": 3, "export": False, "max_failures": 100, **study}
        return write(recipe)

    return make


BAD = {
    "metrics={'x': None}": "metric 'x' is a number, got None",
    "metrics={'x': '0.5'}": "metric 'x' is a number, got '0.5'",
    "metrics={'x': [1.0]}": "metric 'x' is a number, got [1.0]",
    "metrics={'x': {'y': 1.0}}": "metric 'x' is a number",
    "metrics={1: 1.0, '1': 2.0}": "has a name of its own",
    "metrics={'x': torch.zeros(2)}": "metric 'x' is a number, got tensor",
    "metrics={'x': 10**400}": "metric 'x' is a number",
    "metrics=3": "they are a mapping, got 3",
    "parts={'p': None}": "part's score 'p' is a number",
    "chance={'x': 'half'}": "chance of a metric 'x' is a number",
    "score=None": "score is a number, got None",
    "score=float('nan')": "gives a finite score, got nan",
    "score=torch.tensor(float('inf'))": "gives a finite score, got inf",
}
RAISED = {
    "raise ValueError('half \\ud800 a character')": "ValueError: half \\ud800 a character",
    "raise Silent()": "Silent: (the message of this Silent can't be shown: its __str__ raises)",
    "raise ValueError('x' * 10_000_000)": "characters left out",
    "raise ValueError()": "ValueError:",
    "return 3": "",
}


def test_what_is_no_number_is_a_failed_trial_with_its_reason(odd: Callable[..., str], tmp_path: Path) -> None:
    made = [f"Measurement(**{{'score': 0.5, **dict({arguments})}})" for arguments in BAD]
    body = "".join(f"if n == {i}: return {text}\n" for i, text in enumerate(made, start=1))
    body += "".join(f"if n == {i}: {text}\n" for i, text in enumerate(RAISED, start=1 + len(made)))
    path = odd(body, trials=len(BAD) + len(RAISED) + 1)
    assert main(["search", "--config", path]) == 1  # the result rests on less than half of the trials
    trials = read_trials(tmp_path / "run")[1]
    assert [t.state for t in trials] == ["failed"] * (len(trials) - 1) + ["complete"]
    for trial, said in zip(trials, (*BAD.values(), *RAISED.values()), strict=False):
        assert said in str(trial.reason)
    assert (tmp_path / "run" / FILE_NAME).stat().st_size < 200_000
    assert main(["search", "--resume", str(tmp_path / "run")]) == 1
    assert read_trials(tmp_path / "run")[1] == trials


def test_scalars_of_numpy_and_torch_are_numbers(odd: Callable[..., str], tmp_path: Path) -> None:
    values = (
        "np.float32(0.25), np.int64(3), np.array(0.5), np.bool_(True), torch.tensor(2.5), torch.tensor(4), True"
    )
    body = (
        f"values = [{values}, float('nan')]\n"
        "return Measurement(torch.tensor(0.5) + n / 100, dict(zip('abcdefgh', values)) | {7: np.float64(1)})"
    )
    assert main(["search", "--config", odd(body)]) == 0
    (dense, trials) = read_trials(tmp_path / "run")
    assert dense is not None and dense.score == 0.5
    for trial in trials:
        assert {k: v for k, v in trial.metrics.items() if k != "h"} == {
            "a": 0.25, "b": 3.0, "c": 0.5, "d": 1.0, "e": 2.5, "f": 4.0, "g": 1.0, "7": 1.0,
        }  # fmt: skip
        assert {type(v) for v in trial.metrics.values()} == {float}


SAMPLES = """
    num_samples = 4
    def _score_samples(self, model, samples):
        Odd.calls += 1
        return [RESULT for _ in samples]
    def _summarise(self, results): return Measurement(0.5 + len(results) / 100)
"""


RESULTS = {
    "np.zeros(3)": "plain data: numbers, texts, lists, and mappings by name; got array",
    "{1: 2.0}": "whose mappings have names for keys",
    "object()": "plain data: numbers",
    "[[]] * 2 + [10**5000]": "whole numbers of at most",
    "torch.tensor(1.5)": "None",
    "(np.int64(1), {'a': np.float32(0.5)}, None, '\\ud800', float('inf'))": "None",
}


def test_results_on_samples_are_what_json_holds(odd: Callable[..., str], tmp_path: Path) -> None:
    made = "".join(f" {result} if Odd.calls == {i} else" for i, result in enumerate(RESULTS, start=1))
    path = odd("", SAMPLES.replace("RESULT", f"({made} 0.0)"), batch_size=2, trials=6)
    assert main(["search", "--config", path]) == 1  # the result rests on less than half of the trials
    reasons = [t.reason for t in read_trials(tmp_path / "run")[1]]
    for said in RESULTS.values():
        assert any(said in str(reason) for reason in reasons)
    assert reasons.count(None) == 2


@pytest.mark.parametrize("how", ["return Measurement(0.9)", "raise ValueError('in the child')", "sys.exit(0)"])
def test_a_process_that_a_fitness_forks_is_no_second_search(
    odd: Callable[..., str], tmp_path: Path, how: str
) -> None:
    body = (
        f"child = os.fork()\nif child == 0:\n    {how}\n"
        "ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        f"Path({str(tmp_path / 'ended')!r}).open('a').write(str(ended))"
    )
    assert main(["search", "--config", odd(body)]) == 0
    trials = read_trials(tmp_path / "run")[1]
    assert [t.fitness for t in trials] == [0.51, 0.52, 0.53]
    assert (tmp_path / "ended").read_text() == ("0" if "exit" in how else "1") * 4
    assert len(Journal.read(tmp_path / "run").sessions) == 1


def test_a_pool_of_workers_ends_when_it_is_told(odd: Callable[..., str], tmp_path: Path) -> None:
    body = (
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n    found = pool.map(double, [1, 2])\n"
        "pool.join()\nreturn Measurement(0.5, {'found': sum(found), 'handler': "
        "signal.getsignal(signal.SIGTERM) != signal.SIG_DFL})"
    )
    assert main(["search", "--config", odd(body)]) == 0
    assert [t.metrics for t in read_trials(tmp_path / "run")[1]] == [{"found": 6.0, "handler": 1.0}] * 3


DISTURBED = {
    "(run / 'journal.jsonl').write_bytes((run / 'journal.jsonl').read_bytes()[:-100])": "bytes where this process",
    "(run / 'journal.jsonl').unlink()": "was deleted or moved away",
    "(run / 'j').write_bytes((run / 'journal.jsonl').read_bytes()); (run / 'j').replace(run / 'journal.jsonl')": (
        "was replaced by another file"
    ),
    "run.rename(run.with_name('moved'))": "was deleted or replaced",
    "(run / '.lock').unlink()": "lock of",
    "(run / 'journal.jsonl').open('ab').write(b'x')": "bytes where this process",
}


@pytest.mark.parametrize("how", DISTURBED)
def test_a_record_that_is_changed_while_a_search_runs_stops_it_and_loses_nothing(
    odd: Callable[..., str], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    path = odd(f"run = Path({str(run)!r})\nif n == 3:\n    {how}", trials=5)
    assert main(["search", "--config", path]) == 2
    message = capsys.readouterr().err
    assert DISTURBED[how] in message and "all 3 trials are in" in message and "Traceback" not in message
    (run / RESCUED_NAME).replace(run / FILE_NAME)
    assert [t.fitness for t in read_trials(run)[1]] == [0.51, 0.52, 0.53]


def test_a_candidate_without_a_name_is_refused_before_anything_runs(
    recipe: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = recipe["family"]["init_args"]["candidates"]
    names[""] = names.pop("a")
    assert main(["search", "--config", write(recipe)]) == 2
    assert "has a name, a text of one character or more, got ''" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
