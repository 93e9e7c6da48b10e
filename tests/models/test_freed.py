"""Freed memory goes back to the system, the holes between what stays included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tailorlib.models import freed

SCRIPT = """
import torch
from tailorlib.models.freed import give_back_freed_memory
def anonymous():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1024
del_me = torch.ones(2**20)  # 4 MB: from now on smaller blocks come from the heap
del del_me
before = anonymous()
kept, dropped = [], []
for _ in range(100):
    dropped.append(torch.ones(2**18))  # 1 MB
    kept.append(torch.ones(2**14))  # 64 kB: more than any hole from before
full = anonymous() - before
dropped.clear()
holes = anonymous() - before
give_back_freed_memory()
print(full, holes, anonymous() - before)
"""


@pytest.mark.skipif(freed._malloc_trim() is None, reason="this C library keeps what it keeps")
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what is held")
def test_holes_between_what_stays_go_back():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    full, holes, after = map(float, found.stdout.split())
    assert full > 100
    assert holes > 60  # else nothing is shown here
    assert 4 < after < 15  # what stays


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert freed._malloc_trim.__wrapped__() is None
    monkeypatch.setattr(freed, "_malloc_trim", lambda: None)
    freed.give_back_freed_memory()
