"""Streaming: sources are read once, plainly and in small pieces; what happens to them meanwhile is noticed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from model_cases import CPU, LAYERS, plan, random_tailoring
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tailorlib.exceptions import ModelError, TailorError
from tailorlib.export import export, export_model, writer
from tailorlib.models.checkpoint import SafetensorsCheckpoint
from tailorlib.models.family import ModelFamily
from tailorlib.models.reading import private_reads
from tailorlib.tailoring import Tailoring

WHOLE = Tailoring.whole("base", LAYERS, without=[2])
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel what is mapped and resident")


@pytest.fixture
def own(folders, tmp_path):
    """Return a prepared family whose files may be modified."""
    copies = {name: shutil.copytree(folders[name], tmp_path / "sources" / name) for name in ("base", "a")}
    family = ModelFamily(str(copies["base"]), {"a": str(copies["a"])}, dtype="float32")
    family.prepare()
    return family


def weights(family, name="base"):
    return family.sources[name].folder / "model.safetensors"


def meanwhile(monkeypatch, act):
    """Let something happen after the first tensor was read."""
    original = export.tensors

    def tensors(*args):
        for i, item in enumerate(original(*args)):
            yield item
            if i == 0:
                act()

    monkeypatch.setattr(export, "tensors", tensors)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_private_tensors_are_those_of_the_file_and_nobody_else_s(case_family, storage):
    checkpoint = case_family("llama", storage, "float32").checkpoints["base"]
    for name in checkpoint.keys():  # noqa: SIM118
        mapped = checkpoint.tensor(name)
        with private_reads():
            first, second = checkpoint.tensor(name), checkpoint.tensor(name)
        assert first.dtype == mapped.dtype and torch.equal(first, mapped)
        assert len({t.data_ptr() for t in (mapped, first, second)}) == 3
        assert checkpoint.tensor(name).data_ptr() == mapped.data_ptr()


def test_tensors_of_every_type_and_without_entries_are_read(tmp_path):
    tensors = {
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "half": torch.full((3, 5), 0.5, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with private_reads():
        checkpoint = SafetensorsCheckpoint(tmp_path)
        found = {name: checkpoint.tensor(name) for name in tensors}
    assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in tensors.items())


@linux
def test_an_export_maps_no_source_and_leaves_no_file_open(own, tmp_path):
    export_model(own, Tailoring((plan("base:0"), plan("a:1", "base:1", operation="Linear"))), tmp_path / "out")
    sources = str(tmp_path / "sources")
    assert sources not in Path("/proc/self/maps").read_text()
    assert not any(
        str(f.readlink()).startswith(sources) for f in Path("/proc/self/fd").iterdir() if f.is_symlink()
    )


def synthetic(folder, seed):
    """Write a model of 67 MB whose weights are a small random matrix over and over."""
    config = LlamaConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=8, vocab_size=320, num_attention_heads=8
    )
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in AutoModelForCausalLM.from_config(config).state_dict().items()}
    grain = torch.randn(2**18, generator=torch.Generator().manual_seed(seed)).mul_(0.02).bfloat16()
    config.save_pretrained(folder)
    tensors = {n: grain.repeat(-(-s.numel() // 2**18))[: s.numel()].reshape(s) for n, s in shapes.items()}
    save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@linux
def test_the_memory_of_an_export_does_not_grow_with_the_models(tmp_path):
    base, a, b = (synthetic(tmp_path / name, i) for i, name in enumerate(("base", "a", "b")))
    family = ModelFamily(base, {"a": a, "b": b})
    family.prepare()
    merged = (plan(f"a:{i}", f"b:{i}", operation="TIES", base=f"base:{i}") for i in range(2, 8))
    tailoring = Tailoring((plan("base:0"), plan("a:1"), *merged))
    largest = 512 * 2048
    before = peak(reset=True)
    export_model(family, tailoring, tmp_path / "out", max_shard_bytes=2e7)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    assert peak() - before < 20 * 4 * largest  # 84 MB; the three sources take 201 MB, the result 67


def peak(reset=False):
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt_neox", "mixtral"])
def test_shards_and_their_index_are_as_transformers_writes_them(case_family, name, tmp_path):
    family = case_family(name)
    tailoring = random_tailoring(family, 4)
    ours = export_model(family, tailoring, tmp_path / "ours", max_shard_bytes=60_000)
    AutoModelForCausalLM.from_pretrained(ours).save_pretrained(tmp_path / "theirs", max_shard_size=60_000)
    mine, theirs = (
        json.loads((tmp_path / n / "model.safetensors.index.json").read_text()) for n in ("ours", "theirs")
    )
    assert mine["metadata"] == theirs["metadata"]
    assert list(mine) == list(theirs)
    assert list(mine["weight_map"]) == list(theirs["weight_map"])
    number = len(set(mine["weight_map"].values()))
    assert number > 2
    assert set(mine["weight_map"].values()) == {
        f"model-{i:05d}-of-{number:05d}.safetensors" for i in range(1, number + 1)
    }
    for file in set(mine["weight_map"].values()):
        with safe_open(ours / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == {n for n, where in mine["weight_map"].items() if where == file}


@linux
def test_any_number_of_shards_is_written_with_few_files_open(llama, tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(p.name) for p in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 16, hard))
    try:
        folder = export_model(llama, WHOLE, tmp_path / "out", max_shard_bytes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list(folder.glob("model-*.safetensors"))) > 40
    assert AutoModelForCausalLM.from_pretrained(folder)


def test_a_source_that_changes_meanwhile_stops_the_export(own, tmp_path, monkeypatch):
    def rewrite():
        content = bytearray(weights(own).read_bytes())
        content[-1] ^= 1
        weights(own).write_bytes(content)
        os.utime(weights(own), ns=(1, 1))  # however coarse this file system's clock is

    meanwhile(monkeypatch, rewrite)
    with pytest.raises(ModelError, match=r"base/model\.safetensors' changed while it was in use; its tensor"):
        export_model(own, WHOLE, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


def test_a_source_that_is_cut_short_meanwhile_stops_the_export(own, tmp_path, monkeypatch):
    meanwhile(monkeypatch, lambda: os.truncate(weights(own), 5000))
    with pytest.raises(ModelError, match=r"base/model\.safetensors' changed while it was in use"):
        export_model(own, WHOLE, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


def test_a_source_that_is_gone_is_named_with_the_tensor(own, tmp_path):
    weights(own, "a").unlink()
    with pytest.raises(
        ModelError, match=r"tensor 'model\.layers\.1\..*a/model\.safetensors' can't be read: No such"
    ):
        export_model(own, Tailoring((plan("base:0"), plan("a:1"))), tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


@linux
def test_a_source_that_is_replaced_once_it_is_open_is_read_to_its_end(own, tmp_path, monkeypatch):
    expected = load_file(weights(own))

    def replace():
        (tmp_path / "other").write_bytes(b"nothing")
        (tmp_path / "other").replace(weights(own))

    meanwhile(monkeypatch, replace)
    found = load_file(export_model(own, Tailoring.whole("base", LAYERS), tmp_path / "out") / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_tokenizer_that_vanishes_is_named(own, tmp_path, monkeypatch):
    original = shutil.copyfile

    def vanishing(source, target):
        if source.name == "tokenizer.json":
            source.unlink()
        return original(source, target)

    monkeypatch.setattr(shutil, "copyfile", vanishing)
    with pytest.raises(ModelError, match=r"tokenizer\.json' of the base model can't be read: No such file"):
        export_model(own, WHOLE, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


def test_a_place_where_no_folder_can_be_made_is_told(llama, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TailorError, match=r"makes a folder; '.*/file' is a file"):
        export_model(llama, WHOLE, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, r"needs \d+ MB in .* are free"), (errno.EIO, "can't be written: broken")]
)
def test_a_disk_that_fails_behind_the_merging_leaves_nothing(llama, tmp_path, monkeypatch, code, message):
    def fail(file):
        raise OSError(code, "broken")

    monkeypatch.setattr(writer, "_sync", fail)
    with pytest.raises(TailorError, match=message):
        export_model(llama, WHOLE, tmp_path / "out", max_shard_bytes=60_000)
    assert not list(tmp_path.iterdir())


def test_a_pattern_that_loses_its_period_is_warned_of(case_family, tmp_path, caplog):
    family = case_family("gemma3_text")
    export_model(family, Tailoring.whole("base", LAYERS, without=[0, 1, 2]), tmp_path / "periodic")
    assert not caplog.records
    export_model(family, Tailoring.whole("base", LAYERS, without=[0, 3]), tmp_path / "other")
    assert "repeats after 3 layers, is lost" in caplog.text


def test_an_adapter_s_export_is_the_live_model_too(folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(folders["base"])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        peft = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        )
    peft.save_pretrained(tmp_path / "adapter")
    family = ModelFamily(str(folders["base"]), {"lora": str(tmp_path / "adapter")}, dtype="float32")
    family.load(CPU)
    tailoring = Tailoring.whole("lora", LAYERS, without=[3])
    live = {n: t.clone() for n, t in family.stitch(tailoring).state_dict().items()}
    found = load_file(export_model(family, tailoring, tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(tensor, live[name]) for name, tensor in found.items())
    assert not torch.equal(
        found["model.layers.0.mlp.up_proj.weight"], model.model.layers[0].mlp.up_proj.base_layer.weight
    )
