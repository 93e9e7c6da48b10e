"""Multimodal wrappers: named as that, with a way to their language model that works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from model_cases import logits

from tailorlib.exceptions import RecipeError
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import tiny_tokenizer, write_tiny_model


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Gemma-3 with a vision tower."""
    folder, tokenizer = tmp_path_factory.mktemp("multimodal") / "vlm", tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text = {**sizes, "num_hidden_layers": 6, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer)}
    vision = {**sizes, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config={**text, "sliding_window": 8}, vision_config=vision, mm_tokens_per_image=4
    )
    with torch.random.fork_rng(devices=[]):
        transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fault(base: Path, **candidates: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        ModelFamily(str(base), {n: str(f) for n, f in candidates.items()}).prepare()
    return str(caught.value)


def test_a_wrapper_is_named_as_base_and_as_candidate(wrapper, tmp_path):
    text = write_tiny_model(tmp_path / "text", model_type="gemma3_text", sliding_window=8)
    for said in (fault(wrapper), fault(text, a=wrapper)):
        assert "is multimodal: 'gemma3' ('Gemma3ForConditionalGeneration')" in said
        assert "'gemma3_text' beside vision_config" in said
        assert "register_architecture" not in said
        assert "Gemma3ForCausalLM" not in said  # it loads the wrapper's files with random weights


def test_the_advised_way_gives_the_language_model_to_the_bit(wrapper, tmp_path, monkeypatch):
    code = re.search(r"whole = .*?save_pretrained\('TEXT'\)", fault(wrapper))[0]
    monkeypatch.chdir(tmp_path)
    names = {"transformers": transformers}
    with torch.random.fork_rng(devices=[]):
        exec(code, names)
    family = ModelFamily(str(tmp_path / "TEXT"), dtype="float32")
    family.load(torch.device("cpu"))
    live = logits(family.stitch(Tailoring.whole("base", 6)))
    assert torch.equal(live, logits(names["whole"].eval()))


def test_a_wrapper_of_another_language_model_says_which_types_are_cut(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "new_vl", "architectures": ["NewVL"], "llm_config": {"model_type": "mamba"},'
        ' "audio_config": {}}'
    )
    said = fault(tmp_path)
    assert "is multimodal: 'new_vl' ('NewVL')" in said
    assert "'mamba' beside audio_config" in said
    assert "types cohere, falcon" in said
