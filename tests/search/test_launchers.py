"""Processes that others start: torchrun on one node and on two, SLURM's variables, and one that dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tailorlib.cli import main
from tailorlib.exceptions import EvaluationError
from tailorlib.journal import read_trials
from tailorlib.search.ranks import leaving_together
from tailorlib.search.strategy import CandidateParallelStrategy
from tailorlib.search.trainer import TailorTrainer
from tailorlib.search.watch import _began

Write = Callable[[dict[str, Any]], str]
TAILOR = ["-m", "tailorlib.cli", "search", "--config"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SIZES = {"trials": 12, "batch_size": 4, "shards": 2, "export": False}
"""Three batches of eight pieces: four for each of two ranks."""
CPU = {"accelerator": "cpu"}
OWN_STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.fixture
def small(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe for two ranks, without what only takes time."""
    recipe["study"] |= SIZES
    recipe["trainer"] = {**CPU, "strategy": "candidates"}
    del recipe["benchmark"]
    return recipe


def undisturbed(recipe: dict[str, Any], write: Write, tmp_path: Path) -> list[dict[str, Any]]:
    """The trials of one process, without any process group."""
    recipe = {**recipe, "study": {**recipe["study"], "directory": str(tmp_path / "alone")}, "trainer": CPU}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as those it is compared with: sums over threads have an order of their own
    try:
        assert main(["search", "--config", write(recipe)]) == 0
    finally:
        torch.set_num_threads(threads)
    return trials_of(tmp_path / "alone")


def trials_of(directory: Path) -> list[dict[str, Any]]:
    """The trials without what they took."""
    plain = [trial.to_dict() for trial in read_trials(directory)[1]]
    for trial in plain:
        del trial["seconds"], trial["costs"]
    return plain


def disturb(recipe: dict[str, Any], tmp_path: Path, body: str) -> None:
    """Let code run before the evaluation of each piece; it knows ``rank`` and ``call``, the piece's number."""
    plugin = tmp_path / "disturbed.py"
    plugin.write_text(
        "import os, signal, time\n"
        "from tailorlib_strategies.fitness import Perplexity\n"
        "names = ('SLURM_PROCID', 'RANK', 'LOCAL_RANK')\n"
        "rank = int(next((os.environ[name] for name in names if name in os.environ), 0))\n"
        "def mark(path):\n"
        "    new = not os.path.exists(path)\n"
        "    open(path, 'w').close()\n"
        "    return new\n"
        "class Disturbed(Perplexity):\n"
        "    call = 0\n"
        "    def score_samples(self, model, samples):\n"
        "        Disturbed.call += 1\n"
        "        call = Disturbed.call\n"
        f"        {body}\n"
        "        return super().score_samples(model, samples)\n"
    )
    recipe["plugins"] = [str(plugin)]
    recipe["fitness"]["init_args"]["parts"]["text"]["class_path"] = "Disturbed"


def killed_once(tmp_path: Path) -> str:
    """Code that kills rank 1 in the second batch: its pieces before are the dense model's, and four."""
    return (
        f"rank == 1 and call == 7 and mark({str(tmp_path / 'killed')!r}) and os.kill(os.getpid(), signal.SIGKILL)"
    )


def run_all(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> list[str]:
    """Run commands side by side, and return what they print; each has to succeed."""
    started = [
        subprocess.Popen(
            command,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        shown = [process.communicate(timeout=150)[0] for process in started]
    finally:
        for process in started:
            process.terminate()
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(shown)
    return shown


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow  # each process imports everything, one of them twice
def test_a_worker_killed_on_one_of_two_nodes_is_restarted_and_the_trials_are_those_of_one_process(
    small: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    meeting = f"127.0.0.1:{free_port()}"
    expected = undisturbed(small, write, tmp_path)
    disturb(small, tmp_path, killed_once(tmp_path))
    small["trainer"] |= {"num_nodes": 2, "devices": 1}
    small["study"]["existing"] = "resume"
    node = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}"]
    shown = run_all([[*node, "--max-restarts=1", *TAILOR, write(small)]] * 2, [OWN_STORES] * 2)
    assert sum("Resumed after 4 recorded trials" in text for text in shown) == 1  # one rank speaks for all
    assert trials_of(tmp_path / "run") == expected
    assert not list((tmp_path / "run").glob("pending.*"))


@pytest.mark.slow  # the same, for ranks that share a node's weights
def test_a_worker_killed_on_one_node_is_restarted_and_the_trials_are_those_of_one_process(
    small: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    expected = undisturbed(small, write, tmp_path)
    disturb(small, tmp_path, killed_once(tmp_path))
    small["trainer"]["devices"] = 2
    small["study"]["existing"] = "resume"
    torchrun = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    (shown,) = run_all([[*torchrun, *TAILOR, write(small)]], [OWN_STORES])
    assert "Resumed after 4 recorded trials" in shown
    assert trials_of(tmp_path / "run") == expected
    assert not list((tmp_path / "run").glob("pending.*"))


def test_restarts_that_would_hang_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(EvaluationError, match=r"--max-restarts=3.*TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        CandidateParallelStrategy().setup_environment()


def _leave(folder: str, rank: int) -> None:
    where = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=timedelta(seconds=2))
    with leaving_together():
        time.sleep(0 if rank else 4)
    Path(folder, str(rank)).write_text(str(time.time()))
    os._exit(0)  # the test's own cleaning up is not this process's business


def test_ranks_wait_for_one_that_takes_longer_than_messages_may(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # without importing everything again
    began = time.time()
    processes = [context.Process(target=_leave, args=(str(tmp_path), rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert all(float((tmp_path / str(rank)).read_text()) - began > 4 for rank in range(2))


def slurm_environments(port: int) -> list[dict[str, str]]:
    """What srun tells each of the two tasks of a job on one node."""
    job = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": "search",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]


@pytest.mark.slow  # four processes that import everything, two after two
def test_a_slurm_job_that_is_requeued_ends_with_the_trials_of_one_process(
    small: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    expected = undisturbed(small, write, tmp_path)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/requeued\n")
    scontrol.chmod(0o755)
    # SLURM's warning to all tasks, and SIGTERM as the job is taken from its nodes
    kill = "(os.kill(os.getpid(), signal.SIGUSR1), os.kill(os.getpid(), signal.SIGTERM))"
    disturb(small, tmp_path, f"call == 3 and not os.environ.get('REQUEUED') and {kill}")
    small["trainer"]["devices"] = 2
    small["study"]["existing"] = "resume"
    command = [sys.executable, *TAILOR, write(small)]
    path = {"PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"}
    with pytest.raises(AssertionError, match="Stopped after 4 of 12 trials"):
        run_all([command] * 2, [{**task, **path} for task in slurm_environments(free_port())])
    assert (tmp_path / "requeued").read_text() == "requeue 4242\n"
    assert not list((tmp_path / "run").glob("*.ckpt"))
    run_all([command] * 2, [{**task, "REQUEUED": "1"} for task in slurm_environments(free_port())])
    assert trials_of(tmp_path / "run") == expected


@pytest.mark.slow  # without the handlers of tailorlib it fails only after minutes
def test_a_search_ends_on_sigterm_while_one_rank_waits_for_the_other(
    small: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    disturb(
        small,
        tmp_path,
        "rank == 1 and call == 5 and (time.sleep(3), os.kill(os.getppid(), signal.SIGTERM), "
        "os.kill(os.getpid(), signal.SIGTERM))",
    )
    small["trainer"]["devices"] = 2
    done = subprocess.run(
        [sys.executable, *TAILOR, write(small)], text=True, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "Stopped after 4 of 12 trials" in done.stdout


def test_no_checkpoint_is_written_that_a_requeued_job_would_load(tmp_path: Path) -> None:
    trainer = TailorTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # two processes that import everything
@pytest.mark.parametrize(("victim", "busy"), [(0, True), (0, False), (1, True), (1, False)])
def test_a_rank_that_loses_another_ends_with_a_message_and_the_study_goes_on(
    small: dict[str, Any], write: Write, tmp_path: Path, victim: int, busy: bool
) -> None:
    pids = tmp_path / "pid"
    disturb(
        small,
        tmp_path,
        f"open('{pids}%d' % rank, 'w').write(str(os.getpid())); "
        f"rank == {victim} and call == 7 and (time.sleep(2), os.kill(os.getpid(), signal.SIGKILL)); "
        f"rank != {victim} and call == 7 and {busy} and time.sleep(100)",
    )
    small["trainer"]["devices"] = 2
    command = [sys.executable, *TAILOR, write(small)]
    with (tmp_path / "shown").open("w") as shown:
        process = subprocess.Popen(command, stdout=shown, stderr=shown)
    assert process.wait(300) in ((-signal.SIGKILL,) if victim == 0 else (1, -signal.SIGKILL))
    survivor, deadline = int(Path(f"{pids}{1 - victim}").read_text()), time.monotonic() + 60
    while _began(survivor) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    told = (tmp_path / "shown").read_text()
    assert "All finished trials are on disk" in told, told
    assert "Traceback" not in told
    assert len(trials_of(tmp_path / "run")) >= 4
