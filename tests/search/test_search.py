"""The whole road on a tiny family: recipe in, smaller model out."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tailorlib_strategies.optimizers import RandomSearch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailorlib import Params
from tailorlib.cli import main
from tailorlib.journal import FILE_NAME, read_trials
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial, incumbent

Write = Callable[[dict[str, Any]], str]
COMMAND = [sys.executable, "-m", "tailorlib.cli"]


def run(*args: str) -> None:
    assert main(list(args)) == 0


def trials_of(directory: Path) -> list[dict[str, Any]]:
    """The trials without what they took: a resumed study finds its caches empty."""
    plain = [trial.to_dict() for trial in read_trials(directory)[1]]
    for trial in plain:
        del trial["seconds"], trial["costs"]
    return plain


def start(recipe: str, *args: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "search", "--config", recipe, *args]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_trials(directory: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        journal = directory / FILE_NAME
        if journal.exists() and journal.read_bytes().count(b'{"kind":"trial"') >= count:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError("no trials in two minutes")


def test_a_search_leaves_everything_that_it_promises(
    recipe: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("search", "--config", write(recipe))
    directory = tmp_path / "run"
    dense, trials = read_trials(directory)
    best = incumbent(trials)
    assert len(trials) == 8
    assert len({t.tailoring.digest for t in trials}) == 8
    assert [t.origin for t in trials[:3]] == ["ShortGPT (block influence)"] * 3
    assert all(len(t.tailoring.layers) == 4 for t in trials)
    assert dense is not None
    assert best is not None
    assert Tailoring.load(directory / "tailoring.yaml") == best.tailoring
    assert (directory / "study.png").stat().st_size > 10_000
    with (directory / "metrics" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["fitness"]) for r in rows] == [t.fitness for t in trials]
    table = json.loads((directory / "benchmark.json").read_text())
    assert [row["name"].split(" (")[0] for row in table["rows"]] == [
        "dense base",
        "best single variant",
        "random tailoring",
        "found tailoring",
    ]
    shown = capsys.readouterr().out
    assert "retained" in shown
    assert "trial 8/8" in shown

    model = AutoModelForCausalLM.from_pretrained(directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    prompt = tokenizer("The quick brown", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert made.shape[1] == prompt["input_ids"].shape[1] + 5
    assert model.config.num_hidden_layers == 4
    # the found model's score is what its exported file scores
    loss = _perplexity_by_hand(model, tokenizer, recipe)
    assert best.metrics["text/perplexity"] == pytest.approx(loss, rel=1e-4)


def _perplexity_by_hand(model: Any, tokenizer: Any, recipe: dict[str, Any]) -> float:
    settings = recipe["fitness"]["init_args"]["parts"]["text"]["init_args"]
    tokens = tokenizer(Path(settings["text"]["init_args"]["path"]).read_text())["input_ids"]
    length = settings["context_length"]
    nats: list[float] = []
    for window in (tokens[i : i + length] for i in range(0, len(tokens), length)):
        ids = torch.tensor([[tokenizer.bos_token_id, *window]])
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1].float().log_softmax(-1)
        nats += (-logits.gather(1, ids[0, 1:, None])[:, 0]).tolist()
    return float(torch.tensor(nats).mean().exp())


def test_the_same_recipe_and_seed_give_the_same_trials(
    recipe: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    path = write(recipe)
    run("search", "--config", path, "--study.directory", str(tmp_path / "one"))
    run("search", "--config", path, "--study.directory", str(tmp_path / "two"))
    assert trials_of(tmp_path / "one") == trials_of(tmp_path / "two")
    run("search", "--config", path, "--study.directory", str(tmp_path / "three"), "--study.seed", "1")
    assert trials_of(tmp_path / "one")[3:] != trials_of(tmp_path / "three")[3:]


@pytest.mark.parametrize("after", [0, 3, 6])
def test_a_killed_search_resumes_to_the_same_end(
    recipe: dict[str, Any], write: Write, tmp_path: Path, after: int
) -> None:
    path = write(recipe)
    run("search", "--config", path, "--study.directory", str(tmp_path / "whole"))
    process = start(path)
    wait_for_trials(tmp_path / "run", after, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run("search", "--resume", str(tmp_path / "run"))
    whole, resumed = trials_of(tmp_path / "whole"), trials_of(tmp_path / "run")
    assert resumed == whole
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_finished_study_resumes_with_more_trials(recipe: dict[str, Any], write: Write, tmp_path: Path) -> None:
    path = write(recipe)
    run("search", "--config", path, "--study.trials", "5")
    run("search", "--resume", str(tmp_path / "run"), "--study.trials", "8")
    run("search", "--config", path, "--study.directory", str(tmp_path / "whole"))
    assert trials_of(tmp_path / "run") == trials_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("batch_size", "shards", "dtype"),
    [
        pytest.param(3, 1, "float32", marks=pytest.mark.slow),
        pytest.param(1, 3, "bfloat16", marks=pytest.mark.slow),
        (2, 2, "float32"),
    ],
)
def test_two_ranks_make_the_same_trials_as_one(
    recipe: dict[str, Any], write: Write, tmp_path: Path, batch_size: int, shards: int, dtype: str
) -> None:
    recipe["study"] |= {"batch_size": batch_size, "shards": shards}
    recipe["family"]["init_args"]["dtype"] = dtype  # in another one than the files', ranks share what they map
    path = write(recipe)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # one thread each, so that sums have one order
    for name, devices in (("one", "1"), ("two", "2")):
        subprocess.run(
            [
                *COMMAND,
                "search",
                "--config",
                path,
                "--study.directory",
                str(tmp_path / name),
                "--trainer.devices",
                devices,
                "--trainer.strategy",
                "candidates",
            ],
            check=True,
            env=environment,
            timeout=300,
        )
    assert trials_of(tmp_path / "one") == trials_of(tmp_path / "two")
    assert len(trials_of(tmp_path / "two")) == 8


def test_a_failing_candidate_is_a_failed_trial_and_the_study_goes_on(
    recipe: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    plugin = tmp_path / "fragile.py"
    plugin.write_text(
        "from tailorlib import MergeOperation\n"
        "class Fragile(MergeOperation):\n"
        "    def merge(self, tensors, *, base, params, generators):\n"
        "        raise RuntimeError('out of ideas')\n"
    )
    recipe["search_space"]["init_args"]["merges"] = ["Fragile"]
    recipe["plugins"] = [str(plugin)]
    recipe["study"]["trials"] = 12
    run("search", "--config", write(recipe))
    trials = read_trials(tmp_path / "run")[1]
    failed = [t for t in trials if t.state == "failed"]
    assert 0 < len(failed) < 12
    assert all("out of ideas" in str(t.reason) for t in failed)
    assert all(any(p.operation == "Fragile" for p in t.tailoring.layers) for t in failed)


def test_a_trial_that_was_lost_to_damage_is_made_again_and_those_behind_it_stay(
    recipe: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del recipe["benchmark"]
    recipe["study"]["export"] = False
    run("search", "--config", write(recipe))
    directory = tmp_path / "run"
    expected, lines = trials_of(directory), (directory / FILE_NAME).read_bytes().splitlines(keepends=True)
    dense = next(i for i, line in enumerate(lines) if b'"kind":"dense"' in line)
    for i in (dense, next(i for i, line in enumerate(lines) if b'"number":5,' in line)):
        lines[i] = lines[i].replace(b"0", b"1", 1)
    (directory / FILE_NAME).write_bytes(b"".join(lines))
    assert main(["search", "--resume", str(directory)]) == main(["export", str(directory)]) == 2
    assert f"damaged in line {dense + 1}" in capsys.readouterr().err
    run("check", str(directory), "--repair")
    assert [t["number"] for t in trials_of(directory)] == [0, 1, 2, 3, 4, 6, 7]
    assert main(["export", str(directory), "--trial", "5", "--output", str(tmp_path / "out")]) == 2
    assert "lost to damage: resume the study" in capsys.readouterr().err
    run("show", str(directory), "--trial", "6")
    run("report", str(directory))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no trial differs from what the optimizer proposes
        run("search", "--resume", str(directory))
    assert trials_of(directory) == expected


def test_failures_in_a_row_stop_the_study_with_a_diagnosis(
    recipe: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "from tailorlib import Fitness, Measurement\n"
        "class Broken(Fitness):\n"
        "    calls = 0\n"
        "    def _evaluate(self, model):\n"
        "        Broken.calls += 1\n"
        "        return Measurement(1.0 if Broken.calls == 1 else float('nan'))\n"
    )
    recipe["fitness"] = "Broken"
    recipe["plugins"] = [str(plugin)]
    assert main(["search", "--config", write(recipe), "--study.max_failures", "3"]) == 2
    assert "3 failed trials in a row" in capsys.readouterr().err
    assert [t.state for t in read_trials(tmp_path / "run")[1]] == ["failed"] * 3


def test_evaluate_and_export_take_a_run_or_a_file(
    recipe: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["study"]["export"] = False
    path = write(recipe)
    run("search", "--config", path)
    run_folder = str(tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    run("export", run_folder, "--trial", "0", "--output", str(tmp_path / "out"))
    trial: Trial = read_trials(tmp_path / "run")[1][0]
    assert Tailoring.load(tmp_path / "out" / "tailoring.yaml") == trial.tailoring
    run(
        "export",
        "--config",
        path,
        "--tailoring",
        str(tmp_path / "out" / "tailoring.yaml"),
        "--output",
        str(tmp_path / "o2"),
    )
    assert (tmp_path / "o2" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    capsys.readouterr()
    run("evaluate", run_folder)
    assert "found tailoring" in capsys.readouterr().out
    assert main(["export", run_folder, "--output", str(tmp_path / "out")]) == 2
    assert main(["export", run_folder, "--trial", "99"]) == 2
    assert "trials 0 to 7, got --trial 99" in capsys.readouterr().err


def test_wandb_offline_is_one_option_away(
    recipe: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(
        "search",
        "--config",
        write(recipe),
        "--study.trials",
        "4",
        "--trainer.logger",
        "WandbLogger",
        "--trainer.logger.offline",
        "true",
    )
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_path_that_looks_like_markup_is_shown_as_it_is(
    recipe: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[red]run[/]"
    run("search", "--config", write(recipe), "--study.trials", "4", "--study.directory", str(folder))
    assert f"Model written to {folder}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("accelerator", "tpu", "torch_xla"),
        ("strategy", "nonsense", "use 'candidates'"),
    ],
)
def test_a_trainer_that_cannot_be_had_is_one_message(
    recipe: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str], setting: str, value: str, said: str
) -> None:
    assert main(["search", "--config", write(recipe), f"--trainer.{setting}", value]) == 2
    error = capsys.readouterr().err
    assert said in error


def test_a_trainer_unlike_its_slurm_job_is_one_message(
    recipe: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"JOB_ID": "1", "JOB_NAME": "study", "NTASKS": "4", "NTASKS_PER_NODE": "4", "PROCID": "0"}
    for name, value in {**job, "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert main(["search", "--config", write(recipe), "--trainer.devices", "2"]) == 2
    assert "--ntasks-per-node=4" in capsys.readouterr().err


def test_an_earlier_study_is_refused_or_archived(
    recipe: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(recipe)
    run("search", "--config", path, "--study.trials", "4")
    assert main(["search", "--config", path]) == 2
    assert "--resume" in capsys.readouterr().err
    run("search", "--config", path, "--study.trials", "4", "--study.existing", "archive")
    assert trials_of(tmp_path / "run") == trials_of(tmp_path / "run.1")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let Ctrl-C through, here and in processes started here: jobs in a shell's background begin without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_search_says_how_to_go_on(
    recipe: dict[str, Any], write: Write, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = start(write(recipe), "--study.trials", "1000")
    wait_for_trials(tmp_path / "run", 4, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == status, out
    assert f"tailor search --resume {tmp_path / 'run'}" in out.replace("\n", "")
    assert "Traceback" not in out
    number_of_trials = len(read_trials(tmp_path / "run")[1])
    run("search", "--resume", str(tmp_path / "run"), "--study.trials", str(number_of_trials + 1))


@pytest.mark.usefixtures("interruptible")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_a_library_swallows_still_stops_the_search(
    recipe: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Params] = []

    class Swallows:
        def __del__(self) -> None:  # Python prints what a destructor raises, and goes on
            os.kill(os.getpid(), signal.SIGINT)

    def ask(self: RandomSearch) -> Params:
        if len(asked) == 2:
            Swallows()
        asked.append(self.space.sample(self.rng))
        return asked[-1]

    monkeypatch.setattr(RandomSearch, "_ask", ask)
    assert main(["search", "--config", write(recipe), "--optimizer", "RandomSearch"]) == 130
    origins = [trial.origin for trial in read_trials(tmp_path / "run")[1]]
    assert len(asked) == origins.count("optimizer") == 3
