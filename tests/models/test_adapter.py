"""LoRA adapters: merged as PEFT merges them; other kinds are refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from model_cases import LAYERS, logits
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import ModelError, RecipeError
from tailorlib.export import export_model
from tailorlib.export.verify import verify_export
from tailorlib.models.adapter import AdapterCheckpoint, _same_model
from tailorlib.models.checkpoint import SafetensorsCheckpoint
from tailorlib.models.family import ModelFamily
from tailorlib.operation import OPERATIONS
from tailorlib.tailoring import LayerPlan, Tailoring
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


def edit_weights(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file({n: change(n, t) for n, t in load_file(file).items()}, file)


def opened(base, adapter):
    family = ModelFamily(str(base), {"a": str(adapter)}, dtype="float32")
    family.prepare()
    return family


@pytest.mark.parametrize("merge", ["Linear", "TaskArithmetic"])
def test_a_merge_gets_the_float32_sum(tmp_path, merge):
    base = write_tiny_model(tmp_path / "base", dtype=torch.bfloat16)
    adapter = write_adapter(base, tmp_path / "a", lora_alpha=0.05)  # a change of a few roundings
    family = opened(base, adapter)
    suffix = "mlp.up_proj.weight"
    stored = load_file(base / "model.safetensors")[f"model.layers.0.{suffix}"].to(torch.float32)
    low = load_file(adapter / "adapter_model.safetensors")
    pair = [low[f"base_model.model.model.layers.0.mlp.up_proj.lora_{side}.weight"] for side in "BA"]
    total = stored + pair[0] @ pair[1] * (0.05 / 4)

    operation = OPERATIONS.get(merge)()
    drawn = {name: d.default for name, d in operation.distributions().items()}
    params = {**drawn, "weights": (8.0, 1.0)}
    plan = LayerPlan.from_dict(
        {
            "sources": ["a:0", "base:0"],
            "operation": merge,
            "base": "base:0",
            "params": {**params, "weights": [8.0, 1.0]},
        }
    )

    def merged(first):
        generators = [torch.Generator(), torch.Generator()]
        return operation.apply([first, stored], base=stored, params=params, generators=generators)

    made = family.assembly.layer_tensor(plan, suffix, seed=0)
    assert torch.equal(made, merged(total).to(torch.bfloat16))
    assert not torch.equal(made, merged(total.to(torch.bfloat16).to(torch.float32)).to(torch.bfloat16))


def test_a_selected_layer_of_an_adapter_is_rounded_once_and_exported_as_it_is_live(tmp_path):
    base = write_tiny_model(tmp_path / "base", dtype=torch.bfloat16)
    family = opened(base, write_adapter(base, tmp_path / "a"))
    family.load(torch.device("cpu"))
    whole = Tailoring.whole("a", LAYERS)
    verify_export(family, whole, export_model(family, whole, tmp_path / "out"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert family.checkpoints["a"].dtype(name) == torch.float32
    expected = family.checkpoints["a"].tensor(name).to(torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, t: t.to(torch.int32), "is int32|as int32"),
        (lambda n, t: t.to(torch.float8_e4m3fn), "as float8_e4m3fn"),
        (lambda n, t: torch.full_like(t, float("nan")), "holds NaN or Inf"),
        (lambda n, t: t * torch.tensor(float("inf")), "holds NaN or Inf"),
        (lambda n, t: (t[:0] if ".lora_A." in n else t[:, :0]).clone(), "of rank 0"),
    ],
)
def test_tensors_that_are_no_low_rank_change_are_refused(folders, adapter, change, message):
    edit_weights(adapter, change)
    if "rank 0" in message:
        edit_config(adapter, r=0)
    with pytest.raises(RecipeError, match=message):
        opened(folders["base"], adapter)


def test_an_adapter_without_tensors_is_refused(folders, adapter):
    save_file({}, adapter / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match="holds no tensors"):
        opened(folders["base"], adapter)


def test_an_adapter_that_changes_nothing_is_told(folders, adapter, caplog):
    edit_config(adapter, lora_alpha=0)
    opened(folders["base"], adapter)
    assert "changes nothing (lora_alpha is 0)" in caplog.text
    edit_config(adapter, lora_alpha=12)
    edit_weights(adapter, lambda n, t: torch.zeros_like(t) if ".lora_B." in n else t)
    caplog.clear()
    opened(folders["base"], adapter)
    assert "changes nothing (one matrix of each pair is all zero)" in caplog.text


def test_an_adapter_of_another_name_is_told(folders, adapter, caplog):
    opened(folders["base"], adapter)
    assert caplog.text == ""
    edit_config(adapter, base_model_name_or_path="some-org/another-model")
    opened(folders["base"], adapter)
    assert "names 'some-org/another-model' as its base" in caplog.text


@pytest.mark.parametrize(
    ("named", "reference", "same"),
    [
        ("org/Model-1B", "org/model-1b", True),
        ("org/Model-1B", "mirror/Model-1B@v1.0", True),
        ("org/Model-1B", "/x/models--org--Model-1B/snapshots/abc", True),
        ("org/Model-1B", "package:some/model-1b.Q4.gguf", True),
        ("org/Model-1B", "org/Model-7B", False),
    ],
)
def test_names_are_compared_by_their_last_part(named, reference, same):
    assert _same_model(named, reference) is same


@pytest.mark.parametrize("listed", [[1, 99], 99, [-1]])
def test_an_adapter_that_was_trained_on_deeper_layers_is_refused(folders, adapter, listed):
    edit_config(adapter, layers_to_transform=listed)
    with pytest.raises(RecipeError, match="the base has the layers 0 to 5"):
        opened(folders["base"], adapter)


def test_an_adapter_of_a_shallower_model_is_told(folders, tmp_path, caplog):
    shallow = write_tiny_model(tmp_path / "base", num_layers=2)
    opened(folders["base"], write_adapter(shallow, tmp_path / "a"))
    assert "changes 2 of the 6 layers" in caplog.text


def test_an_alpha_that_is_no_number_is_refused(folders, adapter):
    edit_config(adapter, lora_alpha=float("nan"))
    with pytest.raises(RecipeError, match="lora_alpha is nan"):
        opened(folders["base"], adapter)


def test_a_missing_weights_file_is_named(folders, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        AdapterCheckpoint(SafetensorsCheckpoint(folders["base"]), adapter)
