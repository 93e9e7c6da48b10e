"""ModelFamily: faults are collected, tailorings are checked, parameters are counted."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from model_cases import CPU, LAYERS, logits, plan, random_tailoring
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import ModelError, PluginError, RecipeError
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import LayerPlan, LayerSource, Tailoring
from tailorlib.testing.tiny import write_tiny_model


def prepared(*arguments, **settings):
    family = ModelFamily(*map(str, arguments), **settings)
    family.prepare()
    return family


def edit_config(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_layout_keeps_the_recipe_s_order(folders):
    family = prepared(folders["base"], candidates={"z": str(folders["b"]), "a": str(folders["a"])})
    assert family.layout.candidates == ("z", "a")
    assert family.layout.models == ("base", "z", "a")
    assert family.layout.num_layers == LAYERS
    assert family.layout.layer_types == ("full_attention",) * LAYERS


def test_a_family_may_be_a_base_alone(folders):
    assert prepared(folders["base"]).layout.candidates == ()


def test_preparing_reads_no_weights_and_the_tokenizer_is_the_base_s(folders):
    family = prepared(folders["base"])
    assert not family.checkpoints["base"]._open
    assert family.tokenizer.decode(family.tokenizer("a + b")["input_ids"]) == "a + b"


def test_all_faults_are_told_at_once(folders, tmp_path):
    wide = write_tiny_model(tmp_path / "wide", intermediate_size=64)
    candidates = {"base": str(folders["a"]), "gone": str(tmp_path / "gone"), "wide": str(wide)}
    family = ModelFamily(str(folders["base"]), candidates, dtype="int3")
    with pytest.raises(RecipeError) as caught:
        family.prepare()
    faults = caught.value.faults
    assert len(faults) == 4
    assert "int3" in faults[0]
    assert "'base'" in faults[1]
    assert "gone" in faults[2]
    assert "candidate 'wide'" in faults[3]
    with pytest.raises(ModelError, match="before prepare"):
        _ = family.layout


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"num_layers": 4}, r"num_hidden_layers 4 \(base: 6\)"),
        ({"hidden_size": 64}, r"hidden_size 64 \(base: 32\)"),
        ({"model_type": "qwen3"}, r"model_type 'qwen3' \(base: 'llama'\)"),
        ({"attention_bias": True}, r"q_proj\.bias' is not in the base's architecture"),
    ],
)
def test_a_candidate_of_another_architecture_is_refused_with_the_difference(
    folders, tmp_path, settings, difference
):
    other = write_tiny_model(tmp_path / "other", **settings)
    with pytest.raises(RecipeError, match=f"candidate 'x': .*{difference}"):
        prepared(folders["base"], candidates={"x": str(other)})


def test_layers_of_other_types_than_the_base_s_are_refused(tmp_path):
    sliding = ["sliding_attention", "full_attention"]
    base = write_tiny_model(tmp_path / "b", model_type="gemma3_text", num_layers=2, layer_types=sliding)
    other = write_tiny_model(tmp_path / "o", model_type="gemma3_text", num_layers=2, layer_types=sliding[::-1])
    with pytest.raises(RecipeError, match="layers of other types"):
        prepared(base, candidates={"o": str(other)})


def test_a_candidate_with_another_rope_is_taken_with_a_warning(folders, tmp_path, caplog):
    other = write_tiny_model(tmp_path / "other", noise_from=folders["base"])
    edit_config(other, rms_norm_eps=1e-5)
    with caplog.at_level(logging.WARNING, logger="tailorlib"):
        prepared(folders["base"], candidates={"x": str(other)})
    assert "rms_norm_eps 1e-05 (base: 1e-06)" in caplog.text


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(folders, tmp_path):
    broken = write_tiny_model(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    message = r"'model\.layers\.3\.mlp\.up_proj\.weight' is missing"
    with pytest.raises(RecipeError, match=f"base: .*{message}"):
        prepared(broken)
    with pytest.raises(RecipeError, match=f"candidate 'x': .*{message}"):
        prepared(folders["base"], candidates={"x": str(broken)})


def test_tensors_of_old_checkpoints_are_ignored(folders, tmp_path):
    old = write_tiny_model(tmp_path / "old")
    tensors = load_file(old / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    assert prepared(folders["base"], candidates={"x": str(old)}).layout.candidates == ("x",)


def test_a_head_that_is_a_copy_of_the_embeddings_is_ignored(tmp_path):
    base = write_tiny_model(tmp_path / "base", tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    family = prepared(base, dtype="float32")
    family.load(CPU)
    model = family.stitch(Tailoring.whole("base", LAYERS))
    assert logits(model).abs().max() > 0
    assert family.num_parameters(Tailoring.whole("base", LAYERS)) == model.num_parameters()


def test_a_subclass_may_make_its_candidates_first(folders):
    class Made(ModelFamily):
        def _sources(self):
            return self.base, {"made": str(folders["a"])}

    family = Made(str(folders["base"]))
    family.prepare()
    assert family.layout.candidates == ("made",)
    assert family.references == {"made": str(folders["a"]), "base": str(folders["base"])}


@pytest.mark.parametrize(
    ("tailoring", "message"),
    [
        (Tailoring((plan("c:0"),)), r"takes its layer 0 from 'c'"),
        (Tailoring((plan("base:0"),), head="hed"), r"takes its head from 'hed'.*no model of the family"),
        (Tailoring((plan("base:0"), plan("a:6"))), r"Layer 1 of the tailoring takes a:6.*0 to 5"),
        (Tailoring((plan("a:0", "b:0", operation="TIES"),)), r"TIES needs 1 or more sources and a base"),
        (Tailoring((plan("a:0", operation="SLERP"),)), r"SLERP needs 2 or more sources"),
        (Tailoring((LayerPlan((LayerSource("a", 0),), operation="LayerRemoval"),)), r"LayerRemoval' does neither"),
    ],
)
def test_a_tailoring_that_does_not_fit_is_refused(llama, tailoring, message):
    for refuse in (llama.check, llama.stitch, llama.num_parameters):
        with pytest.raises(ModelError, match=message):
            refuse(tailoring)


def test_an_unknown_operation_is_refused_with_a_suggestion(llama):
    data = plan("a:0", "b:0", operation="Linear").to_dict() | {"operation": "Liner"}
    tailoring = Tailoring.from_dict({**Tailoring.whole("base", 1).to_dict(), "layers": [data]})
    with pytest.raises(PluginError, match="Did you mean 'Linear'"):
        llama.check(tailoring)


def test_a_donor_of_another_layer_type_is_refused(case_family):
    family = case_family("gemma3_text")
    family.check(Tailoring((plan("a:0", "b:1", operation="Linear"),)))
    with pytest.raises(ModelError, match=r"a:0 \(sliding_attention\), b:2 \(full_attention\)"):
        family.check(Tailoring((plan("a:0", "b:2", operation="Linear"),)))
    with pytest.raises(ModelError, match="Layers of one type"):
        family.check(Tailoring((plan("a:0", "b:0", operation="TIES", base="base:2"),)))


def test_parameters_are_counted_as_transformers_counts_them(case_family, case):
    family = case_family(case)
    for seed in range(2):
        tailoring = random_tailoring(family, seed)
        assert family.num_parameters(tailoring) == family.stitch(tailoring).num_parameters()


def test_loading_again_keeps_what_is_there(llama):
    stitcher = llama.stitcher
    llama.load(CPU)
    assert llama.stitcher is stitcher


def test_stitching_needs_loading_first(folders):
    with pytest.raises(ModelError, match="after load"):
        prepared(folders["base"]).stitch(Tailoring.whole("base", LAYERS))


def test_a_candidate_stored_in_another_type_is_taken_in_the_base_s(folders, tmp_path):
    AutoModelForCausalLM.from_pretrained(folders["a"]).to(torch.bfloat16).save_pretrained(tmp_path / "a")
    family = prepared(folders["base"], candidates={"a": str(tmp_path / "a")}, dtype="float32")
    tensors = dict(family.assembly.layer_tensors(plan("a:1"), 0))
    assert {t.dtype for t in tensors.values()} == {torch.float32}
