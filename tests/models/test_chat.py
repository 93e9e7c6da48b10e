"""Chat settings of a candidate go into exports: checked against the base's vocabulary, and never run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from tailorlib.exceptions import RecipeError
from tailorlib.export import export_model, verify_export
from tailorlib.models.chat import has_template
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_family

JINJA = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"
WHOLE = Tailoring.whole("a", 2)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_tiny_family(tmp_path_factory.mktemp("family"), candidates=1, num_layers=2)


@pytest.fixture
def folders(written: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: shutil.copytree(folder, tmp_path / name) for name, folder in written.items()}


def change(file: Path, **entries: object) -> None:
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(data | entries))


def family_of(folders: dict[str, Path], chat_from: str | None = None) -> ModelFamily:
    family = ModelFamily(str(folders["base"]), {"a": str(folders["a"])}, dtype="float32", chat_from=chat_from)
    family.prepare()
    return family


def give_template(folder: Path, form: str) -> None:
    """Write a chat template in one of the forms that transformers has or had."""
    if form == "jinja":
        (folder / "chat_template.jinja").write_text(JINJA)
    elif form == "tokenizer_config":
        change(folder / "tokenizer_config.json", chat_template=JINJA)
    elif form == "several":
        change(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": JINJA}])
    elif form == "json":
        change(folder / "chat_template.json", chat_template=JINJA)
    else:
        (folder / "chat_template.jinja").write_text(JINJA)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools" + JINJA)


FORMS = ("jinja", "tokenizer_config", "several", "json", "additional")


@pytest.mark.parametrize("form", FORMS)
def test_an_export_gets_a_candidates_template_and_ends_of_turns(
    folders: dict[str, Path], form: str, tmp_path: Path
) -> None:
    give_template(folders["a"], form)
    change(folders["a"] / "tokenizer_config.json", eos_token="<|start|>")
    change(folders["a"] / "generation_config.json", eos_token_id=[1, 0], temperature=0.5, do_sample=True)
    before = (folders["base"] / "tokenizer_config.json").read_bytes()
    family = family_of(folders, "a")
    family.load(torch.device("cpu"))
    out = export_model(family, WHOLE, tmp_path / "out")
    found, expected = (AutoTokenizer.from_pretrained(f) for f in (out, folders["a"]))
    if form == "json":  # which only processors read
        assert found.chat_template == JINJA
    else:
        assert found.chat_template == expected.chat_template
    assert found.eos_token == "<|start|>" == family.tokenizer.eos_token
    assert (
        found("some text")["input_ids"] == AutoTokenizer.from_pretrained(folders["base"])("some text")["input_ids"]
    )
    assert GenerationConfig.from_pretrained(out).eos_token_id == [1, 0]
    assert GenerationConfig.from_pretrained(out).temperature == 0.5
    assert family.stitch(WHOLE).generation_config.eos_token_id == [1, 0]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [1, 0]
    assert "are those of a." in (out / "README.md").read_text()
    assert (folders["base"] / "tokenizer_config.json").read_bytes() == before
    assert "chat template a's" in verify_export(family, WHOLE, out).checks[-1].finding


def test_a_template_that_is_lost_is_told(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    give_template(folders["a"], "jinja")
    with caplog.at_level(logging.WARNING):
        out = export_model(family_of(folders), WHOLE, tmp_path / "out")
    assert not has_template(out)
    assert "Layers come from a, with a chat template" in caplog.text
    assert "Layers come from a, with a chat template" in (out / "README.md").read_text()
    caplog.clear()
    export_model(family_of(folders), Tailoring.whole("base", 2), tmp_path / "of-base")
    give_template(folders["base"], "jinja")
    export_model(family_of(folders), WHOLE, tmp_path / "with")
    assert "chat template" not in caplog.text


def test_a_base_with_another_template_gets_the_candidates(folders: dict[str, Path], tmp_path: Path) -> None:
    give_template(folders["base"], "additional")
    give_template(folders["a"], "tokenizer_config")
    out = export_model(family_of(folders, "a"), WHOLE, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == JINJA
    kept = export_model(family_of(folders, "base"), WHOLE, tmp_path / "kept")
    assert set(AutoTokenizer.from_pretrained(kept).chat_template) == {"default", "tool_use"}


def test_what_the_base_can_t_follow_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"chat_from: .* chat template; .* has none"):
        family_of(folders, "a")
    with pytest.raises(RecipeError, match=r"chat_from names a model of the family, got 'b'"):
        family_of(folders, "b")
    give_template(folders["a"], "jinja")
    tokenizer = AutoTokenizer.from_pretrained(folders["a"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folders["a"])
    assert family_of(folders, "a").tokenizer.pad_token == "<|end|>"  # padding is the base's, and harms nobody
    (folders["a"] / "chat_template.jinja").write_text(JINJA + "<|im_end|>")
    with pytest.raises(RecipeError, match=r"differs in '<\|im_end\|>'"):
        family_of(folders, "a")
    (folders["a"] / "chat_template.jinja").write_text(JINJA)
    change(folders["a"] / "generation_config.json", eos_token_id=10**9)
    with pytest.raises(RecipeError, match=r"differs in '1000000000'"):
        family_of(folders, "a")
    (folders["a"] / "generation_config.json").write_text("[[")
    with pytest.raises(RecipeError, match="is no JSON"):
        family_of(folders, "a")


def test_a_template_alone_needs_no_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folders["a"] / name).unlink()
    give_template(folders["a"], "jinja")
    out = export_model(family_of(folders, "a"), WHOLE, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == JINJA
