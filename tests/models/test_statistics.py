"""Layer statistics: their values by models that transformers loads, when they are gathered, what is cached."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from model_cases import CPU, LAYERS, logits, plan
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.errors import LiveError
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import tailorlib.models.statistics.cache as cache
from tailorlib.cli import main
from tailorlib.exceptions import DataError, ModelError, RecipeError
from tailorlib.export import export_model
from tailorlib.models.family import ModelFamily
from tailorlib.models.opening import open_base
from tailorlib.models.statistics.collect import calibration_rows
from tailorlib.operation import OPERATIONS, Statistic
from tailorlib.recipe import check_recipe
from tailorlib.tailoring import LayerPlan, PartPlan, Tailoring
from tailorlib.testing.tiny import write_tiny_family, write_tiny_model
from tailorlib.text import TextSource

GRAM, FISHER = Statistic.GRAM, Statistic.FISHER
CASES = ("llama-tied", "gemma3_text", "gpt_neox", "phi3", "cohere", "falcon-new", "mixtral", "qwen3_moe")
EXPERTS = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
}


class Sentences(TextSource):
    """Two documents, together longer than one row of a tiny model."""

    def __init__(self, word: str = "fox") -> None:
        self.word = word

    def documents(self) -> Sequence[str]:
        return [f"The quick brown {self.word} jumps over the lazy dog. " * 12, "def add(a, b): return a + b. " * 9]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names what runs through a model, in order."""
    real, calls = cache.collect, []

    def counted(kind: Statistic, model: Any, *rest: Any) -> Any:
        calls.append(f"{kind}")
        return real(kind, model, *rest)

    monkeypatch.setattr(cache, "collect", counted)
    return calls


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama family of two layers, not to be modified."""
    return write_tiny_family(tmp_path_factory.mktemp("small"), candidates=2, num_layers=2)


def family_of(folders: dict[str, Path], text: TextSource | None = None, **settings: Any) -> ModelFamily:
    candidates = {name: str(folder) for name, folder in folders.items() if name != "base"}
    settings = {"dtype": "float32", "calibration_tokens": 600, **settings}
    family = ModelFamily(str(folders["base"]), candidates, calibration=text or Sentences(), **settings)
    family.prepare()
    return family


def names_of(family: ModelFamily) -> set[str]:
    """Return the names of the tensors that every model of a family has."""
    return set(open_base(family.references["base"], trusted=False).shapes)


def find(family: ModelFamily, kind: Statistic, model: str, name: str) -> Tensor | None:
    assert family.assembly.statistics is not None
    return family.assembly.statistics(kind, model, name)


def rows_of(family: ModelFamily, length: int = 256) -> list[list[int]]:
    """The text as rows, cut by hand: every row begins with the prefix token, which also parts the documents."""
    prefix = family.tokenizer.bos_token_id
    first, second = (family.tokenizer(d)["input_ids"] for d in Sentences().documents())
    stream = [*first, prefix, *second]
    return [[prefix, *stream[i : i + length - 1]] for i in range(0, len(stream), length - 1)]


def linear_inputs(model: nn.Module, rows: list[list[int]]) -> dict[str, Tensor]:
    """Return the inputs of every linear layer over all rows, float64 [tokens, in], by module name."""
    seen: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, []).append(args[0][0].double())
            )
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    return {name: torch.cat(parts) for name, parts in seen.items()}


def layer_list(model: Any) -> str:
    number = model.config.num_hidden_layers
    return next(n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == number)


def squared_gradients(model: Any, rows: list[list[int]], prefix: int) -> dict[str, Tensor]:
    """Return the sum over the rows of each row's squared gradient, divided by its norm over all parameters."""
    parameters = dict(model.named_parameters())
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in rows:
        log_probs = model(torch.tensor([row])).logits[0].log_softmax(-1)
        likelihood = sum(log_probs[i, t] for i, t in enumerate(row[1:]) if t != prefix)
        gradients = torch.autograd.grad(likelihood, list(parameters.values()), materialize_grads=True)
        for name, gradient in zip(totals, gradients, strict=True):
            totals[name] += gradient**2
    norm = torch.cat([t.flatten().double() for t in totals.values()]).norm()
    return {name: total.double() / norm for name, total in totals.items()}


def in_files(live: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    """Return live tensors under their names in files; experts one by one."""
    found: dict[str, Tensor] = {}
    mlp, gate, up, down = EXPERTS.get(case, ("mlp", "", "", ""))
    for name, t in live.items():
        start, _, kind = name.rpartition("mlp.experts.")
        if kind == "gate_up_proj":
            for e, (g, u) in enumerate(m.chunk(2) for m in t):
                found[f"{start}{mlp}.experts.{e}.{gate}.weight"] = g
                found[f"{start}{mlp}.experts.{e}.{up}.weight"] = u
        elif kind == "down_proj":
            found |= {f"{start}{mlp}.experts.{e}.{down}.weight": m for e, m in enumerate(t)}
        else:
            name = name.replace(".mlp.", f".{mlp}.") if case in EXPERTS else name
            found["embed_out.weight" if case == "gpt_neox" and name == "lm_head.weight" else name] = t
    return found


@pytest.mark.parametrize("case", CASES)
def test_gram_is_the_mean_of_the_inputs_outer_products(case_family: Any, case: str) -> None:
    family = case_family(case, calibration=Sentences(), calibration_tokens=600)
    rows = rows_of(family)
    assert len(rows) > 1
    model = AutoModelForCausalLM.from_pretrained(family.references["a"], dtype=torch.float32)
    layers = layer_list(model)
    inputs = {n: x for n, x in linear_inputs(model, rows).items() if n.startswith(f"{layers}.")}
    names = {f"{name}.weight" for name in inputs}
    assert len(names) >= 2 * LAYERS  # two linear layers at the least
    for name, x in inputs.items():
        gram = find(family, GRAM, "a", f"{name}.weight")
        assert gram is not None
        assert gram.dtype == torch.float32
        torch.testing.assert_close(gram.double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5 * float((x**2).mean()))
    others = [n for n in family.checkpoints["a"].keys() if n not in names]  # noqa: SIM118
    assert [n for n in others if find(family, GRAM, "a", n) is not None] == []
    if case in EXPERTS:
        assert any(".experts." in name for name in others)


def test_gram_of_a_projection_by_hand(small: dict[str, Path]) -> None:
    family = family_of(small)
    model = AutoModelForCausalLM.from_pretrained(small["b"], dtype=torch.float64)
    total, count = torch.zeros(32, 32, dtype=torch.float64), 0
    for row in rows_of(family):
        hidden = model(torch.tensor([row]), output_hidden_states=True).hidden_states[1][0]
        rms = (hidden**2).mean(-1, keepdim=True).add(model.config.rms_norm_eps).sqrt()
        x = (hidden / rms * model.model.layers[1].input_layernorm.weight).detach()
        total, count = total + x.T @ x, count + len(x)
    for name in ("q_proj", "k_proj", "v_proj"):
        gram = find(family, GRAM, "b", f"model.layers.1.self_attn.{name}.weight")
        torch.testing.assert_close(gram, (total / count).float(), rtol=1e-4, atol=1e-5)


def test_projections_of_one_input_share_a_matrix_on_disk(small: dict[str, Path], cache_folder: Path) -> None:
    find(family_of(small), GRAM, "a", "model.layers.0.mlp.up_proj.weight")
    (folder,) = [f for f in (cache_folder / "statistics").iterdir() if f.is_dir()]
    stored = [name for file in folder.glob("*.safetensors") for name in load_file(file)]
    assert sorted(name.split("layers.")[1] for name in stored) == [
        f"{i}.{name}.weight"
        for i in range(2)
        for name in ("mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj", "self_attn.q_proj")
    ]


@pytest.mark.parametrize("case", CASES)
def test_fisher_is_the_normalised_sum_of_each_rows_squared_gradient(case_family: Any, case: str) -> None:
    family = case_family(case, calibration=Sentences(), calibration_tokens=600)
    model = AutoModelForCausalLM.from_pretrained(family.references["a"], dtype=torch.float32)
    expected = in_files(squared_gradients(model, rows_of(family), family.tokenizer.bos_token_id), case)
    assert set(expected) == names_of(family)
    for name, fisher in expected.items():
        found = find(family, FISHER, "a", name)
        assert found is not None
        assert found.shape == family.checkpoints["a"].tensor(name).shape
        torch.testing.assert_close(found.double(), fisher, rtol=1e-3, atol=1e-5 * float(fisher.max()))


def test_rows_follow_the_text_and_begin_with_the_prefix() -> None:
    documents = [[1, 2, 3], [], [4, 5], [6, 7, 8, 9]]
    assert calibration_rows(documents, 0, 100, 4) == [[0, 1, 2, 3], [0, 4, 5, 0], [0, 6, 7, 8], [0, 9]]
    assert calibration_rows(documents, 0, 100, 5) == [[0, 1, 2, 3, 0], [0, 4, 5, 0, 6], [0, 7, 8, 9]]
    assert calibration_rows(documents, 0, 4, 100) == [[0, 1, 2, 3, 0, 4]]
    assert calibration_rows(documents, 0, 3, 4) == [[0, 1, 2, 3]]
    assert calibration_rows([[]], 0, 3, 4) == []


def test_no_document_is_read_beyond_the_last_token() -> None:
    def documents() -> Iterator[list[int]]:
        yield [1, 2, 3]
        raise AssertionError("read on")

    assert calibration_rows(documents(), 0, 3, 8) == [[0, 1, 2, 3]]


def test_what_is_cached_is_not_gathered_again(small: dict[str, Path], gathered: list[str]) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    first = [find(family_of(small), kind, "a", name) for kind in (GRAM, FISHER)]
    assert gathered == ["gram", "fisher"]
    again = family_of(small, dtype="bfloat16")  # the evaluation's data type has no part in it
    again.load(CPU)
    for kind, before in zip((GRAM, FISHER), first, strict=True):
        assert torch.equal(find(again, kind, "a", name), before)
    assert len(gathered) == 2


def test_the_same_models_and_text_give_the_same_bits(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = []
    for run in ("one", "two"):
        monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / run))
        family = family_of(small)
        found.append([find(family, kind, "a", n) for kind in (GRAM, FISHER) for n in sorted(names_of(family))])
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_other_text_tokens_or_weights_are_gathered_anew(
    small: dict[str, Path], gathered: list[str], tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    first = find(family_of(small), GRAM, "a", name)
    assert not torch.equal(find(family_of(small, Sentences("cat")), GRAM, "a", name), first)
    assert not torch.equal(find(family_of(small, calibration_tokens=50), GRAM, "a", name), first)
    changed = write_tiny_model(tmp_path / "a", num_layers=2, seed=1, noise_from=small["base"])
    assert torch.equal(find(family_of({**small, "a": changed}), GRAM, "a", name), first)  # as it was
    assert len(gathered) == 3
    tensors = load_file(changed / "model.safetensors")
    tensors[name][0, 0] += 1.0  # its inputs stay the same: the cache may not know
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(find(family_of({**small, "a": changed}), GRAM, "a", name), first)
    assert len(gathered) == 4


def test_a_model_counts_by_its_content_and_not_by_its_name(small: dict[str, Path], gathered: list[str]) -> None:
    swapped = {"base": small["base"], "x": small["b"], "a": small["a"]}
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(find(family_of(small), GRAM, "b", name), find(family_of(swapped), GRAM, "x", name))
    assert len(gathered) == 1


@pytest.mark.parametrize("damage", ["cut", "lost", "manifest", "index"])
def test_a_damaged_cache_is_noticed_and_gathered_again(
    small: dict[str, Path], gathered: list[str], cache_folder: Path, damage: str
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    first = find(family_of(small), GRAM, "a", name).clone()
    (folder,) = [f for f in (cache_folder / "statistics").iterdir() if f.is_dir()]
    if damage == "cut":
        shard = folder / "1.safetensors"
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "lost":
        (folder / "0.safetensors").unlink()
    elif damage == "manifest":
        (folder / "tailorlib.json").write_text("[1")
    else:
        (folder / "model.safetensors.index.json").unlink()
    assert torch.equal(find(family_of(small), GRAM, "a", name), first)
    assert len(gathered) == 2


def test_many_at_once_gather_once(small: dict[str, Path], gathered: list[str]) -> None:
    families = [family_of(small) for _ in range(3)]
    threads = [threading.Thread(target=family._statistics.gather, args=([GRAM],)) for family in families]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gathered == ["gram"] * 3  # base, a and b
    assert all(find(family, GRAM, "b", "model.layers.0.mlp.up_proj.weight") is not None for family in families)


def test_an_adapter_has_the_statistics_of_the_model_it_makes(small: dict[str, Path], tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(small["base"]), lora)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "whole")
    family = family_of({"base": small["base"], "lora": tmp_path / "adapter", "whole": tmp_path / "whole"})
    name = "model.layers.1.mlp.down_proj.weight"
    for kind in (GRAM, FISHER):
        ours, theirs, base = (find(family, kind, model, name) for model in ("lora", "whole", "base"))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6 * float(theirs.max()))
        assert float((ours - base).abs().max()) > 0.01 * float(base.abs().max())


def merged(i: int, operation: str, **params: float) -> LayerPlan:
    return LayerPlan.from_dict({**plan(f"a:{i}", f"b:{i}", operation=operation).to_dict(), "params": params})


def test_a_stitched_regmean_layer_is_the_least_squares_solution(small: dict[str, Path]) -> None:
    family = family_of(small)
    family.load(CPU)
    layer = family.stitch(Tailoring((merged(1, "RegMean", alpha=1.0),))).model.layers[0]
    models = [AutoModelForCausalLM.from_pretrained(small[name]) for name in "ab"]
    inputs = [linear_inputs(model, rows_of(family)) for model in models]
    for part in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
        X = [x[f"model.layers.1.{part}"] for x in inputs]
        W = [model.model.layers[1].get_submodule(part).weight.detach().double().T for model in models]
        Y = torch.cat([x @ w for x, w in zip(X, W, strict=True)])
        best = torch.linalg.lstsq(torch.cat(X), Y).solution.T
        mean = (W[0] + W[1]).T / 2
        found = layer.get_submodule(part).weight.detach().double()
        assert float((found - best).norm()) < 0.01 * float((mean - best).norm())
    for part in ("input_layernorm", "post_attention_layernorm"):
        mean = sum(model.model.layers[1].get_submodule(part).weight for model in models) / 2
        torch.testing.assert_close(layer.get_submodule(part).weight, mean)


def test_a_stitched_fisher_layer_and_merged_embeddings(small: dict[str, Path]) -> None:
    family = family_of(small)
    family.load(CPU)
    outer = PartPlan(("a", "b"), "Fisher")
    model = family.stitch(Tailoring((merged(0, "Fisher"),), embeddings=outer, norm=outer, head=outer))
    fishers = []
    for name in "ab":
        source = AutoModelForCausalLM.from_pretrained(small[name], dtype=torch.float32)
        states = {n: t.double() for n, t in source.state_dict().items()}
        fishers.append((squared_gradients(source, rows_of(family), family.tokenizer.bos_token_id), states))
    for live, stored in (("model.layers.0.mlp.up_proj.weight",) * 2, ("model.embed_tokens.weight",) * 2):
        F = torch.stack([fisher[stored] for fisher, _ in fishers])
        theta = torch.stack([states[stored] for _, states in fishers])
        known = F.sum(0) > 1e-6 * F.max()  # the rest are float32 gradients near their rounding
        expected = torch.where(known, (F * theta).sum(0) / F.sum(0), theta.mean(0))
        found = model.state_dict()[live].double()
        assert float(known.double().mean()) > 0.05
        torch.testing.assert_close(found[known], expected[known], rtol=1e-3, atol=1e-4)
        never = F.sum(0) == 0
        assert torch.equal(found[never].float(), ((theta[0] + theta[1]) / 2).float()[never])
    assert bool((F.sum(0) == 0).any())  # embeddings of tokens that the text lacks


def test_what_is_scored_is_what_is_shipped(small: dict[str, Path], gathered: list[str], tmp_path: Path) -> None:
    tailoring = Tailoring((merged(0, "RegMean", alpha=0.7), merged(1, "Fisher")))
    family = family_of(small)
    family.load(CPU)
    live = logits(family.stitch(tailoring))
    later = family_of(small)  # an export by a process of its own
    export_model(later, tailoring, tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()), live)
    assert sorted(gathered) == ["fisher", "fisher", "gram", "gram"]


def test_gathering_within_a_stitching_or_inference_mode_leaves_the_live_model_alone(
    small: dict[str, Path],
) -> None:
    tailoring = Tailoring((plan("b:0"), merged(1, "Fisher")), embeddings="a")
    family = family_of(small)
    family.load(CPU)
    with torch.inference_mode():
        first = logits(family.stitch(tailoring)).clone()
    assert not any(p.requires_grad for p in family.stitch(tailoring).parameters())
    again = family_of(small)
    again.require([OPERATIONS.get("Fisher")()])
    again.load(CPU)
    assert torch.equal(logits(again.stitch(tailoring)), first)


def test_load_gathers_what_is_required(small: dict[str, Path], gathered: list[str]) -> None:
    family = family_of(small)
    family.require([OPERATIONS.get(name)() for name in ("TIES", "RegMean")])
    assert gathered == []
    family.load(CPU)
    assert gathered == ["gram"] * 3
    family.require([OPERATIONS.get("Fisher")()])
    family.load(CPU)
    assert gathered == ["gram"] * 3 + ["fisher"] * 3


def test_gpt2_has_no_linear_layers_to_know_the_inputs_of(case_family: Any) -> None:
    family = case_family("gpt2", calibration=Sentences(), calibration_tokens=50)
    with pytest.raises(ModelError, match=r"torch\.nn\.Linear.*'gpt2' have none"):
        find(family, GRAM, "a", "transformer.h.0.mlp.c_fc.weight")
    assert find(family, FISHER, "a", "transformer.h.0.mlp.c_fc.weight") is not None


def test_without_a_calibration_text_a_merge_is_refused(small: dict[str, Path], tmp_path: Path) -> None:
    family = ModelFamily(str(small["base"]), {n: str(small[n]) for n in "ab"}, dtype="float32")
    family.load(CPU)
    with pytest.raises(ModelError, match=r"RegMean needs layer statistics.*family\.init_args\.calibration"):
        family.stitch(Tailoring((merged(0, "RegMean", alpha=1.0),)))
    with pytest.raises(RecipeError, match=r"RegMean, Fisher needs layer statistics.*family\.init_args\.calib"):
        family.require([OPERATIONS.get(name)() for name in ("RegMean", "TIES", "Fisher")])
    family.require([OPERATIONS.get("TIES")()])


def test_a_calibration_text_that_is_missing_or_empty_is_named(small: dict[str, Path]) -> None:
    class Empty(TextSource):
        def documents(self) -> Sequence[str]:
            return [""]

    class Missing(TextSource):
        def documents(self) -> Sequence[str]:
            raise DataError("no such text")

    with pytest.raises(DataError, match="no such text"):
        family_of(small, Missing()).require([OPERATIONS.get("Fisher")()])
    with pytest.raises(DataError, match="at least one token"):
        find(family_of(small, Empty()), GRAM, "a", "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(RecipeError, match=r"family\.calibration_tokens is a whole number from 1 to .*, got 0"):
        family_of(small, calibration_tokens=0)


def test_a_full_disk_is_told_and_leaves_nothing(
    small: dict[str, Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(ModelError, match=r"gram statistics of 'a' take .* MB.*No space left.*TAILORLIB_CACHE"):
        find(family_of(small), GRAM, "a", "model.layers.0.mlp.up_proj.weight")
    assert [f for f in (cache_folder / "statistics").iterdir() if f.is_dir()] == []


def test_a_bar_counts_the_rows_and_may_start_beside_a_spinner(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, screen = "model.layers.0.mlp.up_proj.weight", StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr("tailorlib.console.console", terminal)
    find(family_of(small), GRAM, "a", name)
    assert "gram of a" in screen.getvalue()
    assert "/2" in screen.getvalue()
    with terminal.status("Loading ..."):
        assert find(family_of(small), GRAM, "b", name) is not None

    def busy(_: Any) -> None:
        raise LiveError("Only one live display may be active at once")

    monkeypatch.setattr(Progress, "start", busy)  # rich before 14.1
    assert find(family_of(small), FISHER, "a", name) is not None


@pytest.fixture
def recipe(small: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "text.txt").write_text(" ".join(Sentences().documents()), encoding="utf-8")
    text = {"class_path": "PlainText", "init_args": {"path": str(tmp_path / "text.txt")}}
    family = {"base": str(small["base"]), "candidates": {n: str(small[n]) for n in "ab"}, "dtype": "float32"}
    fitness = {"text": text, "context_length": 64, "max_tokens": 128}
    removal = {"class_path": "LayerRemoval", "init_args": {"count": 0}}
    return {
        "family": {
            "class_path": "ModelFamily",
            "init_args": {**family, "calibration": text, "calibration_tokens": 100},
        },
        "search_space": {
            "class_path": "PruningSpace",
            "init_args": {"removal": removal, "merges": ["RegMean", "Fisher"]},
        },
        "optimizer": "RandomSearch",
        "fitness": {"class_path": "Perplexity", "init_args": fitness},
        "study": {"directory": str(tmp_path / "run"), "trials": 6},
        "trainer": {"accelerator": "cpu"},
    }


def write(recipe: dict[str, Any], folder: Path) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(folder / "recipe.yaml")


def test_a_search_gathers_before_its_first_trial(
    recipe: dict[str, Any], tmp_path: Path, gathered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = ModelFamily.stitch
    monkeypatch.setattr(
        ModelFamily, "stitch", lambda self, t: (order.append(f"after {len(gathered)}"), real(self, t))[1]
    )
    assert main(["search", "--config", write(recipe, tmp_path)]) == 0
    assert set(order) == {"after 6"}  # two statistics of three models
    trials = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    used = {plan.get("operation") for t in trials if t["kind"] == "trial" for plan in t["tailoring"]["layers"]}
    assert {"RegMean", "Fisher"} <= used
    assert len(gathered) == 6  # the export too took what was there


def test_the_page_shows_a_recipe_that_is_accepted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "layer-statistics.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    assert set(shown) == {"family", "search_space"}
    assert check_recipe(shown) == []


def test_a_recipe_without_calibration_is_refused_with_its_other_faults(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del recipe["family"]["init_args"]["calibration"]
    recipe["fitness"]["init_args"]["text"] = {"class_path": "PlainText", "init_args": {"path": "no-such.txt"}}
    assert main(["search", "--config", write(recipe, tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "has 2 faults" in message
    assert "RegMean, Fisher needs layer statistics" in message
    assert "'no-such.txt'" in message
    assert not (tmp_path / "run").exists()
