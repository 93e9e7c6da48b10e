"""Freed memory goes back to the system, holes included, or stays for the next tensor: as the process asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tailorlib import cli, memory

BLOCKS = """
import ctypes, resource, runpy, sys
memory = runpy.run_path(sys.argv[1])  # without the package: PyTorch loads for seconds
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def block(size):
    address = library.malloc(size)
    ctypes.memset(address, 1, size)
    return address
"""
HOLES = (
    BLOCKS
    + """
def anonymous():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1024
library.free(block(2**22))  # 4 MB: from now on smaller blocks come from the heap
before = anonymous()
kept, dropped = [], []
for _ in range(100):
    dropped.append(block(2**20))  # 1 MB
    kept.append(block(2**16))  # 64 kB: more than any hole from before
full = anonymous() - before
for address in dropped:
    library.free(address)
holes = anonymous() - before
memory["give_back_freed_memory"]()
print(full, holes, anonymous() - before)
"""
)
KEPT = (
    BLOCKS
    + """
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    library.free(block(2**26))  # 64 MiB: more than the C library keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
by_itself = [faults() for _ in range(3)]
assert memory["keep_freed_memory"]()
print(min(by_itself), [faults() for _ in range(3)][-1])
"""
)


def said(script: str) -> list[float]:
    command = [sys.executable, "-c", script, memory.__file__]
    return list(map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))


@pytest.mark.skipif(memory._of_c_library("malloc_trim") is None, reason="this C library keeps what it keeps")
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what is held")
def test_holes_between_what_stays_go_back():
    full, holes, after = said(HOLES)
    assert full > 100
    assert holes > 60  # else nothing is shown here
    assert 4 < after < 15  # what stays


@pytest.mark.skipif(memory._of_c_library("mallopt") is None, reason="this C library can't be told")
def test_a_large_tensor_lies_where_the_one_before_lay():
    by_itself, kept = said(KEPT)
    assert by_itself > 1000  # else nothing is shown here: pages may be large
    assert kept < by_itself / 20


def test_old_libraries_get_the_threshold_that_they_take(monkeypatch):
    asked = []

    def mallopt(what: int, value: int) -> int:
        asked.append((what, value))
        return int(what != memory._M_MMAP_THRESHOLD or value <= 2**25)

    monkeypatch.setattr(memory, "_of_c_library", lambda name: mallopt)
    assert memory.keep_freed_memory()
    assert [value for what, value in asked if what == memory._M_MMAP_THRESHOLD] == [2**30, 2**25]


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory._of_c_library.__wrapped__("malloc_trim") is None
    monkeypatch.setattr(memory, "_of_c_library", lambda name: None)
    memory.give_back_freed_memory()
    assert not memory.keep_freed_memory()


@pytest.mark.parametrize(
    ("verb", "keeps"), [("search", 1), ("evaluate", 1), ("plan", 1), ("export", 1), ("import", 0)]
)
def test_every_verb_that_evaluates_keeps_freed_memory(monkeypatch, tmp_path, verb, keeps):
    asked = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append(1))
    assert cli.main([verb, "--config", str(tmp_path / "missing.yaml")]) == 2
    assert len(asked) == keeps
