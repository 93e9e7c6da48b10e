"""Export to mergekit: run on the text, mergekit makes the tensors of our own export."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import interchange_cases
import mergekit.sparsify
import pytest
import torch
import yaml
from click.testing import CliRunner
from interchange_cases import (
    NEEDS_BASE,
    PARAMS,
    TIED_ENTRIES,
    Families,
    Tailorings,
    as_owner,
    assert_close,
    assert_equal,
    merged,
    our_tensors,
    read_tensors,
    run_mergekit,
)
from mergekit.io.tasks import LoaderCache
from mergekit.scripts import multimerge, run_yaml
from mergekit.sparsify import RescaleNorm, rescaled_masked_tensor
from model_cases import LAYERS
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tailorlib_strategies.operations import dare, della
from torch import Tensor
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import ModelError, RecipeError
from tailorlib.interchange import to_mergekit
from tailorlib.models.family import ModelFamily
from tailorlib.operation import OPERATIONS, MergeOperation
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, PartPlan, Tailoring
from tailorlib.testing.tiny import write_tiny_family, write_tiny_model

SUMS = ("Linear", "TaskArithmetic", "LayerFolding")


def selected(*sources: str, **owners: str) -> Tailoring:
    """Return a tailoring of layers as they are, written ``model:layer``."""
    pairs = [source.split(":") for source in sources]
    return Tailoring(tuple(LayerPlan((LayerSource(m, int(i)),)) for m, i in pairs), **owners)


def check(family: ModelFamily, tailoring: Tailoring, folder: Path) -> str:
    """Compare mergekit's tensors with ours, and return the name of mergekit's command."""
    exported = to_mergekit(tailoring, family)
    assert_close(run_mergekit(exported.text, folder), our_tensors(family, tailoring, folder))
    return exported.tool


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("case", "storage"), [("llama", "float32"), ("llama-tied", "bfloat16"), ("gemma", "float32")]
)
def test_selections_are_the_same_to_the_bit(
    families: Families, case: str, storage: str, seed: int, tmp_path: Path
) -> None:
    family = families(case, storage)
    tailoring = Tailorings(family, seed, (), scaled=False).one()
    exported = to_mergekit(tailoring, family)
    assert exported.tool == "mergekit-yaml"
    assert_equal(run_mergekit(exported.text, tmp_path), our_tensors(family, tailoring, tmp_path))


@pytest.mark.parametrize("operation", PARAMS)
def test_an_operation_beside_selections(llama: ModelFamily, operation: str, tmp_path: Path) -> None:
    tailorings = Tailorings(llama, 7, [operation], scaled=False, parted=False)
    tailoring = tailorings.one()
    tailoring = replace(tailoring, layers=(tailorings.merge(operation, 1), *tailoring.layers))
    if operation != "LayerFolding":
        tailoring = replace(tailoring, norm=as_owner(tailorings.merge(operation, 0)))
    check(llama, tailoring, tmp_path)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", ["llama", "llama-tied", "gemma2"])
def test_weighted_sums_fit_in_one_configuration(families: Families, case: str, seed: int, tmp_path: Path) -> None:
    family = families(case)
    operations = ("Linear", "TaskArithmetic")
    tailoring = Tailorings(family, seed, operations, scaled=case != "gemma2", parted=False).one()
    assert check(family, tailoring, tmp_path) == "mergekit-yaml"


@pytest.mark.parametrize("seed", range(5))
def test_any_mixture_of_operations(llama: ModelFamily, seed: int, tmp_path: Path) -> None:
    operations = [operation for i, operation in enumerate(PARAMS) if i % 5 == seed]
    check(llama, Tailorings(llama, seed, operations).one(), tmp_path)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", ["llama", "qwen2"])
def test_models_stored_in_bfloat16_are_rounded_once(
    families: Families, case: str, seed: int, tmp_path: Path
) -> None:
    family = families(case, "bfloat16")
    operations = [operation for operation in PARAMS if operation not in TIED_ENTRIES]
    check(family, Tailorings(family, seed, operations, scaled=False).one(), tmp_path)


def test_scaled_merges_in_bfloat16_are_rounded_twice(families: Families, tmp_path: Path) -> None:
    family = families("llama", "bfloat16")
    tailorings = Tailorings(family, 1, ("Linear", "SLERP", "TaskArithmetic"), scaled=False)
    scaled = (replace(plan, attention_scale=0.7, mlp_scale=1.25) for plan in tailorings.one().layers)
    tailoring = Tailoring(tuple(scaled))
    exported = to_mergekit(tailoring, family)
    assert_close(run_mergekit(exported.text, tmp_path), our_tensors(family, tailoring, tmp_path), units=2)
    tailoring = Tailoring((LayerPlan((LayerSource("a", 1),), attention_scale=0.7, mlp_scale=1.25),))
    exported = to_mergekit(tailoring, family)
    assert_equal(
        run_mergekit(exported.text, tmp_path / "selected"), our_tensors(family, tailoring, tmp_path / "2")
    )


@pytest.mark.parametrize(
    "case",
    ["mistral", "qwen2", "qwen2.5", "qwen3", "gemma", "gemma3_text", "phi3", "olmo2", "granite", "cohere", "glm4"],
)
def test_architectures(families: Families, case: str, tmp_path: Path) -> None:
    family = families(case)
    scaled = not family.architecture.unit_offset
    check(family, Tailorings(family, 1, (*SUMS, "TIES", "SLERP"), scaled=scaled).one(), tmp_path)


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
def test_experts_are_stacked_by_mergekit(families: Families, case: str, tmp_path: Path) -> None:
    family = families(case)
    sparse = [i for i, kind in enumerate(family.layout.layer_types) if "dense" not in kind][:2]
    first, second = (LayerSource("a", i) for i in sparse)
    plans = (
        LayerPlan((first,), mlp_scale=0.5),
        merged("Linear", [second, LayerSource("b", sparse[1])], LayerSource(BASE, 0)),
    )
    tailoring = Tailoring(plans, embeddings="b", norm="a")
    exported = to_mergekit(tailoring, family)
    theirs, ours = run_mergekit(exported.text, tmp_path), our_tensors(family, tailoring, tmp_path)
    for i in range(len(plans)):
        prefix = family.architecture.layer_prefix(i)
        stored = {name: ours.pop(name) for name in list(ours) if name.startswith(prefix)}
        live = family.architecture.live_layer({n.removeprefix(prefix): t for n, t in stored.items()})
        ours |= {prefix + name: tensor for name, tensor in live.items()}
    assert_close(theirs, ours)
    assert ("config.json" in " ".join(exported.notes)) == (case == "qwen3_moe")  # which layers have experts
    slerp = Tailoring((merged("SLERP", [first, LayerSource("b", sparse[0])], first),))
    with pytest.raises(RecipeError, match="merges all experts as one tensor"):
        to_mergekit(slerp, family)


def test_a_pruned_model_is_a_readable_passthrough(llama: ModelFamily) -> None:
    exported = to_mergekit(
        Tailoring.whole("a", LAYERS, without=[2, 3]), llama, references={"a": "me/a", "base": "me/b"}
    )
    assert yaml.safe_load(exported.text) == {
        "merge_method": "passthrough",
        "base_model": "me/b",
        "dtype": "float32",
        "slices": [
            {"sources": [{"model": "me/a", "layer_range": [0, 2]}]},
            {"sources": [{"model": "me/a", "layer_range": [4, 6]}]},
        ],
    }
    assert exported.notes == ()


def test_residual_scales_are_filters_on_output_projections(llama: ModelFamily) -> None:
    layer = LayerPlan((LayerSource(BASE, 0),), attention_scale=0.5, mlp_scale=0.0)
    (piece,) = yaml.safe_load(to_mergekit(Tailoring((layer,)), llama).text)["slices"]
    rules = piece["sources"][0]["parameters"]["scale"]
    assert rules == [
        {"filter": "self_attn.o_proj", "value": 0.5},
        {"filter": "mlp.down_proj", "value": 0.0},
        {"value": 1.0},
    ]


def test_owners_that_the_layers_beside_them_are_not_get_slices_without_layers(
    llama: ModelFamily, tmp_path: Path
) -> None:
    tailoring = selected("base:0", "a:4", embeddings="b", norm="c", head="d")
    exported = to_mergekit(tailoring, llama)
    slices = yaml.safe_load(exported.text)["slices"]
    assert [piece["sources"][0]["layer_range"] for piece in slices] == [[0, 0], [0, 1], [4, 5], [0, 0]]
    assert_equal(run_mergekit(exported.text, tmp_path), our_tensors(llama, tailoring, tmp_path))


def test_the_last_slice_may_have_more_sources_than_the_first(llama: ModelFamily, tmp_path: Path) -> None:
    # mergekit 0.1.5 looks at as many of the last slice's sources, for norm and head, as the first slice has
    merge = merged("Linear", [LayerSource(m, 5) for m in "abc"], LayerSource(BASE, 5))
    owner = as_owner(merge)
    tailoring = Tailoring((LayerPlan((LayerSource("d", 0),)), merge), embeddings="d", norm=owner, head=owner)
    check(llama, tailoring, tmp_path / "linear")
    ties = merged("TIES", [LayerSource(m, 5) for m in "abc"], LayerSource(BASE, 5))
    owner = as_owner(ties)
    tailoring = Tailoring((LayerPlan((LayerSource("d", 0),)), ties), embeddings="d", norm=owner, head=owner)
    check(llama, tailoring, tmp_path / "ties")


def test_a_tied_head_is_not_written(families: Families, tmp_path: Path) -> None:
    family = families("llama-tied")
    exported = to_mergekit(selected("a:0", "b:1", embeddings="a", norm="b"), family)
    assert "lm_head.weight" not in run_mergekit(exported.text, tmp_path)


def test_a_spare_head_in_a_tied_models_file_is_kept_out(tmp_path: Path) -> None:
    folders = write_tiny_family(tmp_path, num_layers=2, tie_word_embeddings=True)
    weights = load_file(folders["a"] / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # the same: it is still tied
    save_file(weights, folders["a"] / "model.safetensors", metadata={"format": "pt"})
    family = ModelFamily(str(folders["base"]), {"a": str(folders["a"])}, dtype="float32")
    family.prepare()
    tailoring = selected("base:0", "a:1")
    assert "lm_head.weight" not in run_mergekit(to_mergekit(tailoring, family).text, tmp_path)
    noted = to_mergekit(replace(tailoring, norm="a"), family)
    assert "transformers ignores it" in " ".join(noted.notes)


def test_the_base_may_be_of_another_depth_and_among_the_sources(llama: ModelFamily, tmp_path: Path) -> None:
    at = LayerSource(BASE, 1)
    plans = (
        merged("TIES", [LayerSource("a", 3), LayerSource("b", 2)], at),
        merged("TIES", [at, LayerSource("b", 2)], at),
        merged("TIES", [LayerSource(BASE, 4), LayerSource("b", 2)], at),
        merged("ModelStock", [at, LayerSource("b", 2), LayerSource("c", 2)], at),
        merged("TaskArithmetic", [at, LayerSource("a", 2)], at),
    )
    check(llama, Tailoring(plans), tmp_path)


def test_parts_that_are_taken_as_they_are_beside_merged_ones(llama: ModelFamily, tmp_path: Path) -> None:
    base, a = LayerSource(BASE, 1), LayerSource("a", 1)
    for operation, pair, part in (
        ("SLERP", (base, a), base),
        ("SLERP", (base, a), a),
        ("NearSwap", (a,), base),
        ("TIES", (a, LayerSource("b", 1)), base),
        ("DELLALinear", (a, LayerSource("b", 1)), base),
    ):
        layer = replace(merged(operation, pair, base), parts=(("mlp", LayerPlan((part,))),))
        tailoring = Tailoring((layer, layer))
        folder = tmp_path / f"{operation}-{part.model}"
        assert check(llama, tailoring, folder) == "mergekit-yaml"
        assert torch.equal(
            our_tensors(llama, tailoring, folder / "again")["model.layers.0.mlp.up_proj.weight"],
            read_tensors(folder / "merged")["model.layers.0.mlp.up_proj.weight"],
        )
    two = LayerPlan((base,), parts=(("mlp", LayerPlan((a,))),))
    slerp = merged("SLERP", (base, a), base)
    assert check(llama, Tailoring((two, slerp)), tmp_path / "two") == "mergekit-yaml"


def test_a_layer_can_stand_in_several_places(llama: ModelFamily, tmp_path: Path) -> None:
    check(llama, selected("a:1", "a:1", "base:2", "a:1"), tmp_path)


@pytest.fixture
def same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both libraries keep every other entry in place of a random mask."""

    def mask(tensor: Tensor) -> Tensor:
        return (torch.arange(tensor.numel()).view(tensor.shape) % 2 == 0).to(tensor.dtype)

    def theirs(tensor: Tensor, density: float, rescale_norm: RescaleNorm | None = None, **_: float) -> Tensor:
        return rescaled_masked_tensor(tensor, mask(tensor), rescale_norm) if density < 1 else tensor

    def ours(delta: Tensor, density: float, *_: object, rescale: bool) -> None:
        delta.mul_(mask(delta) / (density if rescale else 1.0))

    for name in ("bernoulli", "della_magprune"):
        monkeypatch.setattr(mergekit.sparsify, name, theirs)
    monkeypatch.setattr(dare, "drop_", ours)
    monkeypatch.setattr(della, "drop_by_rank_", ours)


@pytest.mark.parametrize("rescale", ["density", "l1", "none"])
@pytest.mark.parametrize("operation", ["DARELinear", "DARETIES", "DELLALinear", "DELLA"])
def test_random_methods_are_the_same_but_for_their_masks(
    llama: ModelFamily, operation: str, rescale: str, same_masks: None, tmp_path: Path
) -> None:
    plan = merged(operation, [LayerSource(m, 2) for m in "ab"], LayerSource(BASE, 1))
    settings = {**dict(plan.params), "density": 0.5, "rescale": rescale, "weights": (0.4, 1.3)}
    tailoring = Tailoring((replace(plan, params=tuple(settings.items())),))
    if operation.startswith("DELLA") and rescale == "density":
        with pytest.raises(RecipeError, match="by the probability of each entry"):
            to_mergekit(tailoring, llama)
        return
    exported = to_mergekit(tailoring, llama)
    assert "random masks of its own" in " ".join(exported.notes)
    assert_close(run_mergekit(exported.text, tmp_path), our_tensors(llama, tailoring, tmp_path))


def test_densities_that_differ_can_not_be_divided_by_in_a_consensus(llama: ModelFamily) -> None:
    plan = merged("DARETIES", [LayerSource(m, 2) for m in "ab"], LayerSource(BASE, 1))
    settings = {**dict(plan.params), "density": (0.5, 0.7)}
    with pytest.raises(RecipeError, match="densities that differ"):
        to_mergekit(Tailoring((replace(plan, params=tuple(settings.items())),)), llama)


def test_all_reasons_are_told_at_once(families: Families) -> None:
    family = families("gemma2")
    statistics = LayerPlan((LayerSource("a", 0), LayerSource("b", 0)), "RegMean", (("alpha", 0.5),))
    karcher = LayerPlan(
        (LayerSource("a", 1), LayerSource("b", 1)),
        "Karcher",
        (("max_iter", 10), ("tol", 1e-5), ("weights", (0.2, 0.8))),
    )
    scaled = LayerPlan((LayerSource("a", 2),), mlp_scale=0.5)
    lacking = LayerPlan((LayerSource("a", 3), LayerSource("b", 3)), "SLERP")
    owner = PartPlan(("a", "b"), "Fisher")
    with pytest.raises(RecipeError) as caught:
        to_mergekit(Tailoring((statistics, karcher, scaled, lacking), embeddings=owner), family)
    faults = caught.value.faults
    assert len(faults) == 5
    for fault, place, reason in zip(
        faults,
        (
            "layer 0 (a:0, b:0)",
            "layer 1 (a:1, b:1)",
            "layer 2 (a:2)",
            "layer 3 (a:3, b:3)",
            "embeddings (Fisher of a, b)",
        ),
        ("counterpart of RegMean", "same weight", "1 + weight", "'t' is one value", "counterpart of Fisher"),
        strict=True,
    ):
        assert place in fault and reason in fault


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("llama-biased", r"would leave out mlp.down_proj.bias, .*, which it doesn't list"),
        ("smollm3", "lists no architecture of the type 'smollm3'"),
        ("gpt_neox", "asks for attention.bias, .* which these models lack"),
        ("falcon", "reads no falcon with tied embeddings"),
        ("qwen3_moe", r"would leave out mlp.down_proj.weight"),
    ],
)
def test_models_that_mergekit_would_garble_are_refused(families: Families, case: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        to_mergekit(Tailoring.whole(BASE, LAYERS), families(case))


def test_a_tailoring_of_another_family_is_refused(llama: ModelFamily) -> None:
    with pytest.raises(ModelError, match="no model of the family"):
        to_mergekit(selected("e:0"), llama)


def test_lists_of_layers_are_warned_about(families: Families, llama: ModelFamily) -> None:
    cut = Tailoring.whole(BASE, LAYERS, without=[1])
    assert "Take config.json from" in " ".join(to_mergekit(cut, families("qwen2")).notes)
    assert to_mergekit(Tailoring.whole(BASE, LAYERS), families("qwen2")).notes == ()
    assert to_mergekit(cut, llama).notes == ()


def test_results_in_between_keep_their_number_where_configs_list_layers(
    families: Families, tmp_path: Path
) -> None:
    family = families("qwen2.5")
    pair = [LayerSource("a", 1), LayerSource("b", 1)]
    plans = (merged("TIES", pair, LayerSource(BASE, 1)), merged("SLERP", pair, pair[0]))
    assert check(family, Tailoring(plans), tmp_path) == "mergekit-multi"


def test_what_mergekit_calls_models(llama: ModelFamily, tmp_path: Path) -> None:
    tailoring = selected("base:0", "a:1")
    text = to_mergekit(tailoring, llama, references={"a": "organisation/name@v1"}).text
    assert "organisation/name@v1" in text
    with pytest.raises(RecipeError, match=r"'\+' and '@'"):
        to_mergekit(tailoring, llama, references={"a": "/folder/of@models/a"})
    with pytest.raises(RecipeError, match=r"Rename the folder"):
        to_mergekit(tailoring, llama, references={BASE: "a+b+c"})


def test_a_candidate_with_a_vocabulary_of_its_own_gives_layers_only(tmp_path: Path) -> None:
    folders = write_tiny_family(tmp_path, num_layers=3, candidates=3)
    write_tiny_model(folders["c"], num_layers=3, vocab_size=344, seed=5)
    family = ModelFamily(str(folders["base"]), {n: str(folders[n]) for n in "abc"}, dtype="float32")
    family.prepare()
    for i, operation in enumerate(("TIES", "SLERP", "Linear")):
        layer = merged(operation, [LayerSource("c", 1), LayerSource("b", 1)], LayerSource(BASE, 1))
        check(family, Tailoring((layer,)), tmp_path / str(i))
    both = (
        merged("TIES", [LayerSource("c", 1), LayerSource("b", 1)], LayerSource(BASE, 1)),
        merged("Linear", [LayerSource("c", 1), LayerSource("c", 2)], LayerSource(BASE, 1)),
    )
    check(family, Tailoring(both), tmp_path / "both")
    for part in ("embeddings", "norm", "head"):
        with pytest.raises(RecipeError, match=rf"{part} \(c\): the vocabulary of c differs from the base's"):
            to_mergekit(replace(Tailoring(both), **{part: "c"}), family)
    stock = merged("ModelStock", [LayerSource("c", 1), LayerSource("b", 1)], LayerSource(BASE, 1))
    with pytest.raises(RecipeError, match="model_stock would also merge the vocabularies"):
        to_mergekit(Tailoring((stock,)), family)


def test_an_adapter_is_written_behind_the_base(llama: ModelFamily, tmp_path: Path, monkeypatch: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama.references[BASE]), settings)
        model.save_pretrained(tmp_path / "adapter")
    references = {"a": str(tmp_path / "adapter"), "b": llama.references["b"]}
    family = ModelFamily(llama.references[BASE], references, dtype="float32")
    family.prepare()
    pair = [LayerSource("a", 1), LayerSource("b", 1)]
    tailoring = Tailoring((LayerPlan((LayerSource("a", 0),)), merged("TIES", pair, LayerSource(BASE, 1))))
    exported = to_mergekit(tailoring, family)
    assert exported.notes == ("a: give mergekit a --lora-merge-cache folder for adapters.",)
    options = interchange_cases.OPTIONS.model_copy(update={"lora_merge_cache": str(tmp_path / "cache")})
    monkeypatch.setattr(interchange_cases, "OPTIONS", options)
    assert_close(run_mergekit(exported.text, tmp_path), our_tensors(family, tailoring, tmp_path))


@pytest.mark.parametrize("operations", [("TIES",), ("TIES", "SLERP")])
def test_the_command_line_that_is_given(
    llama: ModelFamily, operations: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [LayerSource("a", 1), LayerSource("b", 1)]
    tailoring = Tailoring(tuple(merged(operation, pair, LayerSource(BASE, 1)) for operation in operations))
    exported = to_mergekit(tailoring, llama)
    monkeypatch.chdir(tmp_path)
    Path("merge.yaml").write_text(exported.text)
    tool, *arguments = shlex.split(exported.command("merge.yaml", "out"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # it works from any folder, and asks no network
    main = {"mergekit-yaml": run_yaml.main, "mergekit-multi": multimerge.main}[tool]
    LoaderCache().loaders.clear()
    with torch.random.fork_rng(devices=[]):
        result = CliRunner().invoke(main, [*arguments, "--quiet"])
    assert result.exit_code == 0, result.output
    assert Path("out/README.md").is_file()  # written last
    assert_close(read_tensors(Path("out")), our_tensors(llama, tailoring, tmp_path))


def test_every_operation_is_among_the_cases() -> None:
    found = OPERATIONS.load_all()
    merges = {name for name, cls in found.items() if issubclass(cls, MergeOperation) and cls.statistic is None}
    built_in = {name for name in merges if found[name].__module__.startswith("tailorlib_strategies")}
    assert built_in == set(PARAMS)
    assert {name for name in built_in if found[name].needs_base} == NEEDS_BASE
    for name in built_in:
        assert set(PARAMS[name](2)) - {"weights"} == set(found[name]().distributions()) - {"weights"}
