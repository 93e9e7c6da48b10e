"""The plugins that the tutorial shows: they are short, keep the contracts, and do what they say."""

from __future__ import annotations

import ast
import importlib
import io
import tokenize
from pathlib import Path

import pytest
import torch
import yaml
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout, MergeOperation, Optimizer, Params, SearchSpace, Trial
from tailorlib.cli import main
from tailorlib.journal import read_trials
from tailorlib.operation import OPERATIONS
from tailorlib.optimizer import OPTIMIZERS
from tailorlib.recipe import check_recipe, read_recipe
from tailorlib.registry import load_plugin
from tailorlib.testing.tiny import write_tiny_family

DOCS = Path(__file__).parents[2] / "docs"
PLUGINS = sorted((DOCS / "plugins").glob("*.py"))


def load(stem: str) -> None:
    load_plugin(str(DOCS / "plugins" / f"{stem}.py"))


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
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


def test_tutorial_has_two_plugins() -> None:
    assert [p.stem for p in PLUGINS] == ["median_merge", "tabu_search"]


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: p.stem)
def test_a_plugin_takes_fewer_than_30_lines_of_code(path: Path) -> None:
    assert code_lines(path) < 30


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: p.stem)
def test_a_plugin_uses_public_names_only(path: Path) -> None:
    imports = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    names = {alias.name for node in imports if node.module == "tailorlib" for alias in node.names}
    assert names and names <= set(importlib.import_module("tailorlib").__all__)
    assert not [
        node.module for node in imports if node.module and node.module.startswith(("tailorlib.", "tailorlib_"))
    ]


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: p.stem)
def test_the_tutorial_includes_the_file_instead_of_repeating_it(path: Path) -> None:
    assert f'--8<-- "docs/plugins/{path.name}"' in (DOCS / "write-a-plugin.md").read_text(encoding="utf-8")


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


def test_median_keeps_the_contract_of_a_merge_operation() -> None:
    contracts = pytest.importorskip("tailorlib.testing.contracts")
    contracts.check_merge_operation(median())


def test_tabu_search_keeps_the_contract_of_an_optimizer() -> None:
    contracts = pytest.importorskip("tailorlib.testing.contracts")
    contracts.check_optimizer(tabu_search, paper_space())


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
