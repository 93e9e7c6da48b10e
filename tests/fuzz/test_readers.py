"""Readers under fire, a little of it: ``campaign.py`` gives each a hundred thousand inputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_guard import EscapeError, Guard, HangError
from fuzz_inputs import variants
from fuzz_readers import READERS, load_plugins
from hypothesis import HealthCheck, given, seed, settings

EXAMPLES, VARIANTS = 15, 10


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    load_plugins()
    before = signal.getsignal(signal.SIGPROF)
    yield Guard(tmp_path_factory.mktemp("inputs"))
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_file_holds_is_read_or_refused(name: str, guard: Guard) -> None:
    reader, outcomes, folder = READERS[name], Counter[str](), Path(guard.folder) / name
    folder.mkdir()

    @seed(0)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(reader.inputs)
    def read(content: bytes) -> None:
        for damaged in variants(content, VARIANTS, reader.valid, reader.repair):
            with guard():
                outcomes[reader.outcome(damaged, folder)] += 1

    read()
    assert outcomes.total() >= EXAMPLES * VARIANTS
    for valid in reader.valid:
        assert reader.outcome(valid, folder) in ("read", "stated")
    assert outcomes["read"] + outcomes["stated"] < outcomes.total()  # some are refused


REGRESSIONS = {
    "a merge bomb in a model's description": ("licences", READERS["licences"].more[1]),
    "half a character in a licence": ("licences", b'---\nlicense: "\\ud800"\n---\n'),
    "half a character in a tailoring": (
        "tailoring",
        b'tailoring: 1\nlayers: [{sources: ["base:0"]}]\nembeddings: "\\ud800"\n',
    ),
    "a model's name that is too long for a path": (
        "mergekit",
        b"merge_method: passthrough\nslices: [{sources: [{model: " + b"x" * 300 + b", layer_range: [0, 2]}]}]",
    ),
    "a home of nobody": (
        "mergekit",
        b"merge_method: passthrough\nslices: [{sources: [{model: ~nobody-at-all/x, layer_range: [0, 2]}]}]",
    ),
    "a class in a text": ("recipe", b"optimizer: 'class_path: os.system'\n"),
    "a key twice": ("recipe", b"study: {}\nstudy: {}\n"),
}


@pytest.mark.parametrize("fault", REGRESSIONS)
def test_what_once_went_wrong(fault: str, guard: Guard) -> None:
    reader, content = REGRESSIONS[fault]
    with guard():
        outcome = READERS[reader].outcome(content, Path(guard.folder))
    assert outcome in ("RecipeError", "faults", "none") or (reader, outcome) == ("mergekit", "read")


def test_the_guard_notices_what_it_must(guard: Guard, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    with pytest.raises(EscapeError, match="open of"), guard():
        outside.write_text("x")
    with pytest.raises(EscapeError, match="mkdir"), guard():
        outside.mkdir()
    with pytest.raises(EscapeError, match=r"os\.system"), guard():
        os.system("true")
    with pytest.raises(EscapeError, match="Popen"), guard():
        subprocess.run([sys.executable, "-c", ""], check=False)
    with guard():
        (Path(guard.folder) / "inside").write_text("x")
    assert not outside.exists()
    guard.seconds = 0.05
    with pytest.raises(HangError), guard():
        while True:
            pass
    guard.seconds = 10.0
