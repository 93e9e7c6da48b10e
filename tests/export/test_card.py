"""The model card: complete, and safe from what names contain."""

from __future__ import annotations

import yaml
from model_cases import plan

from tailorlib.export.card import CardInfo, display_name, escape, pattern_note, render_card
from tailorlib.tailoring import Tailoring

SLIDING, FULL = "sliding_attention", "full_attention"
TAILORING = Tailoring((plan("base:0"), plan("a:2", "b:2", operation="TIES", base="base:2")))
REFERENCES = {"base": "org/model@v1", "a": "/home/someone/runs/math", "b": "package:pkg/b.gguf", "c": "org/unused"}


def card(info=CardInfo(), **settings):  # noqa: B008
    arguments = {"title": "out", "references": REFERENCES, "layer_types": (FULL,) * 4, "num_parameters": 1234567}
    return render_card(info, TAILORING, **{**arguments, **settings})


def test_the_front_matter_names_hub_models_and_licence():
    front = yaml.safe_load(card(CardInfo(license="apache-2.0")).split("---\n")[1])
    assert front["base_model"] == ["org/model"]
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"


def test_the_layer_map_lists_every_layer_and_what_was_removed():
    text = card()
    assert "2 of 4 layers, 1,234,567 parameters" in text
    assert "Removed: 1, 3. Embeddings: base; final norm: base; head: base." in text
    assert "| 0 | base:0 | LayerSelection |  |" in text
    assert "| 1 | a:2, b:2 | TIES | density=0.6, scale=0.75 |" in text


def test_paths_of_this_machine_are_not_told():
    text = card()
    assert "someone" not in text
    assert "| a | math |" in text
    assert "unused" not in text
    assert display_name("C:\\models\\mine\\") == "mine"
    assert display_name("x.gguf#sha256=00") == "x.gguf"


def test_scores_are_a_table_or_the_caller_s_text():
    scores = {"dense": {"accuracy": 0.5}, "a|b": {"accuracy": 0.25, "perplexity": 12.3456}}
    text = card(CardInfo(scores=scores))
    assert "| model | accuracy | perplexity |" in text
    assert "| dense | 0.5 |  |" in text
    assert "| a\\|b | 0.25 | 12.35 |" in text
    assert "## Scores\n\nmine\n" in card(CardInfo(scores="mine"))
    assert "## Scores" not in card()


def test_names_cannot_break_the_card():
    assert escape("a|b\n# <script>`x`") == "a\\|b \\# \\<script\\>\\`x\\`"
    hostile = card(CardInfo(license="x: [\n---"), title="a\n---\n# b")
    assert yaml.safe_load(hostile.split("---\n")[1])["library_name"] == "transformers"


def test_a_lost_period_of_layer_types_is_told():
    before = (SLIDING, SLIDING, FULL) * 2
    assert "[1]" in pattern_note(before, (SLIDING, FULL, SLIDING))
    assert pattern_note(before, before[:4]) == ""
    assert pattern_note((FULL,) * 4, (FULL,) * 3) == ""
