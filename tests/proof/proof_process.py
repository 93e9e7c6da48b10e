"""Commands in processes of their own that are killed, interrupted, or run out of disk at a chosen moment."""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proof_bench import Told

WRITES = ("fsync", "replace", "rename", "truncate", "unlink", "mkdir")
"""Calls of the operating system behind which something may be half done."""
PRELOADED = ["tailorlib.lightning_cli", "tailorlib_strategies.fitness", "tailorlib.export.command", __name__]


def context() -> Any:
    """Return what starts processes that needn't import everything again."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


@dataclass(frozen=True)
class AtWrite:
    """A signal that a process sends itself at one of its calls that write: before it if odd, else after."""

    call: int
    signal: int = signal.SIGKILL

    def install(self) -> None:
        """Count the calls."""
        seen = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal seen
                seen += 1
                mine = seen
                if mine == self.call and mine % 2:
                    os.kill(os.getpid(), self.signal)
                result = real(*args, **kwargs)
                if mine == self.call and mine % 2 == 0:
                    os.kill(os.getpid(), self.signal)
                return result

            return call

        for name in WRITES:
            setattr(os, name, counted(getattr(os, name)))


@dataclass(frozen=True)
class FullDisk:
    """A disk that takes some writes below a folder, and then no more."""

    folder: str
    writes: int
    error: int = errno.ENOSPC

    def install(self) -> None:
        """Count the writes."""
        state = {"left": self.writes}

        def spend() -> None:
            state["left"] -= 1
            if state["left"] < 0:
                raise OSError(self.error, os.strerror(self.error))

        class Raw(io.FileIO):
            def write(self, data: Any) -> Any:
                spend()
                return super().write(data)

            def truncate(self, size: int | None = None) -> int:
                if size is not None and size > os.fstat(self.fileno()).st_size:
                    spend()
                return super().truncate(size)

        real_open, here = io.open, os.path.realpath(self.folder) + os.sep

        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            inside = isinstance(file, str | os.PathLike) and os.path.realpath(file).startswith(here)
            if not inside or not set(mode) & set("wax+"):
                return real_open(file, mode, buffering, *args, **kwargs)
            raw = Raw(file, mode.replace("b", "").replace("t", ""))
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return raw if buffering == 0 else buffered
            names = dict(zip(("encoding", "errors", "newline"), args, strict=False)) | kwargs
            return io.TextIOWrapper(buffered, **names, line_buffering=buffering == 1)

        io.open = builtins.open = opened  # type: ignore[assignment]
        for name in ("fsync", "mkdir"):
            setattr(os, name, _after(spend, getattr(os, name)))


@dataclass(frozen=True)
class SizeLimit:
    """A limit for the size of files, as the system sets it."""

    size: int

    def install(self) -> None:
        """Set the limit."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def _after(spend: Callable[[], None], real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        spend()
        return real(*args, **kwargs)

    return call


Fault = AtWrite | FullDisk | SizeLimit


def _command(
    argv: Sequence[str], folder: str, log: str, fault: Fault | None, variables: Mapping[str, str]
) -> None:
    import torch

    os.environ.update(variables)  # those of the server are from when it began

    os.setpgrp()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)  # sums have one order
    os.environ["OMP_NUM_THREADS"] = "1"  # or Lightning's launcher takes all cores for one process
    os.chdir(folder)
    sys.argv = ["tailor", *argv]
    from tailorlib.start import main

    if fault is not None:
        fault.install()
    sys.exit(main(list(argv)))


def run(
    argv: Sequence[str],
    folder: Path,
    *,
    fault: Fault | None = None,
    after: float | None = None,
    with_signal: int = signal.SIGKILL,
    limit: float = 120.0,
) -> Told:
    """Run a command in a process of its own.

    Args:
        argv: The command line behind ``tailor``.
        folder: Where it runs.
        fault: What happens to it.
        after: Seconds after which it gets a signal.
        with_signal: Which.
        limit: Seconds after which it hangs.

    Returns:
        Its exit status, and what it printed.
    """
    log = folder / "output.txt"
    log.unlink(missing_ok=True)
    process = context().Process(target=_command, args=(list(argv), str(folder), str(log), fault, dict(os.environ)))
    process.start()
    if after is not None:
        process.join(after)
        if process.is_alive():
            os.kill(process.pid, with_signal)
    process.join(limit)
    hung = process.is_alive()
    if hung:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    assert not hung, f"it ran for more than {limit} s:\n{text[-3000:]}"
    return Told(int(process.exitcode), text)


def seconds_of(call: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    began = time.monotonic()
    call()
    return time.monotonic() - began
