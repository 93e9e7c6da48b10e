"""The summary of a study against a study made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO

from rich.console import Console

from tailorlib import FamilyLayout, Trial
from tailorlib.report.summary import duplicates, study_summary, summary_facts


def test_summary_of_a_study(trials: tuple[Trial, ...]) -> None:
    assert summary_facts(trials, 0.8, seconds=75.4) == {
        "best": "trial 3, fitness 0.5 (dense 0.8, 62.5 % retained)",
        "found by": "optimizer; the best warm start was BlockInfluence (trial 0) with 0.3",
        "trials": "4 complete, 1 failed",
        "last failure": "loss is NaN",
        "time": "1 min 15 s; median 3.50 s a trial",
    }


def test_a_best_warm_start_is_owned_up_to(make_trial: Callable[..., Trial]) -> None:
    facts = summary_facts([make_trial(0, 0.5, "BlockInfluence"), make_trial(1, 0.2)], None, seconds=2.0)
    assert facts["found by"] == "warm start BlockInfluence; the optimizer found nothing better"
    assert facts["best"] == "trial 0, fitness 0.5"


def test_repeated_tailorings_count_as_duplicates_and_not_in_the_median(trials: tuple[Trial, ...]) -> None:
    again = (*trials, replace(trials[3], number=5, seconds=0.0), replace(trials[3], number=6, seconds=0.0))
    assert duplicates(again) == 2
    facts = summary_facts(again, None, seconds=7200.0)
    assert facts["trials"] == "6 complete, 1 failed; 2 of them repeat an earlier tailoring"
    assert facts["time"] == "2 h 0 min; median 3.50 s a trial"


def test_a_study_without_a_complete_trial(make_trial: Callable[..., Trial]) -> None:
    facts = summary_facts([make_trial(0, None)], 0.8, seconds=1.0)
    assert facts == {
        "best": "no trial is complete",
        "trials": "0 complete, 1 failed",
        "last failure": "loss is NaN",
        "time": "1.0 s",
    }


def test_a_dense_fitness_that_is_not_positive_gives_no_percentage(trials: tuple[Trial, ...]) -> None:
    assert summary_facts(trials, -2.0, seconds=1.0)["best"] == "trial 3, fitness 0.5 (dense -2)"


def test_what_the_caches_saved_is_told(trials: tuple[Trial, ...]) -> None:
    costs = {"layers_run": 12.0, "layers_reused": 4.0, "merges": 1, "merges_reused": 3}
    sizes = {"prefix_cache_mib": 100.0, "merge_cache_mib": 7.0}
    spent = [
        replace(trials[0], costs={**costs, **sizes}),
        replace(trials[1], costs={"layers_run": 8.0, "layers_reused": 8.0, "prefix_cache_mib": 250.4}),
    ]
    facts = summary_facts(spent, None, seconds=1.0)
    assert facts["reused"] == "38% of layers (250 MiB), 75% of merged layers (7 MiB)"
    assert [t.reused_layers for t in (*spent, trials[2])] == [0.25, 0.5, 0.0]


def test_the_panel_shows_the_facts_and_the_layer_map(trials: tuple[Trial, ...], layout: FamilyLayout) -> None:
    console = Console(file=StringIO(), width=100)
    console.print(study_summary(trials, 0.8, 75.4, layout=layout))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "trial 3, fitness 0.5" in text
    assert "code  ·▓×·▓×" in text
