"""Every covered architecture: built, exported, reloaded and generated with, against models composed by hand."""

from __future__ import annotations

import copy
import json
import random
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
import torch
from model_cases import CASES, CPU, LAYERS, logits, plan, tokens
from model_oracle import Oracle, layer_list, load
from safetensors import safe_open

from tailorlib.exceptions import ModelError, RecipeError
from tailorlib.export import export_model
from tailorlib.models.architecture import layer_kinds
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import LayerPlan, PartPlan, Tailoring
from tailorlib.testing.tiny import write_tiny_family

TABLE = "architectures"
SEEDS = range(2)
MODELS = ("base", "a", "b")
POST_NORMS = {
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma3_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
"""Modules whose outputs are added to the residual stream, where it isn't attention and MLP themselves."""
TASK_VECTORS = "TaskArithmetic"
FOLD = "LayerFolding"


@dataclass
class Subject:
    """One architecture's tiny family."""

    case: str
    root: Path

    @cached_property
    def folders(self) -> dict[str, Path]:
        return write_tiny_family(self.root / "float32", num_layers=LAYERS, **CASES[self.case])

    @cached_property
    def family(self) -> ModelFamily:
        return loaded(self.folders, "float32")

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.folders)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        return layer_kinds(self.family.config)

    @property
    def model_type(self) -> str:
        return CASES[self.case]["model_type"]

    def in_bfloat16(self) -> dict[str, Path]:
        folders = {name: self.root / "bfloat16" / name for name in MODELS}
        for name, model in self.oracle.models.items():
            copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folders[name])
        return folders

    def peer(self, layer: int) -> int:
        """Return the nearest other layer of the same kind, or the layer itself where there is none."""
        others = [j for j in range(LAYERS) if j != layer and self.kinds[j] == self.kinds[layer]]
        return min(others, key=lambda j: (abs(j - layer), j), default=layer)


def loaded(folders: dict[str, Path], dtype: str) -> ModelFamily:
    family = ModelFamily(str(folders["base"]), {n: str(folders[n]) for n in folders if n != "base"}, dtype=dtype)
    family.load(CPU)
    return family


@pytest.fixture(scope="module", params=CASES)
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp(request.param))


def selections(subject: Subject, rng: random.Random) -> list[LayerPlan]:
    """Some layers of any model, in an order of their own."""
    kept = sorted(rng.sample(range(LAYERS), rng.randint(3, LAYERS - 1)))
    plans = [plan(f"{rng.choice(MODELS)}:{i}") for i in kept]
    i, j = rng.sample(range(len(plans)), 2)
    plans[i], plans[j] = plans[j], plans[i]
    return plans


def merges(subject: Subject, rng: random.Random) -> list[LayerPlan]:
    """Merges of models and of depths, with a base and without, one with another plan for its attention."""
    i, j, k = rng.sample(range(LAYERS), 3)
    task = plan(f"a:{i}", f"b:{i}", operation=TASK_VECTORS, base=f"base:{subject.peer(i)}")
    mean = plan(f"base:{j}", f"b:{subject.peer(j)}", operation="Linear")
    parted = replace(plan(f"a:{k}"), parts=((attention(subject), plan(f"a:{k}", f"b:{k}", operation="Linear")),))
    return [task, plan(f"base:{LAYERS - 1}"), mean, parted]


def folds(subject: Subject, rng: random.Random) -> list[LayerPlan]:
    """Every layer folded with its nearest one of the same kind."""
    kept = rng.sample([i for i in range(LAYERS) if subject.peer(i) != i], 2)
    model = rng.choice(MODELS)
    folded = [plan(f"{model}:{i}", f"{model}:{subject.peer(i)}", operation=FOLD) for i in sorted(kept)]
    return [plan("base:0"), *folded, plan(f"a:{LAYERS - 1}")]


def duplicates(subject: Subject, rng: random.Random) -> list[LayerPlan]:
    """Layers in several places, taken as they are and merged."""
    i, j = rng.sample(range(LAYERS), 2)
    merged = plan(f"a:{j}", f"b:{j}", operation="Linear")
    return [plan(f"a:{i}"), merged, plan(f"a:{i}"), plan(f"a:{i}"), merged, plan(f"base:{i}")]


def everything(subject: Subject, seed: int) -> Tailoring:
    """A tailoring of all of these, scaled, with merged parts outside the layers."""
    rng = random.Random(seed)
    plans = [*merges(subject, rng), *folds(subject, rng)[1:3], *duplicates(subject, rng)[:3]]
    plans[1] = replace(plans[1], attention_scale=0.7, mlp_scale=1.3)
    plans[2] = replace(plans[2], mlp_scale=0.6)
    rng.shuffle(plans)
    return Tailoring(tuple(plans), **outer(rng), seed=seed)


def outer(rng: random.Random) -> dict[str, str | PartPlan]:
    """What gives the parts outside the layers: models, and merges of them."""
    mean = PartPlan(("a", "b"), "Linear", plan("a:0", "b:0", operation="Linear").params)
    owners = [*MODELS, mean]
    return {name: rng.choice(owners) for name in ("embeddings", "norm", "head")}


def attention(subject: Subject) -> str:
    """The name of the attention inside a layer."""
    layer = subject.oracle.base.get_submodule(subject.oracle.layers)[0]
    return next(name for name, module in layer.named_children() if hasattr(module, "layer_idx"))


@pytest.mark.parametrize(
    ("column", "build"),
    [("removal, selection", selections), ("merge", merges), ("folding", folds), ("duplicates", duplicates)],
)
def test_the_stitched_model_is_the_one_composed_by_hand(subject, column, build, evidence):
    whole = logits(subject.oracle.base)
    for seed in SEEDS:
        rng = random.Random(seed)
        tailoring = Tailoring(tuple(build(subject, rng)), **outer(rng), seed=seed)
        live = logits(subject.family.stitch(tailoring))
        assert torch.equal(live, logits(subject.oracle.model(tailoring)))
        assert (live - whole).abs().max() > 0.1 * whole.std()
    evidence.record(TABLE, subject.case, **{column: "equal"})


def test_scales_multiply_what_a_branch_adds(subject, evidence):
    whole = Tailoring.whole("a", LAYERS, without=[2])
    kinds = [subject.kinds[p.sources[0].layer] for p in whole.layers]
    changed = [kinds.index(kind) for kind in dict.fromkeys(kinds)]  # a layer of each kind
    worst = 0.0
    for scales in ((0.7, 1.3), (0.0, 1.0), (1.0, 0.0), (-0.5, 2.0)):
        layers = list(whole.layers)
        for i in changed:
            layers[i] = replace(layers[i], attention_scale=scales[0], mlp_scale=scales[1])
        live = logits(subject.family.stitch(replace(whole, layers=tuple(layers))))
        plain = logits(model := subject.family.stitch(whole))
        expected = with_hooks(subject, model, changed, scales)
        assert (expected - plain).abs().max() > 0.01 * plain.std()
        worst = max(worst, ((live - expected).abs().max() / plain.std()).item())
    assert worst < 2e-5
    evidence.record(TABLE, subject.case, scales=f"{worst:.0e}")


def with_hooks(subject, model, changed, scales):
    """Return the logits of a model with the branches of some layers multiplied as they run."""
    branches = POST_NORMS.get(subject.model_type, (attention(subject), "mlp"))
    layers = model.get_submodule(layer_list(model))
    hooks = [
        layers[i].get_submodule(branch).register_forward_hook(multiplier(factor))
        for i in changed
        for branch, factor in zip(branches, scales, strict=True)
    ]
    found = logits(model)
    for hook in hooks:
        hook.remove()
    return found


def multiplier(factor):
    def hook(module, args, output):
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    return hook


@pytest.mark.parametrize("tied", [True, False])
def test_heads_tied_to_the_embeddings_and_heads_of_their_own(subject, tied, tmp_path, evidence):
    folders, oracle, family = subject.folders, subject.oracle, subject.family
    if tied != family.config.tie_word_embeddings:
        settings = {**CASES[subject.case], "tie_word_embeddings": tied}
        folders = write_tiny_family(tmp_path / "family", candidates=1, num_layers=LAYERS, **settings)
        oracle, family = Oracle(folders), loaded(folders, "float32")
    tailoring = replace(Tailoring.whole("base", LAYERS, without=[1]), embeddings="a", head="base")
    model = family.stitch(tailoring)
    live = logits(model)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert torch.equal(live, logits(oracle.model(tailoring)))
    with safe_open(export_model(family, tailoring, tmp_path / "out") / "model.safetensors", "pt") as file:
        assert bool({"lm_head.weight", "embed_out.weight"} & set(file.keys())) == (not tied)
    assert torch.equal(logits(load(tmp_path / "out")), live)
    evidence.record(TABLE, subject.case, **{"tied" if tied else "untied": "equal"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_export_is_the_stitched_model(subject, dtype, tmp_path, evidence):
    family = subject.family if dtype == "float32" else loaded(subject.in_bfloat16(), dtype)
    for seed in SEEDS if dtype == "float32" else (2,):
        tailoring = everything(subject, seed)
        live = logits(family.stitch(tailoring))
        folder = export_model(family, tailoring, tmp_path / str(seed))
        model = load(folder, getattr(torch, dtype))
        assert torch.equal(logits(model), live)
        assert model.num_parameters() == family.num_parameters(tailoring)
        model.save_pretrained(tmp_path / "again")
        written, ours = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "again", folder))
        # transformers writes its default of what makes a pattern; an export has none where the pattern is gone
        made_anew = {"_sliding_window_pattern", "no_rope_layer_interval"} - ours.keys()
        assert ours == {key: value for key, value in written.items() if key not in made_anew}
    evidence.record(TABLE, subject.case, **{f"export {dtype}": "equal"})


def test_generation_with_a_cache_is_generation_without(subject, evidence):
    ids = tokens(1, 12)  # longer than the windows
    settings = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "output_logits": True}
    settings |= {"attention_mask": torch.ones_like(ids), "return_dict_in_generate": True}
    worst = 0.0
    for seed in SEEDS:
        # float64, as norms of small numbers make much of the rounding of another order of sums
        model = copy.deepcopy(subject.family.stitch(everything(subject, seed))).double()
        if subject.family.architecture.experts is not None:
            model.set_experts_implementation("eager")  # the grouped product has no float64
        cached, plain = (model.generate(ids, use_cache=cache, **settings) for cache in (True, False))
        assert torch.equal(cached.sequences, plain.sequences)
        worst = max(worst, (torch.stack(cached.logits) - torch.stack(plain.logits)).abs().max().item())
    assert worst < 1e-6
    evidence.record(TABLE, subject.case, KV_cache=f"{worst:.0e}" if worst else "equal")


def test_layers_keep_what_their_sources_have(subject, tmp_path):
    tailoring = everything(subject, 0)
    live = subject.family.stitch(tailoring)
    reloaded = load(export_model(subject.family, tailoring, tmp_path / "out"))
    sources = subject.oracle.base.get_submodule(subject.oracle.layers)
    for model in (live, reloaded):
        layers = model.get_submodule(layer_list(model))
        assert len(layers) == model.config.num_hidden_layers == len(tailoring.layers)
        for i, (layer, kept) in enumerate(zip(layers, tailoring.layers, strict=True)):
            assert settings_of(layer) == settings_of(sources[kept.sources[0].layer])
            assert {m.layer_idx for m in layer.modules() if hasattr(m, "layer_idx")} == {i}
        kept = [plan.sources[0].layer for plan in tailoring.layers]
        assert layer_kinds(model.config) == tuple(subject.kinds[i] for i in kept)


def settings_of(layer):
    """Return every plain attribute of a layer and the modules in it: windows, types, switches."""
    return {
        (name, type(module).__name__, key): value
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if key != "layer_idx" and key[0] != "_" and isinstance(value, str | int | float | bool | None)
    }


def test_layers_of_two_kinds_do_not_mix(subject, tmp_path, evidence):
    other = next((i for i in range(LAYERS) if subject.kinds[i] != subject.kinds[0]), None)
    if other is None:
        evidence.record(TABLE, subject.case, donor_of_another_kind="one kind only")
        return
    pair = ("a:0", f"b:{other}")
    mixed = [plan(*pair, operation="Linear"), plan("a:0", "b:0", operation=TASK_VECTORS, base=f"base:{other}")]
    mixed.append(replace(plan("a:0"), parts=((attention(subject), plan(f"a:{other}")),)))
    for mixture in mixed:
        with pytest.raises(ModelError, match="Layers of one type can be merged"):
            subject.family.check(Tailoring((mixture,)))
    evidence.record(TABLE, subject.case, donor_of_another_kind="refused")


def test_a_wrong_order_of_kinds_would_show(subject, tmp_path):
    """Kinds that tensors don't tell make a difference here, and a candidate that has them elsewhere is refused."""
    config = json.loads((subject.folders["a"] / "config.json").read_text())
    lists = [n for n in ("layer_types", "no_rope_layers") if len(set(config.get(n, []))) > 1]
    folder = tmp_path / "other"
    for name in lists:
        shutil.copytree(subject.folders["a"], folder, dirs_exist_ok=True)
        turned = {**config, name: config[name][::-1]}
        (folder / "config.json").write_text(json.dumps(turned))
        assert not torch.allclose(logits(load(folder)), logits(subject.oracle.models["a"]), atol=1e-2)
        with pytest.raises(RecipeError, match="layers of other types than the base's"):
            loaded({"base": subject.folders["base"], "other": folder}, "float32")
