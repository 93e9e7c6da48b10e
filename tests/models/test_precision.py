"""Precision: bfloat16 is chosen only where it is worth its lost digits."""

from __future__ import annotations

import pytest
import torch

from tailorlib.exceptions import RecipeError
from tailorlib.models import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bfloat16", "chosen"), [(1.0, torch.float32), (0.8, torch.float32), (0.7, torch.bfloat16)]
)
def test_auto_takes_bfloat16_if_it_is_much_faster(monkeypatch, bfloat16, chosen):
    seconds = {torch.float32: 1.0, torch.bfloat16: bfloat16}
    monkeypatch.setattr(precision, "gemm_seconds", lambda dtype, device: seconds[dtype])
    assert precision.compute_dtype("auto", CPU) == chosen


def test_a_named_type_is_taken_unmeasured(monkeypatch):
    monkeypatch.delattr(precision, "gemm_seconds")
    assert precision.compute_dtype("float16", CPU) == torch.float16


def test_an_unknown_type_is_refused():
    with pytest.raises(RecipeError, match="Did you mean 'bfloat16'"):
        precision.compute_dtype("bfloat", CPU)


def test_the_measurement_gives_a_time():
    assert 0 < precision.gemm_seconds(torch.float32, CPU, size=16, repeats=1) < 10
