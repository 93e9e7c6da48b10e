"""How a search ends: signals, code that exits, limits of time, and options that would cut it short."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from tailorlib_strategies.optimizers import RandomSearch

from tailorlib.cli import main
from tailorlib.exceptions import RecipeError
from tailorlib.journal import FILE_NAME, Journal, read_trials
from tailorlib.light import main as light
from tailorlib.models.family import ModelFamily
from tailorlib.recipe import check_recipe
from tailorlib.search import trainer
from tailorlib.search.evaluator import Evaluator
from tailorlib.search.strategy import CandidateParallelStrategy
from tailorlib.search.study import StudySettings
from tailorlib.search.trainer import TailorTrainer
from tailorlib.search.trainer_options import option_faults, strategy_for

Write = Callable[[dict[str, Any]], str]


@pytest.fixture
def short(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what only takes time."""
    del recipe["benchmark"], recipe["warm_starts"]
    recipe["optimizer"] = "RandomSearch"
    recipe["study"] |= {"trials": 3, "export": False}
    recipe["trainer"]["logger"] = False
    return recipe


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Signals as in a shell's foreground: a job in the background begins without Ctrl-C."""
    numbers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    numbers |= {signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    after = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == numbers  # no command leaves its handlers behind


# -- Signals ------------------------------------------------------------------------------------------------------


def send(number: int, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("number", "place", "name", "said"),
    [
        (signal.SIGINT, ModelFamily, "prepare", "stopped by Ctrl-C"),
        (signal.SIGHUP, ModelFamily, "load", "Nothing is on disk yet"),
        (signal.SIGINT, RandomSearch, "_ask", "tailor search --resume"),
        (signal.SIGHUP, RandomSearch, "_ask", "tailor search --resume"),
        (signal.SIGTERM, TailorTrainer, "_conclude", "tailor search --resume"),
    ],
)
def test_a_signal_at_any_moment_is_one_message_and_its_exit_status(
    short: dict[str, Any],
    write: Write,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    place: type,
    name: str,
    said: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(place, name, send(number, getattr(place, name)))
        assert main(["search", "--config", write(short)]) == 128 + number
    shown = "".join(capfd.readouterr())
    assert said in shown.replace("\n", " ")
    assert "Traceback" not in shown
    if (tmp_path / "run" / FILE_NAME).exists():
        assert "stopped by" in Journal.read(tmp_path / "run").sessions[-1]["ended"]["how"]
        assert main(["search", "--resume", str(tmp_path / "run")]) == 0
        assert len(read_trials(tmp_path / "run")[1]) == 3


def test_a_second_ctrl_c_of_the_same_press_changes_nothing(
    short: dict[str, Any], write: Write, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = send(signal.SIGINT, send(signal.SIGINT, TailorTrainer._tell_stopped))
    monkeypatch.setattr(TailorTrainer, "_tell_stopped", twice)
    monkeypatch.setattr(RandomSearch, "_ask", send(signal.SIGINT, RandomSearch._ask))
    assert main(["search", "--config", write(short)]) == 130
    assert "tailor search --resume" in capfd.readouterr().out


# -- Code that exits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_fitness_that_exits_is_a_failed_trial(
    short: dict[str, Any], write: Write, tmp_path: Path, code: str
) -> None:
    name = f"Exits{len(code)}"
    (tmp_path / "exits.py").write_text(
        "import sys\nfrom tailorlib_strategies.fitness import Perplexity\n"
        f"class {name}(Perplexity):\n"
        "    calls = 0\n"
        "    def score_samples(self, model, samples):\n"
        f"        {name}.calls += 1\n"
        f"        if {name}.calls == 3: {code}\n"
        "        return super().score_samples(model, samples)\n"
    )
    short["plugins"] = [str(tmp_path / "exits.py")]
    short["fitness"]["init_args"]["parts"]["text"]["class_path"] = name
    assert main(["search", "--config", write(short)]) == 0
    trials = read_trials(tmp_path / "run")[1]
    assert [trial.state for trial in trials] == ["complete", "failed", "complete"]
    assert "does not end the program" in str(trials[1].reason)
    assert "exits.py" in str(trials[1].reason)


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("module", "sys.exit(0)"),
        ("__init__", "sys.exit(0)"),
        ("_setup", "raise SystemExit"),
        ("_ask", "sys.exit(0)"),
        ("_ask", "raise KeyboardInterrupt"),
    ],
)
def test_an_optimizer_that_exits_is_a_fault_of_the_plugin(
    short: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, where: str
) -> None:
    name = f"Exits{len(where)}{len(code)}"
    body = code if where == "module" else "pass"
    method = f"    def {where}(self, *args, **kwargs):\n        {code}\n" if where != "module" else "    pass\n"
    (tmp_path / "exits.py").write_text(
        "import sys\nfrom tailorlib_strategies.optimizers import RandomSearch\n"
        f"{body}\nclass {name}(RandomSearch):\n{method}"
    )
    short["plugins"], short["optimizer"] = [str(tmp_path / "exits.py")], name
    assert main(["search", "--config", write(short)]) == 2
    message = capsys.readouterr().err
    assert "does not end the program" in message
    assert "exits.py" in message
    assert "Traceback" not in message


# -- Limits of time, and ends that are none -----------------------------------------------------------------------


def test_a_search_that_max_time_ends_is_not_finished(
    short: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short["study"]["trials"] = 100_000
    short["trainer"]["max_time"] = "00:00:00:01"
    assert main(["search", "--config", write(short)]) == 124
    shown = capsys.readouterr().out
    assert "stopped by max_time" in shown
    assert f"tailor search --resume {tmp_path / 'run'}" in shown.replace("\n", "")
    journal = Journal.read(tmp_path / "run")
    assert journal.sessions[-1]["ended"]["how"] == "stopped by max_time"
    more = str(len(journal.trials) + 1)
    again = ["search", "--resume", str(tmp_path / "run"), "--study.trials", more, "--trainer.max_time", "null"]
    assert main(again) == 0
    assert Journal.read(tmp_path / "run").sessions[-1]["ended"]["how"] == "finished"


def test_a_search_without_time_for_a_trial_says_so(
    short: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short["trainer"]["max_time"] = "00:00:00:00"
    assert main(["search", "--config", write(short)]) == 124
    assert "before its first trial" in capsys.readouterr().out


# -- Options of the trainer ---------------------------------------------------------------------------------------

REFUSED = {
    "limit_train_batches": 1,
    "fast_dev_run": True,
    "overfit_batches": 0.1,
    "max_steps": 3,
    "min_steps": 9,
    "max_epochs": 2,
    "limit_val_batches": 0,
    "val_check_interval": 5,
    "accumulate_grad_batches": 2,
    "num_sanity_val_steps": 2,
    "reload_dataloaders_every_n_epochs": 1,
    "inference_mode": False,
    "barebones": True,
    "detect_anomaly": True,
    "check_val_every_n_epoch": 2,
    "gradient_clip_val": 0.5,
    "gradient_clip_algorithm": "norm",
    "strategy": "ddp",
    "enable_checkpointing": True,
    "sync_batchnorm": True,
    "use_distributed_sampler": True,
    "precision": "bf16-mixed",
    "model_registry": "somewhere",
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_a_search_has_no_use_for_is_refused(name: str) -> None:
    (fault,) = option_faults({name: REFUSED[name]})
    assert fault.startswith(f"trainer.{name}: ")
    assert repr(REFUSED[name]) in fault


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit_train_batches", 1.0),
        ("max_epochs", 1),
        ("precision", "32-true"),
        ("overfit_batches", 0),
        ("strategy", "candidates"),
        ("strategy", CandidateParallelStrategy()),
        ("strategy", SingleDeviceStrategy()),
        ("devices", 4),
        ("deterministic", True),
        ("log_every_n_steps", 5),
    ],
)
def test_an_option_that_changes_nothing_or_that_a_search_needs_is_taken(name: str, value: Any) -> None:
    assert not option_faults({name: value})


def test_several_devices_get_the_strategy_that_wraps_nothing() -> None:
    several: list[dict[str, Any]] = [{"devices": 2}, {"devices": "0,1"}, {"devices": [0, 1]}, {"num_nodes": 2}]
    assert {strategy_for(options) for options in several} == {"candidates"}
    one: list[dict[str, Any]] = [{}, {"devices": 1}, {"devices": "1"}, {"devices": [3]}, {"devices": "0,"}]
    assert {strategy_for(options) for options in one} == {"auto"}
    assert strategy_for({"strategy": "single_device", "devices": 2}) == "single_device"


def test_all_devices_of_a_machine_with_several_are_shared_by_our_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    assert {strategy_for({"devices": devices}) for devices in ("auto", -1, "-1")} == {"candidates"}
    assert strategy_for({"devices": "auto", "accelerator": "cpu"}) == "auto"


def test_all_options_and_numbers_of_a_recipe_are_told_at_once(
    short: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short["trainer"] |= {"max_steps": 3, "strategy": "ddp"}
    short["family"]["init_args"]["merge_cache_mib"] = -1
    assert main(["search", "--config", write(short), "--trainer.fast_dev_run", "true", "--study.seed", "-1"]) == 2
    message = capsys.readouterr().err
    for setting in ("trainer.max_steps", "trainer.strategy", "trainer.fast_dev_run", "study.seed"):
        assert setting in message
    assert not (tmp_path / "run").exists()


def test_every_number_of_a_study_is_checked_at_once() -> None:
    wrong = {
        "trials": 1e30,
        "seed": 2**70,
        "trial_seconds": float("inf"),
        "tokens_per_batch": 10**12,
        "shards": 0,
        "prefix_cache_mib": 10**40,
        "host_prefix_cache_mib": -1,
        "max_length": 1,
        "batch_size": 1.5,
        "max_failures": True,
    }
    faults = check_recipe({"study": wrong})
    assert sorted(fault.split()[0] for fault in faults) == sorted(f"study.{name}" for name in wrong)


@pytest.mark.parametrize("trials", [None, 0, -1, 10**400, "many", 1e30, float("nan"), True])
def test_a_number_of_trials_is_a_whole_one(trials: Any) -> None:
    with pytest.raises(RecipeError, match=r"^study\.trials is a whole number from 1 to 10,000,000, got "):
        StudySettings(trials=trials)


# -- Failures of the operating system -----------------------------------------------------------------------------


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_losing_metrics_and_pictures_ends_no_search(
    short: dict[str, Any],
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short["trainer"]["logger"] = True  # CSV
    monkeypatch.setattr(CSVLogger, "save", full)
    monkeypatch.setattr(trainer, "draw_study", full)
    assert main(["search", "--config", write(short)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("CSVLogger failed") == 1
    assert shown.count("The picture study.png failed") == 1
    assert "the disk is full" in shown
    assert len(read_trials(tmp_path / "run")[1]) == 3
    assert Journal.read(tmp_path / "run").sessions[-1]["ended"]["how"] == "finished"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full. Make room"),
        (errno.EMFILE, "too many files open. Raise the limit (ulimit -n)"),
        (errno.EROFS, "the file system is read-only"),
    ],
)
def test_a_failure_in_the_middle_says_what_and_how_to_go_on(
    short: dict[str, Any],
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    said: str,
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(code, "in the system's words")

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "settle", fail)
        assert main(["search", "--config", write(short)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert f"tailor search --resume {tmp_path / 'run'}" in error
    assert "Traceback" not in error
    assert main(["search", "--resume", str(tmp_path / "run")]) == 0
    assert len(read_trials(tmp_path / "run")[1]) == 3


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_run_folder_that_is_a_file_is_told_before_models_are_loaded(
    short: dict[str, Any],
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    below: str,
) -> None:
    monkeypatch.delattr(ModelFamily, "load")
    (tmp_path / "run").write_text("")
    assert main(["search", "--config", write(short), "--study.directory", str(tmp_path / "run" / below)]) == 2
    assert "study.directory is a folder" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_one_message(
    short: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--config", write(short), "--study.directory", str(tmp_path / ("x" * 300))]) == 2
    assert "the path is too long. Choose a shorter name." in capsys.readouterr().err


def test_a_verb_that_needs_no_trainer_tells_failures_of_the_system_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert light(["list", str(tmp_path / ("x" * 300))]) == 2
    assert "the path is too long" in capsys.readouterr().err


def test_a_reader_that_had_enough_ends_no_search(
    short: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys.stdout, "write", closed)
    assert main(["search", "--config", write(short)]) == 0
    assert len(read_trials(tmp_path / "run")[1]) == 3


# -- The start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["tailorlib.console", "torch"])
def test_ctrl_c_while_the_command_is_imported_is_one_message(module: str) -> None:
    script = (
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from tailorlib.start import main\n"
        "sys.exit(main(['list']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "tailor: stopped by Ctrl-C.\n")
