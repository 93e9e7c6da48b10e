"""Studies that score candidates on parts of the samples: the same numbers, whatever happens on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailorlib.cli import main
from tailorlib.journal import FILE_NAME, Journal, read_trials
from tailorlib.pareto import front, hypervolume, knee
from tailorlib.search.evaluator import Evaluator
from tailorlib.search.sample_store import FILE_NAME as SAMPLES_FILE
from tailorlib.search.sample_store import SampleStore, read_samples
from tailorlib.tailoring import Tailoring

Write = Callable[[dict[str, Any]], str]
Make = Callable[..., Evaluator]
COMMAND = [sys.executable, "-m", "tailorlib.cli", "search", "--config"]


def plain(directory: Path) -> list[dict[str, Any]]:
    """The trials without what they took."""
    found = [trial.to_dict() for trial in read_trials(directory)[1]]
    for trial in found:
        del trial["seconds"], trial["costs"]
    return found


@pytest.fixture
def halving(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with a scheduler: 16 samples, on rungs of 4, 8 and 16."""
    part = recipe["fitness"]["init_args"]["parts"]["text"]["init_args"]
    part |= {"context_length": 16, "max_tokens": 256}
    settings = {"eta": 2.0, "min_samples": 4}
    recipe |= {"optimizer": "RandomSearch", "scheduler": {"class_path": "ASHA", "init_args": settings}}
    recipe["study"] |= {"trials": 6, "export": False}
    del recipe["benchmark"]
    return recipe


def test_a_candidate_is_continued_to_the_score_that_it_has_on_all_samples(
    halving: dict[str, Any], write: Write, tmp_path: Path, make: Make
) -> None:
    assert main(["search", "--config", write(halving)]) == 0
    trials = read_trials(tmp_path / "run")[1]
    assert {t.samples for t in trials} == {4, 8, 16} and {t.fidelity for t in trials} == {0.25, 0.5, 1.0}
    known: dict[str, int] = {}
    for trial in trials:
        digest = trial.tailoring.digest
        assert trial.costs["samples"] == trial.samples - known.get(digest, 0)
        known[digest] = trial.samples
    assert sum(t.costs["samples"] for t in trials) == pytest.approx(6 * 16, abs=15)
    assert len(known) > 8  # more candidates than the six that all samples would do for
    halving.pop("scheduler")
    halving["study"] |= {"directory": str(tmp_path / "whole"), "trials": 40}
    assert main(["search", "--config", write(halving)]) == 0
    whole = {t.tailoring.digest: t for t in read_trials(tmp_path / "whole")[1]}
    both = [t for t in trials if t.fidelity == 1.0 and t.tailoring.digest in whole]
    assert both  # random search proposes the same ones, whatever it is told
    for trial in both:
        assert trial.fitness == pytest.approx(whole[trial.tailoring.digest].fitness, rel=1e-6)


@pytest.mark.parametrize("lost", ["nothing", "samples", "half a line"])
def test_a_study_that_was_interrupted_goes_on_as_if_it_had_not_been(
    halving: dict[str, Any], write: Write, tmp_path: Path, lost: str
) -> None:
    halving["study"] |= {"directory": str(tmp_path / "once")}
    assert main(["search", "--config", write(halving)]) == 0
    halving["study"] |= {"directory": str(tmp_path / "twice")}
    assert main(["search", "--config", write(halving)]) == 0
    journal = tmp_path / "twice" / FILE_NAME
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:14]) + lines[14][:40])  # a header, the dense model and twelve trials
    samples = tmp_path / "twice" / SAMPLES_FILE
    if lost == "samples":
        samples.unlink()
    elif lost == "half a line":
        samples.write_bytes(samples.read_bytes()[:-30])
    assert main(["search", "--resume", str(tmp_path / "twice")]) == 0
    once, twice = plain(tmp_path / "once"), plain(tmp_path / "twice")
    if lost == "samples":  # scored anew from the first on, all at once: the last digits may differ
        for trial in (*once, *twice):
            del trial["metrics"]
            trial["fitness"] = round(trial["fitness"], 5)
    for a, b in zip(once, twice, strict=True):
        assert a == b


def test_two_ranks_make_the_same_trials_as_one(halving: dict[str, Any], write: Write, tmp_path: Path) -> None:
    halving["study"] |= {"batch_size": 3, "shards": 2}
    halving["search_space"]["init_args"]["removal"]["init_args"]["count"] = [1, 3]
    halving["objectives"] = ["Quality", "ParametersRemoved"]
    fitness = halving["fitness"]["init_args"]["parts"]["text"]
    halving["validation"] = {"fitness": {**fitness, "init_args": {**fitness["init_args"], "context_length": 32}}}
    path = write(halving)
    for name, devices in (("one", "1"), ("two", "2")):
        options = ["--study.directory", str(tmp_path / name), "--trainer.devices", devices]
        subprocess.run(
            [*COMMAND, path, *options, "--trainer.strategy", "candidates"],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
    assert plain(tmp_path / "one") == plain(tmp_path / "two")
    assert Journal.read(tmp_path / "one").validations == Journal.read(tmp_path / "two").validations


def test_several_objectives_end_with_the_balanced_candidate(
    halving: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    halving.pop("scheduler")
    halving["search_space"]["init_args"]["removal"]["init_args"]["count"] = [0, 4]
    halving["objectives"] = ["Quality", "ParametersRemoved"]
    halving["study"] |= {"trials": 20}
    assert main(["search", "--config", write(halving)]) == 0
    trials = read_trials(tmp_path / "run")[1]
    counts = {len(t.tailoring.layers): t.objectives["parameters_removed"] for t in trials}
    assert len(counts) > 2 and all(0 <= share < 1 for share in counts.values())
    assert sorted(counts, reverse=True) == sorted(counts, key=lambda n: counts[n])  # fewer layers, more removed
    assert all(t.objectives["quality"] == t.fitness for t in trials)
    best = knee(trials)
    assert best is not None and best in front(trials)
    written = Tailoring.from_dict(yaml.safe_load((tmp_path / "run" / "tailoring.yaml").read_text()))
    assert written == best.tailoring
    rows = (tmp_path / "run" / "metrics" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("hypervolume")
    assert float(rows[-1].split(",")[column]) == pytest.approx(hypervolume(trials))


def validated(recipe: dict[str, Any], folder: Path, **settings: Any) -> dict[str, Any]:
    """Let the search see one text and validation another."""
    (folder / "other.txt").write_text("In winter the days are short and the nights are long and cold. " * 12)
    other = {"class_path": "PlainText", "init_args": {"path": str(folder / "other.txt")}}
    fitness = {"class_path": "Perplexity", "init_args": {"text": other, "context_length": 32, "max_tokens": None}}
    recipe["validation"] = {"fitness": fitness, **settings}
    return recipe


def test_the_best_candidate_is_validated_and_the_best_of_these_is_the_result(
    halving: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    halving.pop("scheduler")
    halving["study"]["trials"] = 12
    assert main(["search", "--config", write(validated(halving, tmp_path))]) == 0
    journal = Journal.read(tmp_path / "run")
    best, incumbents = -1.0, []
    for trial in journal.trials:
        if trial.fitness is not None and trial.fitness > best:
            best = trial.fitness
            incumbents.append(trial.number)
    assert list(journal.validations) == incumbents
    chosen = max(journal.validations, key=lambda n: journal.validations[n].score)
    written = Tailoring.from_dict(yaml.safe_load((tmp_path / "run" / "tailoring.yaml").read_text()))
    assert written == journal.trials[chosen].tailoring


def test_patience_ends_a_search_that_no_longer_finds_what_validates(
    halving: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halving.pop("scheduler")
    halving["study"]["trials"] = 60
    # the worst text for the search: what is good for one is bad for the other
    recipe = validated(halving, tmp_path, patience=1)
    assert main(["search", "--config", write(recipe)]) == 0
    journal = Journal.read(tmp_path / "run")
    scores = list(journal.validations.values())
    stopped = "1 validations in a row found no better score" in capsys.readouterr().out
    assert stopped == (len(journal.trials) < 60)
    falls = [i for i in range(1, len(scores)) if scores[i].score <= max(s.score for s in scores[:i])]
    assert bool(falls) == stopped and falls in ([], [len(scores) - 1])
    assert stopped
    assert main(["search", "--resume", str(tmp_path / "run")]) == 0  # the journal says the same again
    assert Journal.read(tmp_path / "run").validations == journal.validations


def test_shared_data_is_said(
    halving: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitness = halving["fitness"]["init_args"]["parts"]["text"]
    halving["benchmark"] = {"fitness": {**fitness, "init_args": {**fitness["init_args"], "context_length": 24}}}
    halving["study"]["trials"] = 1
    halving.pop("scheduler")
    assert main(["search", "--config", write(validated(halving, tmp_path))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "benchmark.fitness shares 100% of its questions or documents with the search's fitness" in shown
    assert "validation.fitness shares" not in shown


def test_scores_that_never_differ_stop_the_study(
    halving: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halving.pop("scheduler")
    halving["objectives"] = ["Quality", "ParametersRemoved"]  # the number of layers is fixed
    halving["study"]["trials"] = 40
    assert main(["search", "--config", write(halving)]) == 2
    assert "parameters_removed is 0." in " ".join(capsys.readouterr().err.split())
    assert len(read_trials(tmp_path / "run")[1]) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": ["Quality"]}, "objectives are several, got 'quality' alone"),
        ({"objectives": ["Quality", "Quality"]}, "objectives have names of their own, got 'quality' twice"),
        ({"scheduler": "Hyperbnd"}, "There is no class 'Hyperbnd'. Did you mean 'Hyperband'?"),
        ({"validation": {"patience": 2}}, "validation.patience needs validation.fitness"),
        ({"validation": {"every": 0}}, "validation.every is at least 1, got 0"),
        (
            {"scheduler": {"class_path": "Hyperband", "init_args": {"min_samples": 1}}, "study": {"trials": 1}},
            "first round costs",
        ),
        ({"optimizer": "StructuredBayes", "objectives": ["Quality", "ParametersRemoved"]}, "wrap it in ParEGO"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_written(
    halving: dict[str, Any],
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    study = {**halving["study"], **change.pop("study", {})}
    assert main(["search", "--config", write({**halving, **change, "study": study})]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_an_unknown_part_is_a_failed_trial_with_its_reason(
    halving: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halving.pop("scheduler")
    halving["objectives"] = ["Quality", {"class_path": "Quality", "init_args": {"part": "txt"}}]
    halving["study"] |= {"trials": 5, "max_failures": 2}
    assert main(["search", "--config", write(halving)]) == 2
    assert "Quality.part names a part of the fitness, got 'txt'. Did you mean 'text'?" in " ".join(
        capsys.readouterr().err.split()
    )


def test_torn_sample_files_give_what_is_whole(tmp_path: Path) -> None:
    store = SampleStore(tmp_path)
    store.extend("a", [1.0, [2.0, True]])
    store.extend("b", [5])
    store.extend("a", [3.0])
    assert read_samples(tmp_path) == {"a": [1.0, [2.0, True], 3.0], "b": [5]}
    path = tmp_path / SAMPLES_FILE
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        found = read_samples(tmp_path)
        assert found.get("a", []) in ([], [1.0, [2.0, True]], [1.0, [2.0, True], 3.0])
        assert set(found) <= {"a", "b"}
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[1] + lines[2])  # the first results of a are lost: the later ones hang in the air
    assert read_samples(tmp_path) == {"b": [5]}
    store.drop("a")
    assert store.known == {"b": [5]}
    assert read_samples(tmp_path / "nowhere") == {}
