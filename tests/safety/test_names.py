"""Names from models, tasks and configurations: none becomes a path, and none becomes markup in a model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file

from tailorlib.escaping import markdown
from tailorlib.exceptions import TailorError
from tailorlib.export import CardInfo, export_model
from tailorlib.export.card import render_card
from tailorlib.export.licenses import License, licenses_of
from tailorlib.interchange import from_mergekit
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import LayerPlan, LayerSource, Tailoring
from tailorlib.testing.tiny import write_tiny_family

NAMES = (
    "../../x",
    "/etc/passwd",
    "..",
    "a/b",
    "a\\b",
    "C:x",
    "~/x",
    "x\ny",
    "<b>x</b>",
    "x|y",
    "[x](http://e.vil)",
)


def listed(folder: Path) -> dict[str, int]:
    """Return every file and folder with its time of change."""
    return {str(p): p.lstat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("name", NAMES)
def test_a_candidate_s_name_leads_nowhere(name: str, tmp_path: Path) -> None:
    inner = tmp_path / "one" / "two" / "three"
    folders = write_tiny_family(inner / "models", candidates=1, num_layers=2)
    family = ModelFamily(str(folders["base"]), {name: str(folders["a"])}, dtype="float32")
    family.load(torch.device("cpu"))
    before = listed(tmp_path)
    tailoring = Tailoring((LayerPlan((LayerSource("base", 0), LayerSource(name, 0)), "Linear"),))
    out = export_model(family, tailoring, inner / "out", max_shard_bytes=1e4)
    after = listed(tmp_path)
    new = {path for path in after if path not in before}
    assert all(Path(path).is_relative_to(out) for path in new)
    assert Tailoring.load(out / "tailoring.yaml") == tailoring
    assert {p.suffix for p in out.iterdir()} <= {".safetensors", ".json", ".yaml", ".md", ".jinja"}


def test_a_tensor_s_name_leads_nowhere(tmp_path: Path) -> None:
    folders = write_tiny_family(tmp_path / "models", candidates=0, num_layers=2)
    tensors = load_file(folders["base"] / "model.safetensors")
    save_file(
        {**tensors, "../../x": torch.ones(1)}, folders["base"] / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(TailorError, match=r"\.\./\.\./x"):
        ModelFamily(str(folders["base"]), {}).prepare()


@pytest.mark.parametrize("reference", ["../../etc", "/etc/passwd", "a/..", "x/ y", "..", "./.", "C:\\..\\x"])
def test_a_model_of_an_imported_configuration_gets_a_harmless_name(reference: str) -> None:
    source = "{model: %s, layer_range: [0, 1]}"
    sources = ", ".join(source % json.dumps(model) for model in ("org/base", reference))
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nslices: [{{sources: [{sources}]}}]"
    imported = from_mergekit(text)
    (name,) = imported.candidates
    assert Path(name).name == name and name not in ("", ".", "..")
    assert "\\" not in name and ":" not in name
    assert imported.candidates[name] == reference
    assert yaml.safe_load(imported.recipe())["family"]["init_args"]["candidates"] == {name: reference}


HOSTILE = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;b&gt;", "[x](javascript:alert(1))"),
    *("![x](http://e.vil/p.png)", "http://e.vil/", "https://e.vil", "www.e.vil", "me@e.vil", "<http://e.vil>"),
    *("**b**", "_i_", "`c`", "~~s~~", "# h", "- item", "1. item", "> quote", "a | b | c", "| x |", "$x$"),
    *("x\n\n# h\n\n<script>", "x\n---\nlicense: mit\n---", "\\<b>", "\\", "a\u202eb", "\ud800", "\0", "a\x1b[31m"),
    *("```\n</details>", "</details><b>", "[x]: http://e.vil", "=", "---", "\u2028# h", "::: note", "{{x}}"),
)
"""Strings that are something else than text in Markdown, HTML, YAML or a terminal."""


def rendered(text: str) -> list[str]:
    """Return the elements of a text as an independent reader of GitHub's Markdown sees them, links included."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = [t for token in parser.parse(text) for t in (token, *(token.children or []))]
    return [token.type for token in tokens]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_plain_text_in_markdown(text: str) -> None:
    assert set(rendered(markdown(text))) <= {"paragraph_open", "inline", "text", "text_special", "paragraph_close"}
    cell = rendered(f"| a |\n| --- |\n| {markdown(text)} |\n")
    plain = rendered("| a |\n| --- |\n| x |\n")
    assert [t for t in cell if t not in ("text", "text_special")] == [t for t in plain if t != "text"]
    assert markdown(text).isprintable()
    for link in ("http://", "https://", "www.", "me@e"):  # what GitHub makes links of without any sign
        assert link not in markdown(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_has_the_same_structure_whatever_its_strings_are(text: str) -> None:
    def card(word: str) -> str:
        tailoring = Tailoring(
            (
                LayerPlan((LayerSource("base", 0),)),
                LayerPlan((LayerSource("base", 1), LayerSource(word, 1)), "TIES", (("x", word),)),
            ),
            embeddings=word,
        )
        info = CardInfo(scores={word: {word: 0.5}}, license=word, recipe=f"study: {word}")
        return render_card(
            info,
            tailoring,
            title=word,
            references={"base": word, word: word},
            layer_kinds=("full_attention", "full_attention"),
            num_parameters=1,
            licenses={"base": (License(word, "README.md"),), word: (License(word, "config.json"),)},
        )

    found, plain = card(text), card("word")
    found.encode()
    for body in (found, plain):
        assert body.startswith("---\n")
    front = [yaml.safe_load(body.split("\n---\n", 1)[0].removeprefix("---\n")) for body in (found, plain)]
    assert front[0].keys() - {"base_model"} == front[1].keys()
    assert front[0]["library_name"] == "transformers"
    structure = [
        [t for t in rendered(body.split("\n---\n", 1)[1]) if t not in ("text", "text_special", "softbreak")]
        for body in (found, plain)
    ]
    assert structure[0] == structure[1]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_licence_statement_is_one_short_line(text: str, tmp_path: Path) -> None:
    for content in (json.dumps(text), yaml.safe_dump(text).encode("utf-8", "replace").decode()):
        (tmp_path / "README.md").write_text(f"---\nlicense: {content}\n---\n", encoding="utf-8", errors="replace")
        for found in licenses_of(tmp_path):
            found.identifier.encode()
            assert found.identifier.isprintable() and len(found.identifier) <= 200


def test_a_model_s_description_that_is_a_bomb_is_no_statement(tmp_path: Path) -> None:
    lines = ["a0: &a0 {license: mit}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60))]
    (tmp_path / "README.md").write_text("---\n" + "\n".join(lines) + "\nlicense: mit\n---\n")
    assert licenses_of(tmp_path) == ()
