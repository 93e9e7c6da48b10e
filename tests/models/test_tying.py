"""Tied heads: whether the head is the embeddings is decided as transformers does, from config and file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from model_cases import CPU, LAYERS, logits, plan
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import RecipeError
from tailorlib.export import export_model
from tailorlib.export.verify import verify_export
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_model

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tied_model(folder: Path, *, seed: int = 0, head: float | None = None, **entries: object) -> Path:
    """Write a model whose config says tied, and perhaps a head that is apart from the embeddings by ``head``."""
    write_tiny_model(folder, seed=seed, num_layers=LAYERS, tie_word_embeddings=True)
    file = folder / "model.safetensors"
    state = load_file(file)
    if head is not None:
        noise = torch.randn(state[EMBEDDINGS].shape, generator=torch.Generator().manual_seed(1))
        save_file({**state, HEAD: state[EMBEDDINGS] + head * noise}, file, metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entries}))
    return folder


def loaded_by_transformers(folder: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def family_of(base: Path, **candidates: Path) -> ModelFamily:
    family = ModelFamily(str(base), {n: str(f) for n, f in candidates.items()}, dtype="float32")
    family.load(CPU)
    return family


@pytest.mark.parametrize(("head", "tied"), [(None, True), (0.0, True), (1.0, False)])
def test_a_stored_head_counts_as_it_does_for_transformers(tmp_path, head, tied, caplog):
    base = tied_model(tmp_path / "base", head=head)
    with caplog.at_level(logging.WARNING, logger="tailorlib"):
        family = family_of(base)
    assert ("'lm_head.weight' differs from 'model.embed_tokens.weight'" in caplog.text) == (not tied)
    whole = Tailoring.whole("base", LAYERS)
    expected = loaded_by_transformers(base)
    assert torch.equal(logits(family.stitch(whole)), expected)
    folder = export_model(family, whole, tmp_path / "out")
    verify_export(family, whole, folder)
    assert torch.equal(loaded_by_transformers(folder), expected)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is tied


def test_embeddings_that_are_stored_as_the_head_are_read(tmp_path):
    base = tied_model(tmp_path / "base")
    state = load_file(base / "model.safetensors")
    save_file({HEAD: state.pop(EMBEDDINGS), **state}, base / "model.safetensors", metadata={"format": "pt"})
    with torch.random.fork_rng(devices=[]):
        expected = loaded_by_transformers(base)
    assert torch.equal(logits(family_of(base).stitch(Tailoring.whole("base", LAYERS))), expected)


@pytest.mark.parametrize(("base_head", "a_head"), [(None, 1.0), (1.0, None), (1.0, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_heads_of_base_and_candidate_are_both_kept(tmp_path, base_head, a_head):
    folders = {
        "base": tied_model(tmp_path / "base", head=base_head),
        "a": tied_model(tmp_path / "a", seed=1, head=a_head),
        "b": tied_model(tmp_path / "b", seed=2),
    }
    family = family_of(folders["base"], a=folders["a"], b=folders["b"])
    for name, folder in folders.items():
        assert torch.equal(logits(family.stitch(Tailoring.whole(name, LAYERS))), loaded_by_transformers(folder))
    mixed = Tailoring((plan("a:0"), plan("b:3")), embeddings="b", norm="base", head="a")
    folder = export_model(family, mixed, tmp_path / "out")
    verify_export(family, mixed, folder)
    with torch.inference_mode():
        assert torch.equal(loaded_by_transformers(folder), logits(family.stitch(mixed)))


def fault(base: Path, **candidates: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        ModelFamily(str(base), {n: str(f) for n, f in candidates.items()}).prepare()
    return str(caught.value)


def test_no_head_where_the_config_wants_one_is_refused(tmp_path):
    base = tied_model(tmp_path / "base", tie_word_embeddings=False)
    assert "set tie_word_embeddings to true" in fault(base)
    assert "set tie_word_embeddings to true" in fault(tied_model(tmp_path / "sound"), a=base)


def test_a_head_of_another_size_is_refused(tmp_path):
    base = tied_model(tmp_path / "base")
    state = load_file(base / "model.safetensors")
    save_file({**state, HEAD: state[EMBEDDINGS][:9].clone()}, base / "model.safetensors")
    assert "'lm_head.weight' has the shape [9, 32]" in fault(base)


@pytest.mark.parametrize("head", [None, 0.0])
def test_an_adapter_on_a_tied_head_is_refused(tmp_path, head):
    base = tied_model(tmp_path / "base", head=head)
    settings = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(tmp_path / "a")
    assert "changes 'lm_head.weight', and the base's head is its embeddings" in fault(base, a=tmp_path / "a")


def test_an_adapter_on_a_head_of_its_own_is_merged(tmp_path):
    base = tied_model(tmp_path / "base", head=1.0)
    settings = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
        tuned.save_pretrained(tmp_path / "a")
    live = logits(family_of(base, a=tmp_path / "a").stitch(Tailoring.whole("a", LAYERS)))
    assert torch.allclose(live, logits(tuned.eval()), atol=1e-3)
