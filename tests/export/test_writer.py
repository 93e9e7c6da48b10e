"""The writer: what it writes, the safetensors library reads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tailorlib.export.writer import TensorSpec, split_shards, write_checkpoint
from tailorlib.models.checkpoint import SafetensorsCheckpoint

TENSORS = {
    "odd": torch.arange(3, dtype=torch.bfloat16),
    "wide": torch.linspace(-1, 1, 6).reshape(2, 3),
    "flag": torch.tensor([True]),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "half": torch.full((2, 2), 0.5, dtype=torch.float16).T,
    "strided": torch.arange(12.0).reshape(3, 4).T,
}
SPECS = [TensorSpec(n, tuple(t.shape), t.dtype) for n, t in TENSORS.items()]


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_one_file_holds_all_tensors_given_in_any_order(tmp_path):
    (file,) = write_checkpoint(tmp_path, SPECS, reversed(TENSORS.items()))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert same(load_file(file), TENSORS)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_shards_are_listed_in_an_index(tmp_path):
    files = write_checkpoint(tmp_path, SPECS, TENSORS.items(), max_shard_bytes=30)
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    together = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert same(together, TENSORS)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    checkpoint = SafetensorsCheckpoint(tmp_path)
    assert same({n: checkpoint.tensor(n) for n in checkpoint.keys()}, TENSORS)  # noqa: SIM118


def test_a_shard_is_no_larger_than_allowed_unless_one_tensor_is(tmp_path):
    specs = [TensorSpec(str(i), (size,), torch.uint8) for i, size in enumerate([4, 6, 20, 1, 9])]
    sizes = [[spec.nbytes for spec in shard] for shard in split_shards(specs, 10)]
    assert sizes == [[4, 6], [20], [1, 9]]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "announced and not given"),
        ({"a": torch.zeros(3)}, "announced as"),
        ({"a": torch.zeros(2, dtype=torch.float16)}, "announced as"),
        ({"b": torch.zeros(2)}, "not announced"),
    ],
)
def test_tensors_other_than_announced_are_refused(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message):
        write_checkpoint(tmp_path, [TensorSpec("a", (2,), torch.float32)], tensors.items())
