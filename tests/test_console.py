"""What happens to a command whose output nobody gets."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tailorlib.light import main


def test_a_verb_whose_output_is_lost_says_so_and_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Path("/dev/full").open("w") as full, redirect_stdout(full):
        assert main(["list", str(tmp_path)]) == 1
    assert capfd.readouterr().err == "tailor: error: A part of the output is lost: No space left on device.\n"


def test_a_reader_that_had_enough_loses_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe, redirect_stdout(pipe):
        assert main(["list", str(tmp_path)]) == 0
    assert not capfd.readouterr().err
