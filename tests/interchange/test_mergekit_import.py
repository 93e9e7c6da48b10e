"""Import from mergekit: the tailoring gives mergekit's tensors; what has no counterpart is told by its place."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import interchange_cases
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interchange_cases import (
    PARAMS,
    Families,
    Tailorings,
    assert_close,
    merged,
    our_tensors,
    run_mergekit,
)
from model_cases import CPU, LAYERS
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.interchange import Imported, TensorNames, from_mergekit, to_mergekit
from tailorlib.interchange.from_methods import METHODS
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, PartPlan, Tailoring

FRANKENMERGE = """
slices:
  - sources:
      - {model: A, layer_range: [0, 3]}
  - sources:
      - model: B
        layer_range: [1, 5]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: 0.5}
            - value: 1.0
  - sources:
      - {model: A, layer_range: [4, 6]}
merge_method: passthrough
dtype: float32
"""
SOUP = """
models:
  - model: A
    parameters: {weight: 1.0}
  - model: B
    parameters: {weight: 0.3}
  - model: C
    parameters:
      weight:
        - {filter: mlp, value: [0.0, 0.5, 1.0]}
        - value: 0.5
merge_method: linear
dtype: float32
"""
SLERP = """
slices:
  - sources:
      - {model: A, layer_range: [0, 6]}
      - {model: B, layer_range: [0, 6]}
merge_method: slerp
base_model: A
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: float32
"""
TIES = """
models:
  - model: A
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: B
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: C
    parameters:
      density: 0.33
      weight:
        - {filter: mlp, value: 0.5}
        - value: 0
merge_method: ties
base_model: BASE
parameters:
  normalize: true
  int8_mask: true
dtype: float32
"""
DARE = """
models:
  - model: BASE   # no parameters: it is the base
  - model: A
    parameters: {weight: 0.4, density: 1}
  - model: B
    parameters: {weight: 1e-1, density: 1}
  - model: C
    parameters: {weight: -0.3}
merge_method: dare_ties
base_model: BASE
parameters:
  lambda: 0.9
  rescale: false
dtype: float32
tokenizer_source: base
"""
TASK_ARITHMETIC = """
slices:
  - sources:
      - {model: BASE, layer_range: [0, 2]}
  - sources:
      - {model: A, layer_range: [1, 3], parameters: {weight: 0.7}}
      - {model: B, layer_range: [2, 4], parameters: {weight: [0.2, 0.6]}}
      - {model: BASE, layer_range: [3, 5]}
    parameters: {normalize: true}
  - base_model: C
    sources:
      - {model: C, layer_range: [5, 6]}
      - {model: A, layer_range: [5, 6], parameters: {weight: [0.1, 0.9]}}
merge_method: task_arithmetic
base_model: BASE
parameters: {lambda: 0.6}
dtype: float32
"""
PUBLISHED = {
    "frankenmerge": FRANKENMERGE,
    "soup": SOUP,
    "slerp": SLERP,
    "ties": TIES,
    "dare": DARE,
    "task_arithmetic": TASK_ARITHMETIC,
}
"""Configurations in the style of mergekit's own examples."""


def of_family(text: str, family: ModelFamily) -> str:
    """Write a family's folders in place of the models' names."""
    for name in (BASE, *"abc"):
        text = text.replace(f"model: {name.upper()}", f"model: {family.references[name]}")
    return text


def family_of(imported: Imported) -> ModelFamily:
    """Return the family that an import names."""
    family = ModelFamily(imported.base, dict(imported.candidates), dtype="float32")
    family.load(CPU)
    return family


def faults_of(text: str, **options: Any) -> list[str]:
    """Return the faults that an import of a text raises."""
    with pytest.raises(RecipeError) as caught:
        from_mergekit(text, **options)
    return list(caught.value.faults)


@pytest.mark.parametrize(
    ("name", "case"),
    [*((name, "llama") for name in PUBLISHED), ("frankenmerge", "llama-tied"), ("ties", "llama-tied")],
)
def test_published_configurations(families: Families, name: str, case: str, tmp_path: Path) -> None:
    family = families(case)
    text = of_family(PUBLISHED[name], family)
    theirs = run_mergekit(text, tmp_path)
    imported = from_mergekit(text, num_layers=LAYERS, names=TensorNames.of_family(family))
    again = family_of(imported)
    assert_close(theirs, our_tensors(again, imported.tailoring, tmp_path))
    exported = to_mergekit(imported.tailoring, again)  # and back
    assert exported.tool == "mergekit-yaml"
    assert_close(run_mergekit(exported.text, tmp_path / "again"), theirs)


def test_what_a_frankenmerge_becomes() -> None:
    imported = from_mergekit(FRANKENMERGE)
    assert (imported.base, imported.candidates) == ("A", {"B": "B"})
    scaled = [LayerPlan((LayerSource("B", i),), attention_scale=0.0, mlp_scale=0.5) for i in range(1, 5)]
    plain = [LayerPlan((LayerSource(BASE, i),)) for i in (0, 1, 2, 4, 5)]
    assert imported.tailoring == Tailoring((*plain[:3], *scaled, *plain[3:]))


def test_what_a_slerp_becomes() -> None:
    imported = from_mergekit(SLERP)
    first, *_, last = imported.tailoring.layers
    pair = (LayerSource(BASE, 0), LayerSource("B", 0))
    assert first == LayerPlan(
        pair,
        "SLERP",
        (("t", 0.5),),
        parts=(("self_attn", LayerPlan((pair[0],))), ("mlp", LayerPlan((pair[1],)))),
    )
    assert dict(last.parts)["self_attn"] == LayerPlan((LayerSource("B", 5),))
    assert imported.tailoring.norm == PartPlan((BASE, "B"), "SLERP", (("t", 0.5),))
    assert "names of Llama's tensors" in imported.notes[-1]


@pytest.mark.parametrize("operation", [*PARAMS, "LayerSelection"])
def test_a_tailoring_comes_back_from_its_configuration(llama: ModelFamily, operation: str) -> None:
    operations = [] if operation == "LayerSelection" else [operation]
    tailorings = Tailorings(llama, 3, operations, scaled=not operations, parted=False)
    names = TensorNames.of_family(llama)
    found: list[tuple[Tailoring, Tailoring]] = []
    while len(found) < 2:
        tailoring = tailorings.one()
        exported = to_mergekit(tailoring, llama)
        if exported.tool == "mergekit-multi" and operation in ("LayerFolding", "NuSLERP", "MultiSLERP"):
            return  # never one configuration
        if exported.tool == "mergekit-yaml":
            imported = from_mergekit(exported.text, names=names)
            assert imported.base == llama.references[BASE]
            found.append((imported.tailoring, tailoring))
    sums = operation in ("Linear", "TaskArithmetic", "LayerFolding")
    unlike = operation in ("DARELinear", "DARETIES", "DELLALinear", "DELLA")  # rescaling is nothing at density 1
    for back, sent in found:
        assert [p.sources[0].layer for p in back.layers] == [p.sources[0].layer for p in sent.layers] or sums
        assert back == sent or sums or unlike


def test_sums_come_back_as_sums_with_the_same_tensors(llama: ModelFamily, tmp_path: Path) -> None:
    for seed in range(3):
        tailoring = Tailorings(llama, seed, ("Linear", "TaskArithmetic")).one()
        exported = to_mergekit(tailoring, llama)
        if exported.tool != "mergekit-yaml":
            continue
        imported = from_mergekit(exported.text, names=TensorNames.of_family(llama))
        again = our_tensors(family_of(imported), imported.tailoring, tmp_path / f"{seed}-again")
        assert_close(again, our_tensors(llama, tailoring, tmp_path / str(seed)))


def test_a_scaled_branch_of_a_sum_comes_back_as_a_residual_scale(llama: ModelFamily) -> None:
    params = (("normalize", False), ("weights", (0.25, 0.5)))
    layer = LayerPlan((LayerSource("a", 1), LayerSource("b", 2)), "Linear", params, mlp_scale=0.3)
    exported = to_mergekit(Tailoring((layer,)), llama)
    assert from_mergekit(exported.text).tailoring.layers == (layer,)


def test_several_configurations_are_not_one(llama: ModelFamily) -> None:
    pair = [LayerSource("a", 1), LayerSource("b", 1)]
    both = (merged("TIES", pair, LayerSource(BASE, 1)), merged("SLERP", pair, pair[0]))
    (fault,) = faults_of(to_mergekit(Tailoring(both), llama).text)
    assert "expected a single document" in fault


def test_filters_are_compared_with_the_models_own_names(families: Families, tmp_path: Path) -> None:
    family = families("gpt2")
    other = "{filter: wpe, value: 2}, "
    rules = f"[{{filter: attn.c_proj, value: 0.5}}, {{filter: h.1.mlp, value: 0.25}}, {other}{{value: 1}}]"
    text = of_family(
        f"merge_method: linear\nparameters: {{weight: {rules}, normalize: false}}\n"
        "slices: [{sources: [{model: A, layer_range: [0, 3]}]}, {sources: [{model: B, layer_range: [1, 2]}]}]\n",
        family,
    )
    names = TensorNames.of_family(family)
    (fault,) = faults_of(text, names=names)
    assert fault.startswith(
        "slices[0]: the tensors of the embeddings (transformer.wte.weight, transformer.wpe.weight)"
    )
    imported = from_mergekit(text.replace(other, ""), names=names)
    assert imported.tailoring.layers[0].attention_scale == 0.5
    assert dict(imported.tailoring.layers[1].parts)  # a filter that names a layer by its number
    theirs = run_mergekit(text.replace(other, ""), tmp_path)
    assert_close(theirs, our_tensors(family_of(imported), imported.tailoring, tmp_path))


def test_experts_are_one_tensor_to_mergekit(families: Families) -> None:
    family = families("mixtral")
    names = TensorNames.of_family(family)
    faults = faults_of(of_family(SLERP.replace("0, 6", "0, 3"), family), names=names)
    assert faults == ["merge_method: mergekit merges all experts as one tensor, which SLERP would notice."]
    linear = of_family(SOUP, family)
    assert from_mergekit(linear, num_layers=2, names=names).tailoring.layers[1].operation == "Linear"


def test_names_of_models_are_the_last_parts_of_their_references() -> None:
    models = ["org/Base-7B", "org/chat@main", "other/chat", "/data/my model/", "base", "C:\\models\\x:y", "..."]
    sources = [{"model": m, "layer_range": [0, 1], "parameters": {"weight": 1}} for m in models]
    imported = from_mergekit(yaml.safe_dump({"merge_method": "linear", "slices": [{"sources": sources}]}))
    assert imported.base == "org/Base-7B"
    assert dict(imported.candidates) == {
        "chat": "org/chat@main",
        "chat-2": "other/chat",
        "my-model": "/data/my model/",
        "base-2": "base",
        "x-y": "C:\\models\\x:y",
        "model": "...",
    }
    section = yaml.safe_load(imported.recipe())["family"]
    assert section["init_args"]["candidates"]["x-y"] == "C:\\models\\x:y"


def of_slices(*models: str, **settings: object) -> Imported:
    """Read a self-stack of one layer of each model."""
    slices = [{"sources": [{"model": model, "layer_range": [i, i + 1]}]} for i, model in enumerate(models)]
    return from_mergekit(yaml.safe_dump({"merge_method": "passthrough", "slices": slices, **settings}))


@pytest.mark.parametrize(
    ("models", "base_model", "base", "candidates"),
    [
        (("org/b+org/x", "org/b"), None, "org/b", {"x": "org/x"}),
        (("org/b", "org/b+org/x"), None, "org/b", {"x": "org/x"}),
        (("org/b+org/x",), None, "org/b", {"x": "org/x"}),
        (("org/b+org/x", "org/b+other/x"), None, "org/b", {"x": "org/x", "x-2": "other/x"}),
        (("org/f", "org/b+org/x@v2"), None, "org/b", {"f": "org/f", "x": "org/x@v2"}),
        (("org/f", "org/b+org/x"), "org/b", "org/b", {"f": "org/f", "x": "org/x"}),
        (("org/b+org/x", "org/b"), "org/b+org/x", "org/b", {"x": "org/x"}),
        (("org/f+org/x", "org/b"), "org/b", "org/f", {"b": "org/b", "x": "org/x"}),
    ],
)
def test_the_base_is_the_model_that_carries_the_adapters_in_any_order(
    models: tuple[str, ...], base_model: str | None, base: str, candidates: dict[str, str]
) -> None:
    imported = of_slices(*models, **({} if base_model is None else {"base_model": base_model}))
    assert imported.base == base
    assert dict(imported.candidates) == candidates
    names = {"base": base, **candidates}
    drawn = [names[plan.sources[0].model] for plan in imported.tailoring.layers]
    assert drawn == [model.partition("+")[2] or model for model in models]
    assert any("is the family's base" in note for note in imported.notes) == (base == "org/f")


def test_adapters_on_several_models_and_half_a_reference_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"'org/b' is the base, got 'org/c\+org/y'. Merge that adapter"):
        of_slices("org/b+org/x", "org/c+org/y")
    with pytest.raises(RecipeError, match=r"MODEL or MODEL\+ADAPTER, got 'org/b\+'"):
        of_slices("org/b+", "org/b")


def test_an_adapter_before_its_base_gives_mergekits_tensors(
    llama: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = llama.references[BASE], tmp_path / "adapter"
    with torch.random.fork_rng(devices=[]):
        settings = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(adapter)
    text = yaml.safe_dump(
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": f"{base}+{adapter}", "layer_range": [0, 3]}]},
                {"sources": [{"model": base, "layer_range": [2, 5]}]},
            ],
        }
    )
    imported = from_mergekit(text)
    family = ModelFamily(imported.base, dict(imported.candidates), dtype="float32")
    family.prepare()
    options = interchange_cases.OPTIONS.model_copy(update={"lora_merge_cache": str(tmp_path / "cache")})
    monkeypatch.setattr(interchange_cases, "OPTIONS", options)
    assert_close(run_mergekit(text, tmp_path), our_tensors(family, imported.tailoring, tmp_path))


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        ({"tokenizer_source": "org/one"}, "org/one"),
        ({"tokenizer_source": "org/two"}, "org/two"),
        ({"tokenizer": {"source": "org/two"}}, "org/two"),
        ({"tokenizer": {"source": {"model": {"path": "org/one"}}}}, "org/one"),
        ({"tokenizer_source": "org/two/", "base_model": "org/two"}, "org/two"),
        ({"tokenizer_source": "./org/two", "base_model": "org/two"}, "org/two"),
        ({"tokenizer_source": "org/two+org/x", "base_model": "org/two"}, "org/two"),
        ({"tokenizer_source": "base"}, "org/one"),
    ],
)
def test_the_tokenizers_model_is_the_base_under_any_of_its_names(settings: dict[str, object], base: str) -> None:
    assert of_slices("org/one", "org/two", **settings).base == base


@pytest.mark.parametrize("settings", [{"tokenizer_source": "org/two"}, {"tokenizer": {"source": "org/three"}}])
def test_another_models_tokenizer_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"^tokenizer[._]source: the vocabulary stays the base's"):
        of_slices("org/one", "org/two", base_model="org/one", **settings)


def test_the_long_form_of_models() -> None:
    long = "model: {model: {path: org/b, revision: v2}, lora: null, override_architecture: null}"
    assert dict(from_mergekit(FRANKENMERGE.replace("model: B", long)).candidates) == {"b": "org/b@v2"}


def test_what_mergekit_reads_past_is_noted() -> None:
    text = FRANKENMERGE.replace(
        "parameters:\n          scale:", "parameters:\n          wieght: 1\n          scale:"
    )
    imported = from_mergekit(
        text.replace("dtype: float32", "dtype: bfloat16\nnormalise: true\nchat_template: auto")
    )
    notes = " ".join(imported.notes)
    for word in ("'normalise'", "bfloat16", "chat_template", "slices[1].sources[0].parameters.wieght"):
        assert word in notes
    shared = SLERP.replace("B, layer_range: [0, 6]", "B, layer_range: [0, 6], parameters: {t: 1}")
    assert "slices[0].sources[1].parameters.t" in " ".join(from_mergekit(shared).notes)


def test_random_masks_are_noted() -> None:
    assert "Random masks" in " ".join(
        from_mergekit(DARE.replace("density: 1", "density: 0.5"), num_layers=2).notes
    )
    assert from_mergekit(DARE, num_layers=2).notes == ()


def test_the_number_of_layers_can_be_looked_up() -> None:
    asked = []

    def find(reference: str) -> int:
        asked.append(reference)
        return 3

    assert len(from_mergekit(SOUP, num_layers=find).tailoring.layers) == 3
    assert asked == ["A", "B", "C"]
    assert "the number of layers is not in the configuration" in faults_of(SOUP)[0]
    with pytest.raises(RecipeError, match="all models have as many layers, got A 2, B 3, C 3"):
        from_mergekit(SOUP, num_layers=lambda reference: 2 if reference == "A" else 3)


def test_all_that_has_no_counterpart_is_told_by_its_place() -> None:
    text = """
merge_method: ties
base_model: BASE
tokenizer_source: union
dtype: int8
slices:
  - sources:
      - {model: BASE, layer_range: [0, 4]}
      - {model: A, layer_range: [0, 2], parameters: {density: [0.5, x: 1], weight: 1}}
  - sources:
      - {model: A, layer_range: [3, 1]}
      - {layer_range: [0, 1]}
  - sources: []
parameters: {weight: {filter: 3}, lambda: .inf}
"""
    places = [fault.split(": ")[0] for fault in faults_of(text)]
    assert places == [
        "dtype",
        "tokenizer_source",
        "parameters.weight",
        "slices[0].sources[1].parameters.density[0]",
        "slices[0].sources[1].parameters.density[1]",
        "slices[0].sources",
        "slices[1].sources[0].layer_range",
        "slices[1].sources[1].model",
        "slices[1].sources",
        "slices[2].sources",
    ]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (("density: 0.5", "density: -0.5"), "models[1].parameters.density"),
        (("density: 0.5", "density: much"), "models[1].parameters.density"),
        (("weight: 1.0", "weight: .nan"), "models[0].parameters.weight"),
        (("normalize: true", "normalize: perhaps"), "parameters.normalize"),
        (("weight: 1.0", "wheight: 1.0"), "models[0]"),
        (("base_model: BASE", ""), "models"),
        (("model: B\n", "model: A\n"), "models"),
        (("merge_method: ties", "merge_method: tie"), "merge_method"),
        (("merge_method: ties", "merge_method: slerp"), "models"),
        (("merge_method: ties", "merge_method: [1]"), "merge_method"),
        (("models:", "modules:"), "modules"),
        (("models:", "nothing:"), "neither"),
        (("dtype: float32", "dtype: float32\ntokenizer: {source: base, tokens: {a: 1}}"), "tokenizer.tokens"),
        (("dtype: float32", "dtype: float32\ntokenizer_source: A"), "tokenizer_source"),
    ],
)
def test_a_fault_names_its_place(change: tuple[str, str], place: str) -> None:
    assert change[0] in TIES
    assert faults_of(TIES.replace(*change), num_layers=2)[0].split(": ")[0] == place


@pytest.mark.parametrize(
    ("method", "parameters", "place"),
    [
        ("slerp", {"t": 1.5}, "parameters.t"),
        ("slerp", {}, "slices[0]"),
        ("nearswap", {"t": 1e-9}, "parameters.t"),
        ("linear", {"weight": 0}, "parameters.weight"),
        ("multislerp", {"weight": [0.0, 0.0]}, "parameters.weight"),
        ("della", {"weight": 1, "density": 0.9}, "slices[0].sources[1]"),
        ("della", {"weight": 1, "density": 0.9, "epsilon": 0.2}, "parameters.epsilon"),
        ("breadcrumbs", {"weight": 1, "gamma": 1.5}, "parameters.gamma"),
        ("karcher", {"max_iter": 1.5}, "parameters.max_iter"),
        ("karcher", {"max_iter": 0}, "parameters.max_iter"),
        ("model_stock", {}, "slices[0].sources"),
        ("nuslerp", {"weight": 1}, "slices[0].sources"),
        ("passthrough", {}, "slices[0].sources"),
    ],
)
def test_values_that_a_method_is_not_defined_for(method: str, parameters: dict[str, object], place: str) -> None:
    data = {
        "merge_method": method,
        "slices": [{"sources": [{"model": m, "layer_range": [0, 2]} for m in "AB"]}],
        "parameters": parameters,
    }
    if METHODS[method].base is not False:
        data["base_model"] = "A"
    if method == "multislerp":
        data["slices"][0]["sources"].append({"model": "C", "layer_range": [0, 2]})
    assert faults_of(yaml.safe_dump(data))[0].split(": ")[0] == place


@pytest.mark.parametrize(
    ("scale", "case"),
    [
        ("0.5", "llama"),
        ("[{filter: q_proj, value: 0.7}, {filter: k_proj, value: 0.7}, {value: 1.0}]", "llama"),
        ("[{filter: o_proj, value: 0.6}, {filter: down_proj, value: -0.5}, {value: 1.0}]", "gemma2"),
        ("[{filter: norm, value: 0.0}, {filter: mlp, value: [0.5, 0.9]}, {value: 1.0}]", "gemma2"),
        ("[{filter: o_proj, value: [0.3, 0.6]}, {filter: lm_head, value: 2.0}, {value: 1.0}]", "llama"),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_factor_on_any_tensors_however_many_models_there_are(
    families: Families, scale: str, case: str, number: int, tmp_path: Path
) -> None:
    scaled = f"{{model: A, layer_range: [1, 3], parameters: {{scale: {scale}}}}}"
    other = "{model: B, layer_range: [2, 4]}" if number == 2 else "{model: A, layer_range: [0, 2]}"
    text = f"merge_method: passthrough\nslices: [{{sources: [{other}]}}, {{sources: [{scaled}]}}]"
    family = families(case)
    names = TensorNames.of_family(family)
    imported = from_mergekit(of_family(text, family), names=names)
    assert len(imported.candidates) == number - 1
    found = family_of(imported)
    assert_close(run_mergekit(of_family(text, family), tmp_path), our_tensors(found, imported.tailoring, tmp_path))
    back = to_mergekit(imported.tailoring, found)  # and what it became can be written again
    assert from_mergekit(back.text, names=names).tailoring.digest == imported.tailoring.digest


def test_values_beyond_a_range_that_change_nothing(llama: ModelFamily, tmp_path: Path) -> None:
    for i, (method, parameters) in enumerate(
        {
            "ties": "weight: 0.5, density: 1.5",
            "sce": "select_topk: 2",
            "dare_linear": "weight: 1, density: 0",
            "task_arithmetic": "weight: 0",
            "nearswap": "t: -1",
        }.items()
    ):
        text = of_family(
            f"merge_method: {method}\nbase_model: BASE\nparameters: {{{parameters}}}\n"
            "slices: [{sources: [{model: BASE, layer_range: [0, 2]}, {model: A, layer_range: [2, 4]}]}]\n",
            llama,
        )
        imported = from_mergekit(text)
        folder = tmp_path / str(i)
        assert_close(run_mergekit(text, folder), our_tensors(family_of(imported), imported.tailoring, folder))


BILLION = "a: &a [1,1,1,1,1,1,1,1]\n" + "\n".join(
    f"{name}: &{name} [{f'*{before},' * 8}]" for before, name in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "merge_method: linear",
        "a: &a [*a]",
        "merge_method: linear\nslices: &s [{sources: *s}]",
        "merge_method: linear\nmodels: " + "[" * 2000,
        BILLION,
        "merge_method: passthrough\nslices: [{sources: [{model: A, layer_range: [0, 1000000000]}]}]",
        "merge_method: passthrough\nslices: [{sources: [{model: A, layer_range: [-3, 10]}]}]",
        "merge_method: passthrough\nslices: [{sources: [{model: A, layer_range: [0, 0]}]}]",
        "merge_method: passthrough\nslices: [{sources: [{model: A, layer_range: [0, " + "9" * 5000 + "]}]}]",
        "merge_method: !!python/object/apply:os.system [true]",
        "merge_method: linear\nmodels: [{model: !!binary aGk=}]",
        "merge_method: \x00",
    ],
)
def test_hostile_texts_are_refused_quickly(text: str) -> None:
    begin = time.monotonic()
    with pytest.raises(RecipeError):
        from_mergekit(text, num_layers=4)
    assert time.monotonic() - begin < 5


def test_a_very_wide_configuration_is_refused() -> None:
    sources = [{"model": f"m{i}", "layer_range": [0, 900], "parameters": {"weight": 1}} for i in range(40)]
    (fault,) = faults_of(yaml.safe_dump({"merge_method": "linear", "slices": [{"sources": sources}]}))
    assert "at most 20,000 sources" in fault


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([10**9, 2**70, 0.5, -0.25, float("inf"), float("nan")]),
    st.sampled_from(["A", "B", "base", "a+b", "1e-3", "*", "mlp", "", "true"]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(SCALARS, inner, max_size=3)),
    max_leaves=8,
)
NUMBER = st.sampled_from([0, 1, 0.5, 1.5, -1, "0.25", True])
VALUES = st.one_of(NUMBER, st.lists(NUMBER, max_size=3))
FILTERS = st.sampled_from(["mlp", "q_proj", "lm_head", "*", None])
RULES = st.lists(st.fixed_dictionaries({"value": VALUES}, optional={"filter": FILTERS}), max_size=3)
NAMES = sorted({name for method in METHODS.values() for name in (*method.shared, *method.own)})
PARAMETERS = st.dictionaries(st.sampled_from(NAMES), st.one_of(VALUES, RULES, SCALARS), max_size=4)
MODELS = st.one_of(st.sampled_from("ABC"), SCALARS)
RANGES = st.one_of(st.sampled_from([[0, 2], [1, 3], [0, 0], [3, 1]]), SCALARS)
SOURCES = st.fixed_dictionaries({"model": MODELS, "layer_range": RANGES}, optional={"parameters": PARAMETERS})
SLICES = st.lists(
    st.fixed_dictionaries(
        {"sources": st.lists(SOURCES, max_size=3)}, optional={"base_model": MODELS, "parameters": PARAMETERS}
    ),
    max_size=3,
)
CONFIGURATIONS = st.fixed_dictionaries(
    {"merge_method": st.one_of(st.sampled_from(sorted(METHODS)), SCALARS)},
    optional={
        "slices": st.one_of(SLICES, ANYTHING),
        "models": st.one_of(st.lists(SOURCES, max_size=3), ANYTHING),
        "parameters": st.one_of(PARAMETERS, ANYTHING),
        "base_model": MODELS,
        "dtype": SCALARS,
        "tokenizer_source": SCALARS,
        "tokenizer": ANYTHING,
    },
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(CONFIGURATIONS, ANYTHING))
def test_no_structure_raises_anything_else(data: object) -> None:
    try:
        imported = from_mergekit(yaml.safe_dump(data), num_layers=3)
    except TailorError as error:
        assert str(error)
    else:
        assert Tailoring.from_yaml(imported.tailoring.to_yaml()) == imported.tailoring


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="{}[]:-&*!|>'\"\n abslce01.", max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    with pytest.raises(TailorError):
        from_mergekit(text, num_layers=3)


def test_owners_are_those_that_mergekit_takes() -> None:
    text = FRANKENMERGE.replace("{model: A, layer_range: [4, 6]}", "{model: B, layer_range: [4, 6]}")
    tailoring = from_mergekit(text).tailoring
    assert (tailoring.embeddings, tailoring.norm, tailoring.head) == (BASE, "B", "B")
    tied = TensorNames(outer=("model.embed_tokens.weight", "model.norm.weight"))
    assert from_mergekit(text, names=tied).tailoring.head == BASE


def test_sources_that_mergekit_does_not_look_at_for_norm_and_head() -> None:
    # the first slice has one source: of the last one's, mergekit looks at no more
    assert from_mergekit(TASK_ARITHMETIC).tailoring.norm == "C"
    other = TASK_ARITHMETIC.replace("- base_model: C", "- base_model: A").replace("{lambda", "{weight: 1, lambda")
    assert "mergekit needs the base model among them, got C" in faults_of(other)[0]
