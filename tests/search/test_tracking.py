"""What loggers and scripts are told: read back from what they wrote."""

from __future__ import annotations

import csv
import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailorlib.cli import main
from tailorlib.journal import Journal, read_trials
from tailorlib.trial import Trial

Write = Callable[[dict[str, Any]], str]
WANDB = ["--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true"]
BLOCK, HEADER = 32768, 7


def records(file: Path) -> Iterator[Any]:
    """Yield the records of an offline run: LevelDB's log format behind seven bytes of W&B's own."""
    from wandb.proto import wandb_internal_pb2

    data, at, content = file.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        content += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            content = b""
            yield record


class OfflineRun:
    """What one offline session of W&B holds."""

    def __init__(self, file: Path) -> None:
        self.id = file.stem.removeprefix("run-")
        self.rows: list[dict[str, Any]] = []
        self.artifacts: dict[str, list[str]] = {}
        self.config: dict[str, Any] = {}
        self.exit_code: int | None = None
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                self.rows.append(items)
            elif kind == "artifact":
                self.artifacts[record.artifact.type] = [e.path for e in record.artifact.manifest.contents]
            elif kind == "config":
                self.config |= {i.key: json.loads(i.value_json) for i in record.config.update}
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    @property
    def trials(self) -> dict[int, dict[str, Any]]:
        """The rows of trials, by number."""
        return {row["trainer/global_step"]: row for row in self.rows if "fitness" in row or "failed" in row}


def offline_runs(directory: Path) -> list[OfflineRun]:
    """Return all sessions; W&B's own process writes them, and may be a moment behind."""
    deadline = time.monotonic() + 60
    while True:
        runs = [OfflineRun(file) for file in sorted((directory / "wandb").glob("offline-run-*/run-*.wandb"))]
        if all(run.exit_code is not None for run in runs) or time.monotonic() > deadline:
            return runs
        time.sleep(0.1)


def media(directory: Path, kind: str) -> list[Path]:
    return sorted((directory / "wandb").glob(f"offline-run-*/files/media/{kind}/**/*.*"))


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_wandb_has_all_that_the_journal_has_and_a_resumed_study_goes_on_there(
    recipe: dict[str, Any], write: Write, tmp_path: Path, silent: None
) -> None:
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    path, run = write(recipe), tmp_path / "run"
    assert main(["search", "--config", path, "--study.trials", "4", *WANDB]) == 0
    (first,) = offline_runs(run)
    trials = read_trials(run)[1]
    assert {n: row["fitness"] for n, row in first.trials.items()} == {t.number: t.fitness for t in trials}
    for trial in trials:
        _assert_told(first.trials[trial.number], trial)
    assert first.trials[3]["best_fitness"] == max(t.fitness for t in trials if t.fitness is not None)
    assert first.config["search_space"]["class_path"].endswith("PruningSpace")
    assert set(first.artifacts["model"]) >= {
        "tailoring.yaml",
        "recipe.yaml",
        "model/README.md",
        "model/config.json",
    }
    assert any(path.startswith("weights/") for path in first.artifacts["model"])  # where they are, not what
    assert first.exit_code == 0
    (table,) = media(run, "table")
    content = json.loads(table.read_text(encoding="utf-8"))
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [(row["trial"], row["fitness"]) for row in rows] == [(t.number, t.fitness) for t in trials]
    assert all("×" in row["layer map"] for row in rows)  # two layers are removed
    assert {p.name.split("_")[0] for p in media(run, "images")} == {"history", "importance", "layer"}

    assert main(["search", "--resume", str(run), "--study.trials", "7"]) == 0
    runs = offline_runs(run)
    assert [r.id for r in runs] == [first.id] * 2
    assert sorted(runs[1].trials) == [4, 5, 6]  # those that the run has already are not told again
    assert json.loads((run / "wandb.json").read_text()) == {"id": first.id, "trials": 7}


def _assert_told(row: dict[str, Any], trial: Trial) -> None:
    wanted = {"seconds": trial.seconds, "samples": trial.samples, "fidelity": trial.fidelity, **trial.metrics}
    wanted |= {f"costs/{name}": value for name, value in trial.costs.items()}
    wanted |= {"layers": len(trial.tailoring.layers), "failed": 0.0, "fitness": trial.fitness}
    run, again = trial.costs["layers_run"], trial.costs["layers_reused"]
    wanted["reused/layers"] = again / (run + again)
    assert {name: row[name] for name in wanted} == pytest.approx(
        wanted, abs=1e-4
    )  # the journal rounds times and sizes


def test_weights_go_to_wandb_only_when_asked_for(
    recipe: dict[str, Any], write: Write, tmp_path: Path, silent: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    monkeypatch.setenv(
        "WANDB_MODE", "offline"
    )  # Lightning's own setting refuses log_model: a checkpoint can't be sent
    argv = ["search", "--config", write(recipe), "--study.trials", "3", *WANDB[:2]]
    assert main([*argv, "--trainer.logger.log_model", "true"]) == 0
    (run,) = offline_runs(tmp_path / "run")
    assert "model/model.safetensors" in run.artifacts["model"]


def test_tensorboard_and_csv_use_the_same_names(recipe: dict[str, Any], write: Write, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is an optional package"
    )
    loggers = ("TensorBoardLogger", "CSVLogger")
    recipe["trainer"]["logger"] = [{"class_path": name, "init_args": {"save_dir": "."}} for name in loggers]
    assert main(["search", "--config", write(recipe), "--study.trials", "4"]) == 0
    trials = read_trials(tmp_path / "run")[1]
    (folder,) = {file.parent for file in (tmp_path / "run").rglob("events.out.tfevents.*")}
    board = accumulator.EventAccumulator(str(folder))
    board.Reload()
    (metrics,) = (tmp_path / "run").rglob("metrics.csv")
    with metrics.open() as file:
        columns = set(csv.DictReader(file).fieldnames or ())
    scalars = set(board.Tags()["scalars"])
    assert columns - {"step", "epoch"} == scalars - {"epoch", "hp_metric"}
    assert [e.value for e in board.Scalars("fitness")] == pytest.approx([t.fitness for t in trials])
    assert set(board.Tags()["images"]) == {f"pictures/{name}" for name in ("history", "importance", "layer_map")}


def test_json_lines_tell_scripts_everything_and_nothing_else_is_printed(
    recipe: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--config", write(recipe), "--study.trials", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    told = [json.loads(line) for line in out.splitlines()]
    trials = read_trials(tmp_path / "run")[1]
    assert [t["kind"] for t in told] == ["dense", *["trial"] * 4, "result"]
    assert [(t["number"], t["fitness"]) for t in told[1:5]] == [(t.number, t.fitness) for t in trials]
    assert Trial.from_dict(told[2]) == trials[1]
    assert told[-1]["fitness"] == max(t.fitness for t in trials if t.fitness is not None)
    assert told[-1]["parameters"] < told[-1]["dense_parameters"]
    assert "retained" in err


def test_quiet_says_nothing_but_errors(
    recipe: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(recipe)
    assert main(["search", "--config", path, "--study.trials", "3", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["search", "--config", path, "--quiet", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["kind"] == "error"
    assert "already holds a journal" in err


def test_each_process_that_worked_on_a_study_is_on_record(
    recipe: dict[str, Any],
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tailorlib.search.sessions as sessions

    path, run = write(recipe), tmp_path / "run"
    assert main(["search", "--config", path, "--study.trials", "3"]) == 0
    now = sessions.environment()
    monkeypatch.setattr(sessions, "environment", lambda: {**now, "torch": "99.0"})
    assert main(["search", "--resume", str(run), "--study.trials", "4"]) == 0
    assert f"torch {now['torch']} -> 99.0" in capsys.readouterr().out
    journal = Journal.read(run)
    assert [s["trials"] for s in journal.sessions] == [0, 3]
    assert [s["versions"]["torch"] for s in journal.sessions] == [now["torch"], "99.0"]
    assert [(s["ended"]["how"], s["ended"]["trials"]) for s in journal.sessions] == [
        ("finished", 3),
        ("finished", 4),
    ]
    layout = journal.header.layout
    assert layout is not None
    assert (layout.models, layout.num_layers) == (("base", "a", "b"), 6)
    config = yaml.safe_load((Path(recipe["family"]["init_args"]["base"]) / "config.json").read_text())
    assert journal.header.layer_parameters is not None
    assert len(set(journal.header.layer_parameters)) == 1
    embeddings = config["vocab_size"] * config["hidden_size"]
    tied = 1 if config["tie_word_embeddings"] else 2
    assert journal.header.parameters == (
        sum(journal.header.layer_parameters) + tied * embeddings + config["hidden_size"]  # the final norm
    )
