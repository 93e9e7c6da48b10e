"""The plugins that the tutorial shows: they are short, keep the contracts, and do what they say."""

from __future__ import annotations

import ast
import importlib
import io
import json
import tokenize
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import (
    FamilyLayout,
    LayerPlan,
    LayerSource,
    Measurement,
    MergeOperation,
    Optimizer,
    Params,
    SearchSpace,
    Tailoring,
    Trial,
    WarmStartContext,
)
from tailorlib.cli import main
from tailorlib.compensation import COMPENSATIONS
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import RecipeError
from tailorlib.fitness import FITNESS
from tailorlib.journal import read_trials
from tailorlib.models.family import ModelFamily
from tailorlib.objective import OBJECTIVES, Candidate
from tailorlib.operation import OPERATIONS
from tailorlib.optimizer import OPTIMIZERS
from tailorlib.plugins import REGISTRIES
from tailorlib.recipe import check_recipe, read_recipe
from tailorlib.registry import load_plugin
from tailorlib.scheduler import SCHEDULERS
from tailorlib.search_space import SEARCH_SPACES
from tailorlib.seeding import numpy_generator
from tailorlib.testing.contracts import fake_trial
from tailorlib.testing.tiny import write_tiny_family, write_tiny_model
from tailorlib.warm_start import WARM_STARTS

DOCS = Path(__file__).parents[2] / "docs"
PLUGINS = sorted((DOCS / "plugins").glob("*.py"))


def load(stem: str) -> None:
    load_plugin(str(DOCS / "plugins" / f"{stem}.py"))


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings; an import is one, however long."""
    source = path.read_text(encoding="utf-8")
    skipped = {
        tokenize.NL,
        tokenize.COMMENT,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            lines -= set(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def median() -> MergeOperation:
    load("median_merge")
    cls = OPERATIONS.get("Median")
    assert issubclass(cls, MergeOperation)
    return cls()


def tabu_search() -> Optimizer:
    load("tabu_search")
    return OPTIMIZERS.get("TabuSearch")()


SHOWN_ON = {
    "evenly": "write-other-plugins",
    "few_models": "write-other-plugins",
    "first_choice": "write-a-fitness",
    "louder_seams": "write-other-plugins",
    "median_merge": "write-an-operation",
    "one_cut": "write-a-search-space",
    "qualifying": "write-other-plugins",
    "tabu_search": "write-an-optimizer",
    "text_folder": "write-other-plugins",
    "training_run": "write-other-plugins",
}
"""The page that shows each plugin."""


def test_there_is_a_plugin_of_every_kind() -> None:
    assert [p.stem for p in PLUGINS] == list(SHOWN_ON)
    for path in PLUGINS:
        load(path.stem)
    own = {registry.group for registry in REGISTRIES for cls in registry.load_all().values() if is_local(cls)}
    assert own == {registry.group for registry in REGISTRIES}


def is_local(cls: type) -> bool:
    return any(cls.__module__.startswith(f"tailorlib_local_{path.stem}_") for path in PLUGINS)


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: p.stem)
def test_a_plugin_takes_few_lines_of_code(path: Path) -> None:
    assert code_lines(path) < (35 if path.stem == "one_cut" else 30)


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: p.stem)
def test_a_plugin_uses_public_names_only(path: Path) -> None:
    imports = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    public = set(importlib.import_module("tailorlib").__all__)
    modules = {node.module: {alias.name for alias in node.names} for node in imports if node.module}
    assert modules.get("tailorlib", set()) <= public
    assert not [module for module in modules if module.startswith("tailorlib_")]
    for module, names in modules.items():
        assert not any(part.startswith("_") for part in (*module.split("."), *names))
        if module.startswith("tailorlib."):
            assert not names & public, f"{names & public} is in tailorlib itself"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: p.stem)
def test_a_page_includes_the_file_instead_of_repeating_it(path: Path) -> None:
    page = DOCS / f"{SHOWN_ON[path.stem]}.md"
    assert f'--8<-- "docs/plugins/{path.name}"' in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "expected"),
    [((3.0, 9.0, 5.0), 1.0 + 0.5 * 4.0), ((3.0, 9.0), 1.0 + 0.5 * 5.0), ((2.0, 4.0, 6.0, 100.0), 1.0 + 0.5 * 4.0)],
)
def test_median_is_the_middle_task_vector(values: tuple[float, ...], expected: float) -> None:
    tensors = [torch.full((2, 3), v) for v in values]
    merged = median().apply(
        tensors, base=torch.ones(2, 3), params={"scale": 0.5}, generators=[torch.Generator() for _ in values]
    )
    assert torch.equal(merged, torch.full((2, 3), expected))


def test_qualifying_sends_only_leaders_on() -> None:
    load("qualifying")
    scheduler = SCHEDULERS.get("Qualifying")()
    scheduler.setup(samples=40, least=1, budget=10.0)
    space = paper_space()
    first = fake_trial(space, space.sample(numpy_generator("docs")), number=0)
    sent = []
    for number, fitness in enumerate((0.5, 0.4, 0.6)):
        assert scheduler.start() == 10
        scheduler.tell(replace(first, number=number, fitness=fitness, samples=10, fidelity=0.25))
        sent.append([p.samples for p in scheduler.promote(4)])
    assert sent == [[40], [], [40]]


def test_one_cut_counts_its_tailorings() -> None:
    load("one_cut")
    space = SEARCH_SPACES.get("OneCut")()
    space.setup(FamilyLayout(("a", "b"), 6, ("full_attention",) * 6))
    ranges = [range(1, 4), space.layout.models, space.layout.models]
    every = {space.decode(dict(zip(space.distributions(), p, strict=True))).digest for p in product(*ranges)}
    assert len(every) == space.size().discrete == 27
    assert {len(space.decode(space.sample(numpy_generator("docs", i))).layers) for i in range(20)} == {4}


def test_one_cut_refuses_two_cuts() -> None:
    load("one_cut")
    space = SEARCH_SPACES.get("OneCut")()
    space.setup(FamilyLayout(("a",), 6, ("full_attention",) * 6))
    two = Tailoring(tuple(LayerPlan((LayerSource("base", i),)) for i in (0, 2, 3, 5)))
    with pytest.raises(RecipeError, match="one run of 2 layers"):
        space.encode(two)


def test_first_choice_counts_what_plain_logits_say(tmp_path: Path) -> None:
    load("first_choice")
    family = ModelFamily(str(write_tiny_model(tmp_path / "base", num_layers=2)), dtype="float32")
    family.prepare()
    family.load(torch.device("cpu"))
    engine = Engine(family.tokenizer, device=torch.device("cpu"), max_length=64, tokens_per_batch=256)
    fitness = FITNESS.get("FirstChoice")(["The opposite of hot is cold.", "def add(a, b)", "Anna has 3 apples."])
    fitness.setup(engine)
    model = family.stitch(Tailoring.whole("base", 2))
    ids = [family.tokenizer(text, return_tensors="pt")["input_ids"] for text in fitness.sentences]
    with torch.inference_mode():
        right = sum(int((model(i).logits[:, :-1].argmax(-1) == i[:, 1:]).sum()) for i in ids)
    assert fitness.evaluate(model).score == pytest.approx(right / sum(i.shape[1] - 1 for i in ids))


def test_few_models_counts_models() -> None:
    load("few_models")
    plans = [LayerPlan((LayerSource(name, i),)) for i, name in enumerate(("base", "a", "a", "base"))]
    candidate = Candidate(Tailoring(tuple(plans)), Measurement(0.0), cast(Any, None), cast(Any, None))
    assert OBJECTIVES.get("FewModels")().score(candidate) == 0.5


def test_louder_seams_scales_what_stands_below_a_gap() -> None:
    load("louder_seams")
    compensation = COMPENSATIONS.get("LouderSeams")(gain=0.5)
    layout = FamilyLayout((), 6, ("full_attention",) * 6)
    compensation.prepare(cast(Any, SimpleNamespace(family=SimpleNamespace(layout=layout))))
    completed = compensation.complete(Tailoring.whole("base", 6, without=[2, 3, 5]))
    assert [plan.mlp_scale for plan in completed.layers] == [1.0, 2.0, 1.5]


def test_evenly_spreads_what_goes() -> None:
    load("evenly")
    layout = FamilyLayout(("a",), 9, ("full_attention",) * 9)
    context = WarmStartContext(cast(Any, SimpleNamespace(layout=layout)), cast(Any, None), cast(Any, None), seed=3)
    (found,) = WARM_STARTS.get("Evenly")(count=2).propose(context)
    assert [plan.sources[0].layer for plan in found.layers] == [0, 1, 2, 4, 5, 7, 8]


def paper_space() -> SearchSpace:
    space = PruningSpace(LayerRemoval(ratio=0.25), merges=[TaskArithmetic()])
    space.setup(FamilyLayout(("a", "b"), 12, ("full_attention",) * 12))
    return space


def all_from_a(params: Params) -> float:
    """A fitness with a known best, 9: each of the nine kept layers is a's alone."""
    sign = {"a": 1.0, "b": -1.0}
    return sum(sign.get(name.rpartition(".")[2], 0.0) for name, value in params.items() if value == 1)


def search(optimizer: Optimizer, space: SearchSpace, trials: int) -> list[Trial]:
    optimizer.setup(space, seed=0)
    done: list[Trial] = []
    for number in range(trials):
        params = optimizer.ask()
        done.append(Trial(number, params, space.decode(params), "complete", all_from_a(params)))
        optimizer.tell(done[-1])
    return done


def test_tabu_search_tries_nothing_twice() -> None:
    trials = search(tabu_search(), paper_space(), 60)
    assert len({t.tailoring.digest for t in trials}) == 60


def test_tabu_search_finds_the_best() -> None:
    best = max(search(tabu_search(), paper_space(), 200), key=lambda t: -t.loss)
    assert best.fitness == 9.0


def test_tabu_search_survives_failed_trials() -> None:
    optimizer, space = tabu_search(), paper_space()
    optimizer.setup(space, seed=0)
    for number in range(3):
        params = optimizer.ask()
        optimizer.tell(Trial(number, params, space.decode(params), "failed", None, reason="out of memory"))
    good = optimizer.ask()
    optimizer.tell(Trial(3, good, space.decode(good), "complete", 1.0))
    changed = {k for k, v in optimizer.ask().items() if good.get(k) != v}
    assert changed


def test_the_recipe_lines_of_the_tutorial_are_accepted() -> None:
    data = read_recipe(DOCS / "plugins" / "recipe.yaml")
    for plugin in data["plugins"]:
        load_plugin(str(DOCS.parent / plugin))
    assert check_recipe(data) == []


def test_both_plugins_take_part_in_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = write_tiny_family(tmp_path, num_layers=4)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    lines = yaml.safe_load((DOCS / "plugins" / "recipe.yaml").read_text(encoding="utf-8"))
    lines["search_space"]["init_args"]["merges"] = [{"class_path": "Median"}]
    text = {"class_path": "PlainText", "init_args": {"path": str(tmp_path / "text.txt")}}
    recipe = {
        **lines,
        "plugins": [str(DOCS.parent / plugin) for plugin in lines["plugins"]],
        "family": {
            "class_path": "ModelFamily",
            "init_args": {
                "base": str(folders["base"]),
                "candidates": {name: str(path) for name, path in folders.items() if name != "base"},
                "dtype": "float32",
            },
        },
        "fitness": {
            "class_path": "Perplexity",
            "init_args": {"text": text, "context_length": 64, "max_tokens": 128},
        },
        "study": {"directory": str(tmp_path / "run"), "trials": 6, "export": False},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "logger": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):  # Lightning's data loader draws a seed
        status = main(["search", "--config", str(tmp_path / "recipe.yaml")])
    assert status == 0, capsys.readouterr().err
    _, trials = read_trials(tmp_path / "run")
    assert [t.state for t in trials] == ["complete"] * 6
    assert {plan.operation for t in trials for plan in t.tailoring.layers} == {"LayerSelection", "Median"}


def test_the_other_plugins_take_part_in_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(DOCS / "plugins" / "more.yaml")
    base = write_tiny_model(tmp_path / "models" / "base")
    for seed, step in enumerate((200, 1000), start=1):
        write_tiny_model(tmp_path / "models" / "training" / f"checkpoint-{step}", seed=seed, noise_from=base)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    recipe["plugins"] = [str(DOCS.parent / plugin) for plugin in recipe["plugins"]]
    recipe["study"] = {"directory": "run", "trials": 6, "export": False}
    recipe["trainer"] = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):  # Lightning's data loader draws a seed
        status = main(["search", "--config", "recipe.yaml"])
    assert status == 0, capsys.readouterr().err
    _, trials = read_trials(tmp_path / "run")
    assert {t.samples for t in trials} == {2, 8}
    assert {model for t in trials for model in t.tailoring.models} <= {"base", "step200", "step1000"}
    assert all(1 / t.objectives["FewModels"] == len(set(t.tailoring.models)) for t in trials)
    rows = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert "Evenly" in json.dumps(rows)
