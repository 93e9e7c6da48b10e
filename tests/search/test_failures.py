"""A plugin that fails: its trial says where, common causes say how, and a result on few trials is no success."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorlib import LayerPlan, LayerSource, MergeOperation, Tailoring, Trial
from tailorlib.cli import main
from tailorlib.exceptions import PluginError
from tailorlib.journal import read_trials
from tailorlib.plugins import find_class
from tailorlib.registry import load_plugin
from tailorlib.search.trainer import _tell_failures

FAILS = """
from tailorlib import MergeOperation
class FailsOften(MergeOperation):
    def merge(self, tensors, *, base, params, generators):
        return look_up({}, "weight")
def look_up(table, name):
    return table[name]
"""


def trials(*failed: bool) -> list[Trial]:
    tailoring = Tailoring((LayerPlan((LayerSource("base", 0),)),))
    good = Trial(0, {}, tailoring, "complete", 1.0)
    bad = replace(good, state="failed", fitness=None, reason="KeyError: 'x'")
    return [replace(bad if f else good, number=i) for i, f in enumerate(failed)]


@pytest.mark.parametrize(
    ("failed", "sound", "said"),
    [
        ([False] * 20, True, ""),
        ([True, *[False] * 19], True, ""),
        ([True, True, *[False] * 8], True, "2 of 10 trials failed: many trials failed"),
        ([True, False], True, "1 of 2 trials failed: many"),
        ([True, True, False], False, "2 of 3 trials failed: the result rests on less than half"),
    ],
)
def test_many_failures_are_told(
    failed: list[bool], sound: bool, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _tell_failures(trials(*failed)) == sound
    told = " ".join(capsys.readouterr().out.split())
    assert said in told and bool(said) == bool(told)


def test_a_failure_in_a_plugin_is_on_record_with_its_place(
    recipe: dict[str, Any],
    write: Callable[[dict[str, Any]], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    recipe["plugins"] = [str(tmp_path / "fails.py")]
    recipe["search_space"]["init_args"]["merges"] = ["FailsOften"]
    status = main(["search", "--config", write(recipe), "--json"])
    _, found = read_trials(tmp_path / "run")
    bad = [t for t in found if t.state == "failed"]
    assert bad
    for trial in bad:
        assert "KeyError: 'weight' (fails.py, line 7, in look_up: return table[name]" in str(trial.reason)
        assert "called from fails.py, line 5, in merge" in str(trial.reason)
    told = capsys.readouterr()
    facts = [json.loads(line) for line in told.out.splitlines()]
    result = next((fact for fact in facts if fact["kind"] == "result"), None)
    if result is not None:
        assert result["failed_trials"] == len(bad)
        assert status == (0 if result["reliable"] else 1)
        assert f"{len(bad)} of {len(found)} trials failed" in told.err


def test_a_merge_that_lacks_its_base_says_what_to_declare() -> None:
    class Deltas(MergeOperation):
        def merge(self, tensors, *, base, params, generators):  # type: ignore[no-untyped-def]
            return base + tensors[0]

    generators: Any = [None, None]
    with pytest.raises(PluginError, match=r"Deltas\.merge failed at a tensor: TypeError: .* needs_base = True"):
        Deltas().apply([torch.ones(2), torch.ones(2)], base=torch.ones(2), params={}, generators=generators)


def test_a_class_with_methods_left_to_write_says_which(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(
        "from tailorlib import Scheduler\n"
        "class HalfAScheduler(Scheduler):\n    def _start(self):\n        return 1\n"
    )
    load_plugin(str(tmp_path / "half.py"))
    with pytest.raises(PluginError, match="HalfAScheduler is no Scheduler yet: it has to write _promote, _tell"):
        find_class("HalfAScheduler")
