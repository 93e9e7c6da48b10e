"""Export: transformers loads the folder and computes what the search saw, to the bit."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from model_cases import LAYERS, logits, plan, random_tailoring
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailorlib.exceptions import ModelError, TailorError
from tailorlib.export import CardInfo, building, export, export_model
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring

WHOLE = Tailoring.whole("base", LAYERS, without=[2])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("storage", "compute"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
def test_the_exported_model_gives_the_bits_of_the_live_one(case_family, case, storage, compute, seed, tmp_path):
    family = case_family(case, storage, compute)
    tailoring = random_tailoring(family, seed)
    live = logits(family.stitch(tailoring))
    folder = export_model(family, tailoring, tmp_path / "out", max_shard_bytes=50_000 if seed else 5e9)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, compute), output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(loaded.eval()), live)
    assert loaded.num_parameters() == family.num_parameters(tailoring)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == getattr(torch, storage)


def test_the_exported_model_can_be_saved_and_is_a_base_itself(case_family, case, tmp_path):
    family = case_family(case)
    tailoring = random_tailoring(family, 3)
    folder = export_model(family, tailoring, tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    again = ModelFamily(str(folder), {"again": str(tmp_path / "again")}, dtype="float32")
    again.load(torch.device("cpu"))
    number = len(tailoring.layers)
    assert torch.equal(logits(again.stitch(Tailoring.whole("again", number))), logits(family.stitch(tailoring)))


def test_per_layer_lists_are_those_of_the_kept_layers(case_family, tmp_path):
    folder = export_model(
        case_family("gemma3_text"), Tailoring.whole("base", LAYERS, without=[0, 3]), tmp_path / "out"
    )
    config = json.loads((folder / "config.json").read_text())
    sliding, full = "sliding_attention", "full_attention"
    assert config["layer_types"] == [sliding, full, sliding, full]
    assert config["num_hidden_layers"] == 4
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert "repeats after 3 layers, is lost" in (folder / "README.md").read_text()


def test_a_tied_head_is_not_written_and_an_untied_one_is(case_family, tmp_path):
    for name, expected in (("llama", True), ("llama-tied", False)):
        folder = export_model(case_family(name), WHOLE, tmp_path / name)
        assert ("lm_head.weight" in load_file(folder / "model.safetensors")) == expected


def test_a_plain_family_need_not_be_loaded(folders, tmp_path):
    family = ModelFamily(str(folders["base"]), {n: str(folders[n]) for n in "ab"})
    family.prepare()
    tailoring = Tailoring((plan("a:0", "b:0", operation="TIES", base="base:0"),))
    assert load_file(export_model(family, tailoring, tmp_path / "out") / "model.safetensors")


def test_the_folder_is_complete(llama, tmp_path):
    tailoring = random_tailoring(llama, 5)
    folder = export_model(llama, tailoring, tmp_path / "deep" / "out", card=CardInfo(title="Tailored *llama*"))
    assert Tailoring.load(folder / "tailoring.yaml") == tailoring
    assert AutoTokenizer.from_pretrained(folder).decode(llama.tokenizer("a b")["input_ids"]) == "a b"
    assert (folder / "generation_config.json").is_file()
    assert "# Tailored \\*llama\\*" in (folder / "README.md").read_text()
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_an_existing_folder_is_refused_unless_it_may_be_replaced(llama, tmp_path):
    folder = export_model(llama, WHOLE, tmp_path / "out")
    with pytest.raises(TailorError, match="exists and isn't empty"):
        export_model(llama, WHOLE, folder)
    smaller = Tailoring.whole("base", LAYERS, without=[1, 2])
    export_model(llama, smaller, folder, overwrite=True)
    assert Tailoring.load(folder / "tailoring.yaml") == smaller
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_only_an_export_is_overwritten(llama, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TailorError, match="Only an exported model is overwritten"):
        export_model(llama, WHOLE, tmp_path, overwrite=True)
    with pytest.raises(TailorError, match="is a file"):
        export_model(llama, WHOLE, tmp_path / "thesis.txt", overwrite=True)
    (tmp_path / "empty").mkdir()
    export_model(llama, WHOLE, tmp_path / "empty")


def test_a_full_disk_is_told_before_anything_is_written(llama, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(TailorError, match=r"needs \d+ MB .* 1 MB are free"):
        export_model(llama, WHOLE, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_while_writing_leaves_nothing(llama, tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, "broken")

    monkeypatch.setattr(export, "_write_rest", fail)
    with pytest.raises(TailorError, match="needs .* MB" if code == errno.ENOSPC else "can't be written: broken"):
        export_model(llama, WHOLE, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failed_replacement_keeps_the_old_export(llama, tmp_path, monkeypatch):
    folder = export_model(llama, WHOLE, tmp_path / "out")
    monkeypatch.setattr(export, "write_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export_model(llama, Tailoring.whole("base", LAYERS), folder, overwrite=True)
    assert Tailoring.load(folder / "tailoring.yaml") == WHOLE
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_tailoring_of_another_family_is_refused(llama, tmp_path):
    with pytest.raises(ModelError, match="no model of the family"):
        export_model(llama, Tailoring((plan("c:0"),)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# -- Leftovers ----------------------------------------------------------------------------------------------------


def killed_at(name):
    """Export in a process that is killed when it calls a function of the module."""

    def export_and_die(llama, folder):
        place = {"publish": export, "rmtree": building.shutil, "replace": building.Path}[name]
        real, calls = getattr(place, name), []

        def die(*args, **kwargs):
            calls.append(args)
            if name == "replace" and len(calls) == 1:
                return real(*args, **kwargs)  # the old model is moved away, and the new one is not there yet
            return os.kill(os.getpid(), signal.SIGKILL)

        setattr(place, name, die)
        export_model(llama, Tailoring.whole("base", LAYERS, without=[1]), folder, overwrite=True)

    return export_and_die


@pytest.mark.parametrize("name", ["publish", "replace", "rmtree"])
def test_an_export_that_is_killed_leaves_nothing_once_the_next_one_is_done(llama, tmp_path, name):
    folder = export_model(llama, WHOLE, tmp_path / "out")
    (tmp_path / ".out.notes").mkdir()
    (tmp_path / ".out.notes" / "thesis.tex").write_text("years of work")
    process = multiprocessing.get_context("fork").Process(target=killed_at(name), args=(llama, folder))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) > (2 if name != "replace" else 1)
    with pytest.raises(TailorError, match="exists and isn't empty"):
        export_model(llama, WHOLE, folder)
    found = Tailoring.load(folder / "tailoring.yaml")
    assert (found == WHOLE) == (name != "rmtree")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.notes", "out"]


def test_what_a_living_export_writes_is_not_removed(llama, tmp_path):
    with building.building(tmp_path / "out") as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        export_model(llama, WHOLE, tmp_path / "out")
        assert (folder / "model.safetensors").read_bytes() == b"half"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
