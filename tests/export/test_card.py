"""The model card: complete, and safe from what names contain."""

from __future__ import annotations

import yaml
from model_cases import plan

from tailorlib.escaping import markdown
from tailorlib.export.card import CardInfo, display_name, pattern_note, render_card
from tailorlib.export.licenses import License
from tailorlib.tailoring import LayerPlan, LayerSource, PartPlan, Tailoring

SLIDING, FULL = "sliding_attention", "full_attention"
TIES = (("density", 0.6), ("scale", 0.75))
TAILORING = Tailoring(
    (plan("base:0"), LayerPlan((LayerSource("a", 2), LayerSource("b", 2)), "TIES", TIES, LayerSource("base", 2)))
)
REFERENCES = {"base": "org/model@v1", "a": "/home/someone/runs/math", "b": "package:pkg/b.gguf", "c": "org/unused"}


def card(info=CardInfo(), tailoring=TAILORING, **settings):  # noqa: B008
    arguments = {"title": "out", "references": REFERENCES, "layer_kinds": (FULL,) * 4, "num_parameters": 1234567}
    return render_card(info, tailoring, **{**arguments, **settings})


def stated(**licenses):
    return {name: tuple(License(i, "README.md") for i in given) for name, given in licenses.items()}


def test_the_front_matter_names_hub_models_and_licence():
    front = yaml.safe_load(card(CardInfo(license="apache-2.0")).split("---\n")[1])
    assert front["base_model"] == ["org/model"]
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"


def test_one_licence_of_all_sources_is_the_model_s():
    same = card(licenses=stated(base=["mit"], a=["mit"], b=["mit"], c=["gpl-3.0"]))
    assert yaml.safe_load(same.split("---\n")[1])["license"] == "mit"
    assert "Look into this" not in same
    for others in ({"a": ["mit"]}, {"a": ["mit"], "b": ["apache-2.0"]}):
        text = card(licenses=stated(base=["mit"], **others))
        assert "license" not in yaml.safe_load(text.split("---\n")[1])


def test_licences_are_listed_with_what_to_look_into():
    text = card(licenses=stated(base=["apache-2.0"], a=["cc-by-nc-4.0", "mit|x"]))
    assert "| base | org/model@v1 | apache-2.0 (README.md) |" in text
    assert "| a | math | cc-by-nc-4.0 (README.md), mit\\|x (README.md) |" in text
    assert "| b | package:pkg/b.gguf | not stated |" in text
    section = text.split("## Licence")[1]
    assert "- cc-by-nc-4.0 (of a): rules out commercial use of the whole model" in section
    assert "- mit\\|x (of a): not among the licences that this check knows" in section
    assert "- No licence was found for b." in section
    assert "not legal advice" in section


def test_the_layer_map_lists_every_layer_and_what_was_removed():
    text = card()
    assert "2 of 4 layers, 1,234,567 parameters" in text
    assert "Removed: 1, 3. Embeddings: base; final norm: base; head: base." in text
    assert "| layer | sources | operation | hyperparameters | task vectors against |\n" in text
    assert "| 0 | base:0 | LayerSelection |  |  |" in text
    assert "| 1 | a:2, b:2 | TIES | density=0.6, scale=0.75 | base:2 |" in text


def test_parts_scales_and_merged_owners_are_shown():
    scaled = LayerPlan((LayerSource("a", 1),), attention_scale=0.5, parts=(("mlp", plan("b:3")),))
    weights = (("weights", (1.0, 0.25)),)
    embeddings = PartPlan(("a", "b"), "TaskArithmetic", (("scale", 0.5), *weights), base="base")
    text = card(tailoring=Tailoring((plan("base:0"), scaled), embeddings=embeddings, norm="a"), tied=True)
    assert "| layer | sources | operation | hyperparameters | scale of attention |\n" in text
    assert "| 1 | a:1 | LayerSelection |  | 0.5 |" in text
    assert "| 1, its mlp | b:3 | LayerSelection |  |  |" in text
    assert "Removed: 2." in text  # the part's source counts as used
    owners = "Embeddings: TaskArithmetic of a, b (scale=0.5, weights=(1, 0.25), against base); final norm: a; "
    assert owners + "head: the embeddings." in text


def test_the_tailoring_and_the_recipe_are_folded_in_without_paths_of_this_machine():
    recipe = (
        "family:\n  base: org/model@v1\n  candidates: {a: /home/someone/runs/math, b: 'C:\\me\\b', c: ~/c/d}\n"
        "  link: https://a.org/b/c\n  file: data/x.jsonl\n# ```` not the end\n"
    )
    text = card(CardInfo(recipe=recipe))
    tailoring, folded = text.split("<details>")[1:]
    assert Tailoring.from_yaml(tailoring.split("```yaml\n")[1].split("\n```")[0]) == TAILORING
    shown = folded.split("`````yaml\n")[1].split("\n`````\n")[0]
    assert shown.splitlines()[2] == "  candidates: {a: math, b: 'b', c: d}"
    assert shown.splitlines()[:2] + shown.splitlines()[3:] == [
        line for line in recipe.splitlines() if "candidates" not in line
    ]
    assert "Recipe of the search" not in card()


def test_paths_of_this_machine_are_not_told():
    text = card()
    assert "someone" not in text
    assert "| a | math | not stated |" in text
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
    assert markdown("a|b\n# <script>`x`") == "a\\|b \\# \\<script\\>\\`x\\`"
    hostile = card(CardInfo(license="x: [\n---"), title="a\n---\n# b")
    assert yaml.safe_load(hostile.split("---\n")[1])["library_name"] == "transformers"


def test_a_lost_period_of_layer_types_is_told():
    before = (SLIDING, SLIDING, FULL) * 2
    note = pattern_note(before, (SLIDING, FULL, SLIDING))
    assert "repeats after 3 layers, is lost" in note
    assert "full_attention: [1]; sliding_attention: [0, 2]." in note
    assert pattern_note(("full", "full, no_rope_layers=0") * 3, ("full",) * 2)
    assert pattern_note(before, before[:4]) == ""
    assert pattern_note((FULL,) * 4, (FULL,) * 3) == ""
