"""A process of a search that loses another one ends within a minute, whatever it is doing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tailorlib.search import watch
from tailorlib.search.ranks import gathered
from tailorlib.search.watch import Member, Watch, begin_watch


@pytest.fixture(autouse=True)
def watching_nobody() -> Iterator[None]:
    yield
    watch.stop_watch()


def member(folder: str, rank: int, victim: int, hosts: bool) -> None:
    """A rank: one of two is killed while the other one works."""
    where = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=timedelta(seconds=90))
    own = Member.here(rank)
    if hosts:  # as if each had a machine of its own
        watch.platform.node = lambda: f"host{rank}"  # type: ignore[attr-defined]
        own = replace(own, host=f"host{rank}")
    watch.SECONDS, watch.LOOKS, watch.GRACE = 0.1, 20, 0.1
    store: Any = dist.distributed_c10d._get_default_store() if hosts else None
    begin_watch(gathered(own), rank, store)
    if rank == victim:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # scoring
    os._exit(0)


@pytest.mark.parametrize("hosts", [False, True])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_loses_another_ends(
    tmp_path: Path, victim: int, hosts: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    context = multiprocessing.get_context("fork")  # without importing everything again
    arguments = [(str(tmp_path), rank, victim, hosts) for rank in range(2)]
    processes = [context.Process(target=member, args=given) for given in arguments]
    began = time.monotonic()
    for process in processes:
        process.start()
    for process in processes:
        process.join(50)
    assert time.monotonic() - began < 50
    assert processes[victim].exitcode == -signal.SIGKILL
    assert processes[1 - victim].exitcode == 1
    shown = capfd.readouterr().err
    assert f"(rank {victim})" in shown
    assert "All finished trials are on disk" in shown


def test_nobody_is_gone_while_all_are_there() -> None:
    here = Member.here(0)
    assert here.alive
    assert Watch([here], 0).gone() is None
    later = replace(here, began="another one of the same number")
    assert not later.alive


def test_who_ends_by_itself_is_not_ended() -> None:
    ended: list[str] = []
    dead = replace(Member.here(1), process=2**22 - 1, began="1")
    looking = Watch([dead], 0, end=ended.append)
    assert str(looking.gone()) == f"Process {2**22 - 1} (rank 1)"
    looking.stop()
    looking.start()
    looking.join(10)
    assert not ended
