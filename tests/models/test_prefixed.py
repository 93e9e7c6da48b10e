"""Checkpoints without their prefix: GPT-2 as first published, and any model saved without its head."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from model_cases import CASES, CPU, LAYERS, logits, plan
from model_oracle import load
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import RecipeError
from tailorlib.export import export_model
from tailorlib.models.family import ModelFamily
from tailorlib.models.prefixed import PrefixedCheckpoint
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_family

MERGE = Tailoring((plan("a:1"), plan("base:0", "a:0", operation="Linear")), embeddings="a")


def family_of(base, candidate):
    family = ModelFamily(str(base), {"a": str(candidate)}, dtype="float32")
    family.load(CPU)
    return family


def without_prefix(folder, target, **more):
    """Rewrite a checkpoint as if its head had never been there."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    named = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    save_file({**named, **more}, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_tiny_family(tmp_path_factory.mktemp("gpt2"), candidates=1, num_layers=LAYERS, **CASES["gpt2"])


@pytest.fixture(scope="module")
def published(gpt2, tmp_path_factory):
    """The same models with the names of the first GPT-2 checkpoints, and their mask buffers."""
    root = tmp_path_factory.mktemp("published")
    mask = torch.ones(256, 256).tril().reshape(1, 1, 256, 256)
    buffers = {f"h.{i}.attn.bias": mask.clone() for i in range(LAYERS)}
    buffers |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(LAYERS)}
    return {name: without_prefix(folder, root / name, **buffers) for name, folder in gpt2.items()}


def test_published_gpt2_names_give_the_same_model(gpt2, published, tmp_path):
    expected = logits(family_of(gpt2["base"], gpt2["a"]).stitch(MERGE))
    family = family_of(published["base"], published["a"])
    assert isinstance(family.checkpoints["base"], PrefixedCheckpoint)
    assert torch.equal(logits(family.stitch(MERGE)), expected)
    folder = export_model(family, MERGE, tmp_path / "out")
    assert torch.equal(logits(load(folder)), expected)
    assert set(load_file(folder / "model.safetensors")) == {
        name for name in load_file(gpt2["base"] / "model.safetensors") if ".h." not in name or ".h.0." in name
    } | {f"transformer.h.1.{name}" for name in family.assembly.layer_suffixes[0]}


@pytest.mark.parametrize("old", ["base", "a"])
def test_names_with_and_without_the_prefix_go_together(gpt2, published, old):
    folders = {**gpt2, old: published[old]}
    expected = logits(family_of(gpt2["base"], gpt2["a"]).stitch(MERGE))
    assert torch.equal(logits(family_of(folders["base"], folders["a"]).stitch(MERGE)), expected)


def test_transformers_reads_the_published_names_as_we_do(published):
    loaded = AutoModelForCausalLM.from_pretrained(published["a"]).eval()
    family = family_of(published["base"], published["a"])
    assert torch.equal(logits(family.stitch(Tailoring.whole("a", LAYERS))), logits(loaded))


def test_a_damaged_tensor_is_named_as_its_file_names_it(published, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(published["a"], folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["h.1.mlp.c_fc.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match=r"'h\.1\.mlp\.c_fc\.weight'.*NaN"):
        family_of(published["base"], folder).stitch(MERGE)


def test_a_missing_tensor_is_refused_by_its_whole_name(published, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(published["base"], folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["ln_f.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"'transformer\.ln_f\.bias' is missing"):
        family_of(folder, published["a"])


def test_any_tied_model_may_be_saved_without_its_head(tmp_path):
    folders = write_tiny_family(tmp_path / "whole", candidates=1, num_layers=LAYERS, **CASES["gemma"])
    bare = without_prefix(folders["a"], tmp_path / "bare")
    assert "embed_tokens.weight" in load_file(bare / "model.safetensors")
    assert json.loads((bare / "config.json").read_text())["tie_word_embeddings"]
    expected = logits(family_of(folders["base"], folders["a"]).stitch(MERGE))
    assert torch.equal(logits(family_of(folders["base"], bare).stitch(MERGE)), expected)
