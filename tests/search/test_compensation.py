"""Searches over bridged candidates: what is scored is what is shipped, and what decides it is known by content."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tailorlib.cli import main
from tailorlib.journal import FILE_NAME, read_trials
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial, incumbent

Write = Callable[[dict[str, Any]], str]


@pytest.fixture
def bridged(recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The tiny family's recipe with bridges."""
    for name, step in (("one", 7), ("two", 11)):
        lines = [" ".join(f"w{(i * i + j * step) % 97}" for j in range(30)) for i in range(40)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    sources = {
        name: {"class_path": "PlainText", "init_args": {"path": str(tmp_path / f"{name}.txt")}}
        for name in ("one", "two")
    }
    calibration = {"sources": sources, "tokens": 800, "context_length": 32}
    recipe["compensation"] = {"class_path": "Bridge", "init_args": {"calibration": calibration}}
    recipe["study"]["trials"] = 6
    return recipe


def essence(run: Path) -> list[dict[str, Any]]:
    """Return the trials without what they took."""
    trials = [trial.to_dict() for trial in read_trials(run)[1]]
    return [{k: v for k, v in trial.items() if k not in ("seconds", "costs")} for trial in trials]


def best_of(run: Path) -> Trial:
    best = incumbent(read_trials(run)[1])
    assert best is not None
    return best


def gaps(tailoring: Tailoring) -> list[int]:
    """Return the depths of the layers below gaps, of a family of six layers."""
    depths = [plan.sources[0].layer for plan in tailoring.layers] + [6]
    return [a for a, b in pairwise(depths) if b > a + 1]


def test_every_candidate_is_bridged_and_ships_without_the_cache(
    bridged: dict[str, Any],
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    assert main(["search", "--config", write(bridged)]) == 0
    run = tmp_path / "run"
    trials = read_trials(run)[1]
    for trial in trials:
        terms = {plan.sources[0].layer for plan in trial.tailoring.layers if plan.terms}
        assert terms == set(gaps(trial.tailoring))
    assert any(gaps(trial.tailoring) for trial in trials)
    kept = {str(p.relative_to(run / "terms"))[: -len(".safetensors")] for p in run.glob("terms/*/*.safetensors")}
    assert kept == {term for trial in trials for term in trial.tailoring.terms}
    assert "+ Bridge " in (run / "recipe.yaml").read_text() + _shown(run, capsys)
    shutil.rmtree(tmp_path / "cache")
    assert main(["export", str(run), "--output", str(tmp_path / "out"), "--verify", "true"]) == 0
    for name in ("model", "../out"):
        loaded = AutoModelForCausalLM.from_pretrained(run / name)
        assert loaded.config.num_hidden_layers == 4
    first, second = (load_file(run / n / "model.safetensors") for n in ("model", "../out"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "Bridge" in (run / "model" / "README.md").read_text()


def _shown(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["show", str(run), "--trial", str(best_of(run).number)]) == 0
    return capsys.readouterr().out


def test_bridges_change_the_scores_and_not_what_is_proposed_first(
    bridged: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    bridged["study"]["export"] = False
    assert main(["search", "--config", write(bridged)]) == 0
    del bridged["compensation"]
    bridged["study"]["directory"] = str(tmp_path / "plain")
    assert main(["search", "--config", write(bridged)]) == 0
    with_bridges, plain = (read_trials(tmp_path / name)[1] for name in ("run", "plain"))
    assert [t.tailoring.bare for t in with_bridges[:3]] == [t.tailoring for t in plain[:3]]
    assert with_bridges[0].fitness != plain[0].fitness


def test_a_resumed_study_goes_on_as_if_uninterrupted(
    bridged: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    bridged["study"]["export"] = False
    assert main(["search", "--config", write(bridged)]) == 0
    run, whole = tmp_path / "run", essence(tmp_path / "run")
    journal = run / FILE_NAME
    lines = journal.read_bytes().splitlines(keepends=True)
    after = next(i for i, line in enumerate(lines) if line.startswith(b'{"kind":"trial","number":4'))
    journal.write_bytes(b"".join(lines[:after]))
    assert main(["search", "--resume", str(run)]) == 0
    assert essence(run) == whole


def test_other_calibration_text_is_refused_by_name(
    bridged: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bridged["study"]["export"] = False
    assert main(["search", "--config", write(bridged)]) == 0
    (tmp_path / "two.txt").write_text("something else\n" * 200, encoding="utf-8")
    capsys.readouterr()
    assert main(["search", "--resume", str(tmp_path / "run")]) == 2
    assert re.search(r"compensation\.calibration\.sources\.two", _flat(capsys))


def test_a_damaged_term_is_not_shipped(
    bridged: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bridged["study"]["export"] = False
    assert main(["search", "--config", write(bridged)]) == 0
    run = tmp_path / "run"
    trial = next(t for t in read_trials(run)[1] if t.tailoring.terms)
    file = run / "terms" / f"{trial.tailoring.terms[0]}.safetensors"
    arguments = ["export", str(run), "--trial", str(trial.number), "--output", str(tmp_path / "out")]
    content = load_file(file)
    assert main(["check", str(run)]) == 0
    assert "sound ones" in _flat(capsys)
    file.unlink()  # it may be a link to the cache
    save_file({name: tensor + 1 for name, tensor in content.items()}, file)
    assert main(arguments) == 2
    assert "it holds the term None" in _flat(capsys)
    assert main(["check", str(run)]) == 1
    assert f"{trial.tailoring.terms[0]}: " in _flat(capsys)
    file.unlink()
    assert main(arguments) == 2
    assert "which is not in" in _flat(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "bsae"}, "teacher is one of auto, merge, base, a, b, got 'bsae'. Did you mean 'base'?"),
        ({"calibration": {"sources": {}}}, "calibration.sources names one text or more by its domain, got none."),
        ({"calibration": {"tokens": 0}}, "calibration.tokens is at least 1, got 0."),
        ({"calibration": {"held_out": 0.9}}, "held_out is more than 0 and at most 0.5, got 0.9."),
        ({"calibration": {"shares": {"one": 1.0, "tow": 1.0}}}, "calibration.shares are of its domains"),
        ({"calibration": {"tokens": 4}}, "too few to fit on some and hold out others"),
    ],
)
def test_a_mistake_is_one_message_before_the_search(
    settings: dict[str, Any],
    message: str,
    bridged: dict[str, Any],
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = bridged["compensation"]["init_args"]
    for key, value in settings.items():
        own[key] = {**own[key], **value} if isinstance(value, dict) else value
    assert main(["search", "--config", write(bridged)]) == 2
    assert message in _flat(capsys)
    assert not (tmp_path / "run" / FILE_NAME).exists()


def test_what_takes_minutes_a_candidate_is_refused_in_a_search(
    bridged: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    bridged["compensation"]["class_path"] = "Refit"
    assert main(["search", "--config", write(bridged)]) == 2
    assert "Refit takes minutes a candidate. Search with Bridge" in _flat(capsys)


def _flat(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    return " ".join((shown.out + shown.err).split())


def test_what_was_found_is_refitted_and_ships(
    bridged: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bridged["study"]["export"] = False
    assert main(["search", "--config", write(bridged)]) == 0
    run, out = tmp_path / "run", tmp_path / "run" / "compensated"
    capsys.readouterr()
    assert main(["compensate", str(run), "--finalists", "2"]) == 0
    shown = _flat(capsys)
    numbers = re.findall(r"trial (\d+), Refit", shown)
    assert len(set(numbers)) == 2
    found = Tailoring.load(out / "tailoring.yaml")
    kept = {str(p.relative_to(out / "terms"))[: -len(".safetensors")] for p in out.glob("terms/*/*.safetensors")}
    assert kept == set(found.terms)
    assert main(["export", str(out), "--output", str(tmp_path / "out"), "--verify", "true"]) == 0
    for wrong, message in (([], "overwrite"), (["--finalists", "0"], "--finalists is at least 1, got 0.")):
        assert main(["compensate", str(run), *wrong]) == 2
        assert message in _flat(capsys)


def test_without_calibration_text_there_is_nothing_to_compensate_with(
    recipe: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["study"] |= {"trials": 2, "export": False}
    recipe["warm_starts"] = []
    assert main(["search", "--config", write(recipe)]) == 0
    capsys.readouterr()
    assert main(["compensate", str(tmp_path / "run")]) == 2
    assert "the recipe has none: give it a section 'compensation'" in _flat(capsys)


def test_text_that_a_score_is_taken_of_is_told(
    bridged: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = bridged["compensation"]["init_args"]["calibration"]["sources"]
    sources["one"]["init_args"]["path"] = str(tmp_path / "text.txt")
    bridged["study"] |= {"trials": 1, "export": False}
    assert main(["search", "--config", write(bridged)]) == 0
    assert "compensation.calibration has" in _flat(capsys)


@pytest.mark.slow  # two processes that each load everything: 20 seconds
def test_two_ranks_make_the_same_trials_as_one(bridged: dict[str, Any], write: Write, tmp_path: Path) -> None:
    bridged["study"] |= {"batch_size": 2, "export": False}
    path = write(bridged)
    for name, devices in (("one", "1"), ("two", "2")):
        cache = {"TAILORLIB_CACHE": str(tmp_path / f"cache-{name}"), "OMP_NUM_THREADS": "1"}  # sums have one order
        command = [sys.executable, "-m", "tailorlib.cli", "search", "--config", path]
        options = ["--study.directory", str(tmp_path / name), "--trainer.devices", devices]
        command += [*options, "--trainer.strategy", "candidates"]
        subprocess.run(command, check=True, env={**os.environ, **cache}, timeout=300)
    assert essence(tmp_path / "one") == essence(tmp_path / "two")
    assert any(
        trial["tailoring"]["layers"][i].get("terms") for trial in essence(tmp_path / "two") for i in range(4)
    )
