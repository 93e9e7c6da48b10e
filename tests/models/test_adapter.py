"""LoRA adapters: merged as PEFT merges them; other kinds are refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from model_cases import LAYERS, logits
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import ModelError
from tailorlib.models.adapter import AdapterCheckpoint
from tailorlib.models.checkpoint import SafetensorsCheckpoint
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_model

VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "2.mlp.down_proj": 6}, "alpha_pattern": {"mlp.up_proj": 3}},
    "some layers": {"layers_to_transform": [1, 3], "target_modules": ["v_proj", "gate_proj"]},
}


def write_adapter(base, folder, **settings):
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    settings = {"init_lora_weights": False, **settings}  # False draws B at random; True would change nothing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    model.save_pretrained(folder)
    return folder


def edit_config(folder, **entries):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.fixture
def adapter(folders, tmp_path):
    return write_adapter(folders["base"], tmp_path / "adapter")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_equal_what_peft_merges(tmp_path, variant, dtype):
    base = write_tiny_model(tmp_path / "base", dtype=dtype)
    folder = write_adapter(base, tmp_path / "adapter", **VARIANTS[variant])
    with torch.random.fork_rng(devices=[]):
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)  # nothing is rounded on the way
        merged = PeftModel.from_pretrained(loaded, folder).merge_and_unload().state_dict()
    checkpoint = AdapterCheckpoint(SafetensorsCheckpoint(base), folder)
    changed, merged_names = 0, set(checkpoint._pairs)
    for name in checkpoint.keys():  # noqa: SIM118
        tensor = checkpoint.tensor(name)
        assert tensor.dtype == checkpoint.dtype(name) == (torch.float32 if name in merged_names else dtype)
        assert torch.allclose(tensor, merged[name].to(tensor.dtype), atol=1e-6, rtol=1e-5), name
        changed += not torch.equal(tensor, checkpoint.base.tensor(name))
        assert (checkpoint.origin(name)[0] is checkpoint) == (
            not torch.equal(tensor, checkpoint.base.tensor(name))
        )
    assert changed == (4 if variant == "some layers" else 7 * LAYERS)


def test_an_adapter_is_a_candidate(folders, adapter):
    family = ModelFamily(str(folders["base"]), {"tuned": str(adapter)}, dtype="float32")
    family.load(torch.device("cpu"))
    live = logits(family.stitch(Tailoring.whole("tuned", LAYERS)))
    with torch.random.fork_rng(devices=[]):
        tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["base"]), adapter).eval()
    assert torch.allclose(live, logits(tuned), atol=1e-3)
    assert not torch.allclose(live, logits(family.stitch(Tailoring.whole("base", LAYERS))), atol=1e-1)


def test_embeddings_that_an_adapter_leaves_alone_are_held_once(folders, adapter):
    family = ModelFamily(str(folders["base"]), {"tuned": str(adapter)}, dtype="float32")
    family.load(torch.device("cpu"))
    base = family.stitch(Tailoring.whole("base", LAYERS)).get_input_embeddings().weight
    assert family.stitch(Tailoring.whole("tuned", LAYERS)).get_input_embeddings().weight is base


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"bias": "all"}, "bias='all'"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"a_setting_of_next_year": 1}, "a_setting_of_next_year=1"),
    ],
)
def test_other_kinds_are_refused_by_name(folders, adapter, entries, named):
    edit_config(adapter, **entries)
    with pytest.raises(ModelError, match=f"plain LoRA adapters.*{named}.*merge_and_unload"):
        AdapterCheckpoint(SafetensorsCheckpoint(folders["base"]), adapter)


def test_an_adapter_of_another_base_is_refused(adapter, tmp_path):
    wide = SafetensorsCheckpoint(write_tiny_model(tmp_path / "wide", hidden_size=64))
    with pytest.raises(ModelError, match="Give its own base"):
        AdapterCheckpoint(wide, adapter)
    shallow = SafetensorsCheckpoint(write_tiny_model(tmp_path / "shallow", num_layers=2))
    with pytest.raises(
        ModelError, match=r"changes layer 5, and the base has the layers 0 to 1.*Give its own base"
    ):
        AdapterCheckpoint(shallow, adapter)


def test_a_config_with_another_rank_is_refused(folders, adapter):
    edit_config(adapter, r=8)
    with pytest.raises(ModelError, match=r"of rank 4 \(its config says 8\)"):
        AdapterCheckpoint(SafetensorsCheckpoint(folders["base"]), adapter)


def test_a_missing_weights_file_is_named(folders, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        AdapterCheckpoint(SafetensorsCheckpoint(folders["base"]), adapter)
