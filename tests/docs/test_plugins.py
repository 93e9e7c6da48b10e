"""The plugins that the tutorial shows: they are short, keep the contracts, and do what they say."""

from __future__ import annotations

import ast
import importlib
import io
import tokenize
from pathlib import Path

import pytest
import torch
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout, MergeOperation, Optimizer, Params, SearchSpace, Trial
from tailorlib.recipe import check_recipe, read_recipe
from tailorlib.registry import OPERATIONS, OPTIMIZERS, load_plugin

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
