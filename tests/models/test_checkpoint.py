"""Checkpoints: mapped, not read; damaged ones are refused by name."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import ModelError
from tailorlib.models import checkpoint
from tailorlib.models.checkpoint import SafetensorsCheckpoint

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def sharded(folders, tmp_path):
    AutoModelForCausalLM.from_pretrained(folders["base"]).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


def test_tensors_are_those_of_the_file(folders):
    checkpoint = SafetensorsCheckpoint(folders["base"])
    stored = load_file(folders["base"] / "model.safetensors")
    assert checkpoint.keys() == tuple(sorted(stored))
    for name, tensor in stored.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype


def test_shards_are_one_checkpoint(folders, sharded):
    whole, parts = SafetensorsCheckpoint(folders["base"]), SafetensorsCheckpoint(sharded)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole.tensor(n), parts.tensor(n)) for n in whole.keys())  # noqa: SIM118


def test_a_tensor_is_a_view_of_the_mapped_file(folders):
    checkpoint = SafetensorsCheckpoint(folders["base"])
    assert checkpoint.tensor(NAME).data_ptr() == checkpoint.tensor(NAME).data_ptr()


def test_a_checkpoint_goes_to_another_process(folders):
    checkpoint = SafetensorsCheckpoint(folders["base"])
    tensor = checkpoint.tensor(NAME)
    assert torch.equal(pickle.loads(pickle.dumps(checkpoint)).tensor(NAME), tensor)


def test_an_unknown_tensor_suggests_a_known_one(folders):
    with pytest.raises(ModelError, match=f"no tensor.*Did you mean '{NAME}'"):
        SafetensorsCheckpoint(folders["base"]).tensor("model.layers.0.mlp.up_prj.weight")


def test_a_missing_shard_is_named_with_a_tensor_it_holds(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=rf"{shard.name}' is missing; it holds '(model|lm_head)\..*"):
        SafetensorsCheckpoint(sharded)


def test_an_index_that_is_no_index_is_refused(sharded):
    (sharded / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"index .* can't be read"):
        SafetensorsCheckpoint(sharded)


@pytest.mark.parametrize("left", [0, 5, 100, 5000, -1])
def test_a_truncated_file_is_refused(folders, tmp_path, left):
    content = (folders["base"] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:left])
    with pytest.raises(ModelError, match=r"model\.safetensors' is damaged"):
        SafetensorsCheckpoint(tmp_path)


def test_pickled_weights_are_refused_with_how_to_convert(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"reads safetensors.*pytorch_model\.bin.*save_pretrained"):
        SafetensorsCheckpoint(tmp_path)


def test_a_folder_without_weights_is_refused(folders, tmp_path):
    shutil.copy(folders["base"] / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        SafetensorsCheckpoint(tmp_path)


def test_a_file_that_goes_away_while_it_is_opened_is_named(folders, tmp_path, monkeypatch):
    shutil.copy(folders["base"] / "model.safetensors", tmp_path)
    read = checkpoint.read_header

    def read_and_remove(file):
        found = read(file)
        file.unlink()
        return found

    monkeypatch.setattr(checkpoint, "read_header", read_and_remove)
    with pytest.raises(ModelError, match=r"model\.safetensors' went away while it was opened: No such file"):
        SafetensorsCheckpoint(tmp_path)
