"""Verification: passes on what was exported, and names what is wrong with anything else."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from model_cases import CPU, LAYERS, plan, random_tailoring
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tailorlib.exceptions import TailorError
from tailorlib.export import checks, export_model, verify_export
from tailorlib.tailoring import LayerPlan, LayerSource, PartPlan, Tailoring

SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def exported(case_family, tmp_path_factory):
    """Return a function ``(case, storage) -> (family, tailoring, folder)``; folders are not to be modified."""
    made = {}

    def export(name, storage="bfloat16"):
        if (name, storage) not in made:
            family = case_family(name, storage, "float32")
            tailoring = random_tailoring(family, 1)
            folder = tmp_path_factory.mktemp("exported") / "model"
            made[name, storage] = (
                family,
                tailoring,
                export_model(family, tailoring, folder, max_shard_bytes=60_000),
            )
        return made[name, storage]

    return export


@pytest.fixture
def spoiled(exported, tmp_path):
    """Return a function ``case -> (family, tailoring, folder)`` with a folder that may be modified."""

    def copy(name):
        family, tailoring, folder = exported(name)
        return family, tailoring, shutil.copytree(folder, tmp_path / "copy")

    return copy


def edit_config(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma3_text", "qwen2", "gpt_neox", "mixtral"])
def test_an_export_passes(exported, name):
    report = verify_export(*exported(name))
    found = {check.name: check.finding for check in report.checks}
    assert list(found) == [
        *("whole models", "weights", "config", "parameters", "logits, as stored", "logits, float32"),
        *("generation", "tokenizer"),
    ]
    assert found["logits, as stored"].startswith("bfloat16")
    assert ("5, 24, 32, 64" in found["logits, float32"]) == (name in ("gemma3_text", "qwen2", "mixtral"))
    assert ("is the embeddings" in found["parameters"]) == (name in ("llama-tied", "gemma3_text"))
    assert "tokens equal" in found["generation"]


def test_merged_parts_scales_and_parts_of_layers_pass_in_float32(case_family, tmp_path):
    family = case_family("llama", "float32", "bfloat16")
    layers = (
        LayerPlan((LayerSource("a", 1),), attention_scale=0.5, parts=(("mlp", plan("b:3")),)),
        plan("a:2", "b:2", operation="TIES", base="base:2"),
    )
    tailoring = Tailoring(layers, embeddings=PartPlan(("a", "b"), "Linear"))
    report = verify_export(family, tailoring, export_model(family, tailoring, tmp_path / "out"))
    found = {check.name: check.finding for check in report.checks}
    assert found["logits, as stored"].startswith("float32")
    assert found["logits, float32"] == "as stored"


def test_the_report_is_a_table_for_the_terminal(exported):
    report = verify_export(*exported("llama"))
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(report.table())
    text = console.export_text()
    assert "Verified" in text and text.count("✓") == len(report.checks) == 8


@pytest.mark.parametrize("bit", [0, 9])
def test_one_changed_bit_is_found_and_measured(spoiled, bit):
    family, tailoring, folder = spoiled("llama")
    file = sorted(folder.glob("model-*.safetensors"))[1]
    tensors = load_file(file)
    name = sorted(tensors)[0]
    number = tensors[name].view(torch.int16).view(-1)
    before = tensors[name].flatten()[7].item()
    number[7] ^= 1 << bit
    gap = abs(tensors[name].flatten()[7].double().item() - before)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(TailorError, match=f"weights: '{name}' is not the tailoring's at 1 of") as caught:
        verify_export(family, tailoring, folder)
    assert f"by up to {gap:.3g}." in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_found(spoiled, value):
    family, tailoring, folder = spoiled("llama")
    file = sorted(folder.glob("model-*.safetensors"))[0]
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][3, 4] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(TailorError, match=r"weights: 'model\.embed_tokens\.weight' holds NaN or Inf at 1 entries"):
        verify_export(family, tailoring, folder)


def test_swapped_layer_types_are_found(spoiled):
    family, tailoring, folder = spoiled("gemma3_text")
    types = json.loads((folder / "config.json").read_text())["layer_types"]
    i = next(i for i, kind in enumerate(types) if kind != types[0])
    edit_config(folder, layer_types=[types[i], *types[1:i], types[0], *types[i + 1 :]])
    with pytest.raises(TailorError, match=r"config: config\.json differs in 1 entries: layer_types="):
        verify_export(family, tailoring, folder)


@pytest.mark.parametrize(("name", "tied"), [("llama", True), ("llama-tied", False)])
def test_a_flipped_tie_is_found(spoiled, name, tied):
    family, tailoring, folder = spoiled(name)
    edit_config(folder, tie_word_embeddings=tied)
    with pytest.raises(TailorError, match=rf"1 entries: tie_word_embeddings={tied} where .* {not tied}"):
        verify_export(family, tailoring, folder)


def test_a_missing_shard_is_named(spoiled):
    family, tailoring, folder = spoiled("qwen2")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(TailorError, match=rf"weights: The shard .*{shard.name}' is missing"):
        verify_export(family, tailoring, folder)


def test_a_surplus_tensor_is_named(spoiled):
    family, tailoring, folder = spoiled("llama-tied")
    tensors = {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}
    for file in folder.glob("model*"):
        file.unlink()
    save_file({**tensors, "lm_head.weight": torch.zeros(2)}, folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(TailorError, match=r"weights: the files lack \[\] and have \['lm_head.weight'\] more"):
        verify_export(family, tailoring, folder)


def test_another_tailoring_s_export_is_not_this_one_s(exported):
    family, tailoring, folder = exported("llama")
    other = Tailoring(tailoring.layers[::-1], tailoring.embeddings, tailoring.norm, tailoring.head, tailoring.seed)
    with pytest.raises(TailorError, match=r"weights: .* is not the tailoring's"):
        verify_export(family, other, folder)
    shorter = Tailoring.whole("base", LAYERS, without=[1, 2, 3])
    with pytest.raises(TailorError, match="weights: the files lack"):
        verify_export(family, shorter, folder)


def test_a_model_that_computes_something_else_is_found_although_its_files_are_right(exported, monkeypatch):
    family, tailoring, folder = exported("llama")
    original = checks.Subject.reloaded

    def wrong(self, dtype):
        model = original(self, dtype)
        model.model.layers[1].self_attn.scaling *= 1.001
        return model

    monkeypatch.setattr(checks.Subject, "reloaded", wrong)
    with pytest.raises(TailorError, match=r"logits, as stored: on 5 tokens they differ by up to .* \(bfloat16\)"):
        verify_export(family, tailoring, folder)


def test_layers_that_share_a_cache_are_found(exported, monkeypatch):
    family, tailoring, folder = exported("llama")
    original = checks.Subject.reloaded

    def wrong(self, dtype):
        model = original(self, dtype)
        model.model.layers[1].self_attn.layer_idx = 2
        return model

    monkeypatch.setattr(checks.Subject, "reloaded", wrong)
    with pytest.raises(checks.DifferenceError, match=r"at token \d+ the logits differ by .* with a KV cache"):
        checks.CHECKS["generation"](checks.Subject(family, tailoring, folder, CPU))


def test_another_tokenizer_is_found(spoiled, tmp_path):
    family, tailoring, folder = spoiled("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["quick brown"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(TailorError, match=r"tokenizer: 'The quick brown fox .* becomes"):
        verify_export(family, tailoring, folder)
