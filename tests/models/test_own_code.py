"""A model's own code: run of the models that are listed, and of no other; what it computes is what is scored."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from model_cases import CPU, logits, tokens
from own_code_cases import FACTOR, LAYERS, edit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tailorlib.evaluation.engine import Engine, Request, supports_packing
from tailorlib.exceptions import ModelError, PluginError, RecipeError
from tailorlib.models import source
from tailorlib.models.architecture import ARCHITECTURES, Architecture, register_architecture
from tailorlib.models.family import ModelFamily
from tailorlib.models.own_code import code_files, place_code
from tailorlib.models.source import ModelSource, resolve
from tailorlib.models.statistics import LayerStatistics
from tailorlib.models.vocabulary import read_vocabulary
from tailorlib.operation import Statistic
from tailorlib.recipe import check_recipe
from tailorlib.tailoring import LayerPlan, LayerSource, Tailoring
from tailorlib.testing.tiny import write_tiny_model
from tailorlib.text import TextSource

KEPT = (0, 2, 3)
WITHOUT = Tailoring.whole("base", LAYERS, without=[1])


def family_of(custom, *listed, candidates=("a",), **settings):
    family = ModelFamily(
        str(custom["base"]),
        {name: str(custom[name]) for name in candidates},
        dtype="float32",
        trust_remote_code=list(listed),
        **settings,
    )
    family.load(CPU)
    return family


def faults_of(family):
    with pytest.raises(RecipeError) as caught:
        family.prepare()
    return caught.value.faults


def cut_by_hand(folder, kept=KEPT):
    """Return the plain Llama with some of a folder's layers; what the own code does to its logits is left out."""
    entries = json.loads((folder / "config.json").read_text())
    for name in ("auto_map", "model_type", "logits_factor"):
        entries.pop(name)
    config = LlamaConfig(**{**entries, "num_hidden_layers": len(kept), "dtype": "float32"})
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
        whole = LlamaForCausalLM(LlamaConfig(**{**entries, "dtype": "float32"}))
    (file,) = folder.glob("*.safetensors")
    whole.load_state_dict(load_file(file))
    whole.model.layers = torch.nn.ModuleList(whole.model.layers[i] for i in kept)
    model.load_state_dict(whole.state_dict())
    return model.eval()


def test_own_code_is_off_by_default_and_the_message_says_what_to_do(custom, row, modules_cache):
    (fault,) = faults_of(ModelFamily(str(custom["base"]), {"a": str(custom["a"])}))
    assert fault.startswith("base: ")
    assert "configuration_tiny.py, modeling_tiny.py" in fault
    assert "Read that code, then list the model in family.init_args.trust_remote_code" in fault
    assert not custom["base ran"].exists()
    assert not custom["a ran"].exists()
    assert not modules_cache.exists()


def test_listed_models_are_stitched_by_the_base_s_own_class(custom, row, modules_cache):
    family = family_of(custom, "base", "a")
    assert custom["base ran"].is_dir()
    assert custom["a ran"].is_dir()
    assert list(modules_cache.rglob("modeling_tiny.py"))
    model = family.stitch(WITHOUT)
    assert type(model).__name__ == "TinyForCausalLM"
    found, plain = logits(model), logits(cut_by_hand(custom["base"]))
    assert torch.equal(found, FACTOR * plain)
    whole = AutoModelForCausalLM.from_pretrained(custom["base"], dtype=torch.float32, trust_remote_code=True)
    assert torch.equal(logits(family.stitch(Tailoring.whole("base", LAYERS))), logits(whole))
    assert not torch.equal(logits(family.stitch(Tailoring.whole("a", LAYERS))), logits(whole))


def test_the_class_with_layers_taken_out_by_hand_gives_the_same(custom, row):
    family = family_of(custom, "base")
    whole = AutoModelForCausalLM.from_pretrained(custom["base"], dtype=torch.float32, trust_remote_code=True)
    whole.model.layers = torch.nn.ModuleList(whole.model.layers[i] for i in KEPT)
    whole.config.num_hidden_layers = len(KEPT)
    with torch.inference_mode():
        expected = whole.eval()(tokens(), use_cache=False).logits
    assert torch.equal(logits(family.stitch(WITHOUT)), expected)


def test_a_candidate_that_is_not_listed_is_read_with_the_base_s_class_and_not_run(custom, row):
    family = family_of(custom, "base")
    assert custom["base ran"].is_dir()
    assert not custom["a ran"].exists()
    listed = family_of(custom, "base", "a")
    merged = Tailoring.whole("a", LAYERS, without=[0])
    assert torch.equal(logits(family.stitch(merged)), logits(listed.stitch(merged)))


def test_a_candidate_of_another_type_that_is_not_listed_is_refused_and_not_run(custom, row):
    edit(custom["a"] / "config.json", model_type="another")
    (fault,) = faults_of(ModelFamily(str(custom["base"]), {"a": str(custom["a"])}, trust_remote_code=["base"]))
    assert fault.startswith("candidate 'a': ")
    assert "list the model in family.init_args.trust_remote_code" in fault
    assert not custom["a ran"].exists()


def test_a_listed_candidate_beside_a_base_that_is_not(custom, row):
    (fault,) = faults_of(ModelFamily(str(custom["base"]), {"a": str(custom["a"])}, trust_remote_code=["a"]))
    assert fault.startswith("base: ")
    assert not custom["base ran"].exists()


def test_a_class_of_one_s_own_for_a_known_type_is_taken_only_if_it_is_listed(custom, row, tmp_path):
    folder = write_tiny_model(tmp_path / "known", num_layers=LAYERS)
    for name in ("configuration_tiny.py", "modeling_tiny.py", "scaling_tiny.py"):
        shutil.copy(custom["base"] / name, folder / name)
    edit(
        folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}, logits_factor=2
    )
    found = {}
    for listed in ((), ("base",)):
        family = family_of({"base": folder}, *listed, candidates=())
        model = family.stitch(WITHOUT)
        found[listed] = logits(model)
        assert supports_packing(model, 32) != bool(listed)
        assert custom["base ran"].exists() == bool(listed)
    assert torch.equal(found["base",], 2 * found[()])


@pytest.mark.parametrize("given", [True, False, "base", {"base": True}, ["base", 1]])
def test_trust_is_asked_for_per_model(custom, given):
    family = ModelFamily(str(custom["base"]), {"a": str(custom["a"])}, dtype="int3", trust_remote_code=given)
    dtype, trust, base = faults_of(family)
    assert "int3" in dtype
    assert trust.startswith("trust_remote_code is asked for per model: it is a list")
    assert base.startswith("base: ")
    assert not custom["base ran"].exists()


@pytest.mark.parametrize("given", [True, "base", [1]])
def test_a_recipe_is_told_so_too(custom, given):
    settings = {"base": str(custom["base"]), "trust_remote_code": given}
    (fault,) = check_recipe({"family": {"class_path": "ModelFamily", "init_args": settings}})
    assert "trust_remote_code is asked for per model" in fault
    settings["trust_remote_code"] = ["base"]
    assert not check_recipe({"family": {"class_path": "ModelFamily", "init_args": settings}})


def test_an_unknown_name_is_told_with_the_other_faults(folders):
    family = ModelFamily(str(folders["base"]), {"math": "/nowhere"}, trust_remote_code=["bsae", "math"])
    unknown, gone = faults_of(family)
    assert unknown == "trust_remote_code lists 'bsae', which is no model of the family. Did you mean 'base'?"
    assert "/nowhere" in gone


def test_code_of_another_repository_is_refused(custom, row):
    elsewhere = {"AutoConfig": "someone/else--configuration_tiny.TinyConfig"}
    edit(custom["base"] / "config.json", auto_map=elsewhere)
    (fault,) = faults_of(ModelFamily(str(custom["base"]), trust_remote_code=["base"]))
    assert "names code of another repository ('someone/else--configuration_tiny.TinyConfig')" in fault


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("configuration_tiny.py", "raise RuntimeError('broken')", "can't be read: broken"),
        ("configuration_tiny.py", "import no_such_package", "can't be made ready: .*no_such_package"),
        ("modeling_tiny.py", "from .gone import x", "can't be made ready"),
        ("modeling_tiny.py", "raise RuntimeError('broken')", "can't be built: RuntimeError: broken"),
    ],
)
def test_code_that_fails_is_the_user_s_to_mend(custom, row, file, text, message):
    (custom["base"] / file).write_text(text + "\n")
    with pytest.raises(RecipeError, match=f"base: .*{message}"):
        ModelFamily(str(custom["base"]), trust_remote_code=["base"]).prepare()


def test_a_missing_row_is_told_with_how_to_add_one(custom):
    (fault,) = faults_of(ModelFamily(str(custom["base"]), trust_remote_code=["base"]))
    assert "got 'tinycustom'" in fault
    assert "--plugins calls register_architecture(Architecture(...))" in fault


def test_a_model_type_has_one_row(row):
    register_architecture(Architecture("tinycustom"))  # a plugin file that is named twice
    with pytest.raises(PluginError, match="A model type has one row; 'tinycustom' has "):
        register_architecture(Architecture("tinycustom", norm="model.ln_f"))
    with pytest.raises(PluginError, match="'llama' has "):
        register_architecture(Architecture("llama", norm="model.ln_f"))
    assert ARCHITECTURES["llama"] == Architecture("llama")


def test_the_files_of_the_code_are_those_named_and_what_they_import(custom):
    (custom["base"] / "setup.py").write_text("")
    names = [file.name for file in code_files(custom["base"])]
    assert names == ["configuration_tiny.py", "modeling_tiny.py", "scaling_tiny.py"]
    (custom["base"] / "scaling_tiny.py").unlink()
    with pytest.raises(ModelError, match="imports from beside it can't be read"):
        code_files(custom["base"])


def test_code_outside_of_the_folder_is_not_the_model_s(custom, tmp_path):
    (tmp_path / "outside.py").write_text("")
    (custom["base"] / "scaling_tiny.py").write_text("'''\nfrom ./../outside import x\n'''\n")
    with pytest.raises(ModelError):
        code_files(custom["base"])


def test_damaged_maps_name_no_code(custom):
    for value in (None, 3, "x", [1, None], {"AutoConfig": {"a": 1}}, {"AutoConfig": "../../x.Y"}):
        edit(custom["base"] / "config.json", auto_map=value)
        assert code_files(custom["base"]) == ()
        place_code(custom["base"])


def test_code_is_fetched_from_the_hub_only_where_it_may_run(folders, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        asked.extend(allow_patterns)
        return str(folders["a"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert not resolve("some-org/some-model").trust_remote_code
    assert not set(asked) & set(source.CODE_PATTERNS)
    assert resolve("some-org/some-model", trust_remote_code=True).trust_remote_code
    assert set(asked) > set(source.CODE_PATTERNS)


def test_a_tokenizer_s_own_code_runs_only_if_it_is_listed(own_tokenizer, tmp_path):
    family = family_of({"base": own_tokenizer}, candidates=())
    with pytest.raises(ModelError, match=r"tokenization_tiny\.py.* list the model in family"):
        family.tokenizer("x")
    assert read_vocabulary(ModelSource(own_tokenizer, is_adapter=False)) == {}
    assert not (tmp_path / "tokenizer ran").exists()
    family = family_of({"base": own_tokenizer}, "base", candidates=())
    assert family.tokenizer.decode(family.tokenizer("a + b")["input_ids"]) == "a + b"
    assert read_vocabulary(family.source) == family.tokenizer.get_vocab()
    assert (tmp_path / "tokenizer ran").is_dir()


class Lines(TextSource):
    def documents(self):
        return ["a + b", "Anna has 3 apples."]


def test_layer_statistics_are_those_of_the_code_that_ran(custom, row, monkeypatch, tmp_path):
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    family = family_of(custom, "base", calibration=Lines(), calibration_tokens=20)
    first = LayerStatistics(family)._digest("a")
    assert LayerStatistics(family)(Statistic.FISHER, "base", "model.norm.weight") is not None
    (custom["base"] / "scaling_tiny.py").write_text("def scaled(logits, factor):\n    return -logits\n")
    assert LayerStatistics(family)._digest("a") != first
    untrusted = family_of(custom, "base", calibration=Lines())
    untrusted.sources["base"].__dict__["trust_remote_code"] = False
    assert len({first, LayerStatistics(family)._digest("a"), LayerStatistics(untrusted)._digest("a")}) == 3


def test_the_engine_scores_what_the_own_class_computes(custom, row):
    family = family_of(custom, "base")
    model = family.stitch(WITHOUT)
    request = Request(tuple(tokens(1, 12)[0].tolist()), tuple(tokens(1, 20)[0, 12:].tolist()))
    engine = Engine(family.tokenizer, CPU, max_length=64)
    scores = engine.score(model, engine.compile([request]))
    ids = torch.tensor([[*request.context, *request.continuation]])
    with torch.inference_mode():
        log_probs = model(ids).logits[0, :-1].double().log_softmax(-1)
    expected = log_probs.gather(1, ids[0, 1:, None])[len(request.context) - 1 :].sum()
    assert scores.log_likelihood[0] == pytest.approx(float(expected), rel=1e-5)


def test_merges_of_models_with_own_code(custom, row):
    family = family_of(custom, "base")
    sources = tuple(LayerSource(name, 1) for name in ("base", "a"))
    merged = LayerPlan(sources, "Linear", (("weights", (0.5, 0.5)),))
    whole = Tailoring.whole("base", LAYERS)
    tailoring = Tailoring((whole.layers[0], merged, *whole.layers[2:]))
    assert torch.isfinite(logits(family.stitch(tailoring))).all()
