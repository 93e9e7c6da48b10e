"""Another reading of whole models: what transformers and PEFT load finds what tailorlib reads wrong."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from model_cases import CPU, LAYERS
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_tying import tied_model
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import ModelError, TailorError
from tailorlib.export import export_model
from tailorlib.export.verify import verify_export
from tailorlib.models import opening, reference
from tailorlib.models.adapter import AdapterCheckpoint
from tailorlib.models.checkpoint import SafetensorsCheckpoint
from tailorlib.models.family import ModelFamily
from tailorlib.models.reference import compare_models
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_model


def family_of(base, **candidates):
    family = ModelFamily(str(base), {name: str(folder) for name, folder in candidates.items()}, dtype="float32")
    family.prepare()
    return family


@pytest.fixture
def adapter(folders, tmp_path):
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        get_peft_model(AutoModelForCausalLM.from_pretrained(folders["base"]), settings).save_pretrained(
            tmp_path / "l"
        )
    return tmp_path / "l"


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt_neox", "gpt2", "qwen3_moe", "mixtral", "phi3"])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_models_are_read_as_transformers_reads_them(case_family, name, storage, monkeypatch):
    family = case_family(name, storage)
    found = compare_models(family)
    assert set(found) == {"base", "a", "b"}
    assert all("the logits are transformers' own" in what for what in found.values())
    monkeypatch.setattr(reference, "SMALL", 0)
    assert all("names and shapes are transformers' own" in what for what in compare_models(family).values())


def test_names_and_shapes_read_no_weight(folders, monkeypatch):
    family = family_of(folders["base"], a=folders["a"])
    monkeypatch.setattr(reference, "SMALL", 0)
    monkeypatch.setattr(SafetensorsCheckpoint, "tensor", lambda *_: pytest.fail("a weight was read"))
    compare_models(family)


def test_an_adapter_is_merged_as_peft_merges_it(folders, adapter, monkeypatch):
    found = compare_models(family_of(folders["base"], a=adapter))
    assert found["a"].endswith("tensors are those that PEFT merges")
    right = AdapterCheckpoint._scaling
    monkeypatch.setattr(AdapterCheckpoint, "_scaling", lambda *args: right(*args) * 1.01)
    with pytest.raises(ModelError, match=r"'a' is read otherwise .*differs by .* from what PEFT merges"):
        compare_models(family_of(folders["base"], a=adapter))


def test_a_candidate_with_settings_or_a_vocabulary_of_its_own_is_compared_by_its_tensors(folders, tmp_path):
    other = shutil.copytree(folders["a"], tmp_path / "a")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    tied = write_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    found = compare_models(family_of(folders["base"], a=other, b=tied))
    assert all("run with the base's settings or vocabulary" in found[name] for name in "ab")


def test_a_head_that_is_dropped_is_found(tmp_path, monkeypatch):
    base = tied_model(tmp_path / "base", head=1.0)
    assert "the logits are transformers' own" in compare_models(family_of(base))["base"]
    monkeypatch.setattr(opening, "settle_tie", lambda checkpoint, config, row: (checkpoint, ""))
    family = family_of(base)
    whole = Tailoring.whole("base", LAYERS)
    with pytest.raises(ModelError, match=r"'base' is read otherwise than transformers reads it: .*lm_head"):
        compare_models(family)
    with pytest.raises(TailorError, match=r"lm_head"):
        verify_export(family, whole, export_model(family, whole, tmp_path / "out"))


def test_a_tensor_of_another_place_is_found_in_small_models_and_large_ones_on_request(folders, monkeypatch):
    right = SafetensorsCheckpoint.tensor
    swap = {"model.layers.1.mlp.up_proj.weight": "model.layers.2.mlp.up_proj.weight"}
    monkeypatch.setattr(SafetensorsCheckpoint, "tensor", lambda self, name: right(self, swap.get(name, name)))
    family = family_of(folders["base"])
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight differs"):
        compare_models(family)
    monkeypatch.setattr(reference, "SMALL", 0)
    compare_models(family)
    with pytest.raises(ModelError, match="differs"):
        compare_models(family, everything=True)


def test_a_row_that_leaves_out_a_tensor_is_found_by_its_name(folders, monkeypatch):
    family = family_of(folders["base"])
    with pytest.raises(ModelError, match=r"model\.norm\.weight is missing"):
        monkeypatch.setattr(
            family.assembly, "outer_names", tuple(n for n in family.assembly.outer_names if "norm" not in n)
        )
        compare_models(family)


def test_verification_says_what_was_compared(llama, tmp_path):
    whole = Tailoring.whole("a", LAYERS)
    checks = verify_export(llama, whole, export_model(llama, whole, tmp_path / "out"), device=CPU).checks
    finding = next(check.finding for check in checks if check.name == "whole models")
    assert finding.startswith("base: 57 tensors and the logits are transformers' own; a: ")


def test_no_global_generator_moves(folders, adapter):
    before = torch.random.get_rng_state()
    compare_models(family_of(folders["base"], a=adapter))
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_obsolete_tensor_is_no_difference(folders, tmp_path):
    base = shutil.copytree(folders["base"], tmp_path / "base")
    state = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**state, name: torch.ones(4)}, base / "model.safetensors", metadata={"format": "pt"})
    compare_models(family_of(base))


def test_another_setting_is_refused(folders):
    family = ModelFamily(str(folders["base"]), compare="everything")  # type: ignore[arg-type]
    with pytest.raises(TailorError, match="compare is one of small, all"):
        family.prepare()
