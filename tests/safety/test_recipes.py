"""Recipes from elsewhere: nothing is imported, run or written that no plugin brought, and no YAML is a bomb."""

from __future__ import annotations

import importlib
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailorlib.bounded import MAX_DEPTH, MAX_TEXT, load_yaml, read_text
from tailorlib.cli import main
from tailorlib.exceptions import PluginError, RecipeError
from tailorlib.plugins import REGISTRIES, find_class
from tailorlib.recipe import check_recipe, read_recipe
from tailorlib.registry import load_plugin
from tailorlib.tailoring import Tailoring

TEXT: dict[str, Any] = {"class_path": "PydocTopics"}


@pytest.fixture(autouse=True, scope="module")
def plugins() -> None:
    for registry in REGISTRIES:
        registry.load_all()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable module that leaves a mark when it is imported: return the mark."""
    mark = tmp_path / "imported"
    (tmp_path / "unasked_module.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from tailorlib.text import TextSource\nfrom tailorlib.optimizer import Optimizer\n"
        "class Own(TextSource):\n    def documents(self): return ['x']\n"
        "def function(*args, **kwargs): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "unasked_module", raising=False)
    yield mark
    sys.modules.pop("unasked_module", None)


def perplexity(text: Any) -> dict[str, Any]:
    return {"class_path": "Perplexity", "init_args": {"text": text}}


def callback(name: str, **settings: Any) -> dict[str, Any]:
    return {"trainer": {"callbacks": [{"class_path": name, "init_args": settings}]}}


LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
OWN = "unasked_module.Own"
PLACES = {
    "a section as a text": {"optimizer": OWN},
    "a section": {"optimizer": {"class_path": OWN, "init_args": {"x": 1}}},
    "a section as YAML in a text": {"optimizer": f"{{class_path: {OWN}}}"},
    "lines in a text": {"fitness": f"class_path: {OWN}\ninit_args: {{}}\n"},
    "a list": {"warm_starts": [OWN]},
    "a list of mappings": {"objectives": [{"class_path": OWN}]},
    "a setting as a text": {"fitness": perplexity(OWN)},
    "a setting": {"fitness": perplexity({"class_path": OWN})},
    "a setting as YAML": {"fitness": perplexity(f"{{class_path: {OWN}}}")},
    "a mapping of settings": {
        "fitness": {"class_path": "WeightedMean", "init_args": {"parts": {"a": perplexity(OWN)}}}
    },
    "a mapping of texts": {"fitness": {"class_path": "WeightedMean", "init_args": {"parts": {"a": OWN}}}},
    "a dataclass": {
        "family": {"class_path": "FineTunedFamily", "init_args": {"base": "b", "variants": {"v": {"text": OWN}}}}
    },
    "free keywords": {"fitness": {**perplexity(TEXT), "dict_kwargs": {"a": {"class_path": OWN}}}},
    "a fixed section": {"validation": {"fitness": perplexity(OWN)}},
    "the trainer": callback(OWN),
    "a function of the trainer": callback(LAMBDA, setup="unasked_module.function"),
    "a function of a short name": callback("LambdaCallback", setup="unasked_module.function"),
    "the trainer as YAML": {"trainer": {"callbacks": f"[{{class_path: {OWN}}}]"}},
    "a logger": {"trainer": {"logger": {"class_path": OWN}}},
    "inside an unknown class": {"optimizer": {"class_path": "Nowhere", "init_args": {"a": {"class_path": OWN}}}},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_class_of_no_plugin_is_refused_and_not_imported(place: str, module: Path) -> None:
    faults = check_recipe(PLACES[place])
    assert faults and any("unasked_module" in f or "written as a text" in f for f in faults)
    assert not module.exists()


@pytest.mark.parametrize("place", ["a setting", "a mapping of settings", "the trainer", "a section as a text"])
def test_the_command_line_refuses_it_too(
    place: str, module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(PLACES[place]))
    assert main(["search", "--config", str(tmp_path / "recipe.yaml")]) == 2
    told = "".join(capsys.readouterr())
    assert "unasked_module" in told
    assert not module.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "os.path.join", "subprocess.Popen", "subprocess.run", "builtins.eval", "shutil.rmtree"),
        *("pathlib.Path", "torch.load", "importlib.import_module", "yaml.unsafe_load", "tailorlib.recipe.Path"),
        *("tailorlib.plugins.importlib.import_module", "tailorlib.files.os.system", "tailorlib_strategies.x.Y"),
        *(
            "tailorlib.search.trainer.TailorTrainer",
            "tailorlib.files.write_text",
            "tailorlib..x",
            ".x",
            "x.",
            "a\0.b",
        ),
    ],
)
def test_find_class_gives_plugins_alone(name: str) -> None:
    with pytest.raises(PluginError):
        find_class(name)
    assert check_recipe({"optimizer": {"class_path": name}})


def test_a_class_that_the_user_named_is_taken(module: Path, tmp_path: Path) -> None:
    load_plugin("unasked_module")
    assert module.exists()
    assert check_recipe({"fitness": perplexity({"class_path": OWN})}) == []
    assert find_class(OWN) is importlib.import_module("unasked_module").Own


def test_what_recipes_need_is_taken() -> None:
    environment = "lightning.pytorch.plugins.environments.SLURMEnvironment"
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs/a.b"}}
    trainer = {"logger": [logger], "plugins": [{"class_path": environment, "init_args": {"auto_requeue": False}}]}
    data = {
        "trainer": {**trainer, "strategy": "auto"},
        "fitness": perplexity("PydocTopics"),
        "optimizer": "RandomSearch",
    }
    assert check_recipe(data) == []
    assert (
        check_recipe(
            {
                "fitness": perplexity(
                    {
                        "class_path": "tailorlib_strategies.texts.files.PlainText",
                        "init_args": {"path": "some.dotted.txt"},
                    }
                )
            }
        )
        == []
    )


@pytest.mark.parametrize("name", ["", ".x", "no such", "a\0b", "os..path"])
def test_a_plugin_that_is_no_module_is_told(name: str) -> None:
    with pytest.raises(PluginError, match="importable module"):
        load_plugin(name)


# YAML


def read(text: str | bytes, folder: Path) -> dict[str, Any]:
    file = folder / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_recipe(file)


def test_a_key_given_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'trials' twice, in study, in the lines 2 and 4 of .* Keep one"):
        read("study:\n  trials: 3\n  seed: 1\n  trials: 4\n", tmp_path)
    with pytest.raises(RecipeError, match="'study' twice, in the lines 1 and 2"):
        read("study: {}\n'study': {}\n", tmp_path)
    with pytest.raises(RecipeError, match=r"'a' twice, .*in the lines 1 and 1"):
        read("x: [{y: {a: 1, a: 2}}]", tmp_path)


def test_anchors_and_merge_keys_are_read(tmp_path: Path) -> None:
    text = "a: &x {k: 1, l: 2}\nb: *x\nc: {<<: *x, k: 3}\nd: {<<: [*x, {m: 4}]}\n"
    assert read(text, tmp_path) == yaml.safe_load(text)
    recipe = Path(__file__).parents[2] / "recipes" / "paper-llama-2-13b.yaml"
    assert read_recipe(recipe) == yaml.safe_load(recipe.read_text())


NINE = ", ".join(["x"] * 9)
BOMBS = {
    "laughs": "\n".join(
        [f"a0: &a0 [{NINE}]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    ),
    "merges": "\n".join(
        ["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60))]
    ),
    "itself": "a: &a [*a]",
    "itself by a key": "a: &a {b: *a}",
    "itself by a merge": "a: &a {<<: *a}",
    "deep flow": "a: " + "[" * 100_000,
    "deep mappings": "{a: " * 100_000,
    "deep blocks": "- " * 100_000,
    "deep indents": "\n".join(" " * i + "a:" for i in range(2000)),
    "wide": "a: [" + "," * 2_000_000 + "]",
    "long": "a: " + "x" * 100_000,
    "large": "# x\n" * (MAX_TEXT // 4 + 1),
    "digits": "a: " + "9" * 9000,
    "python": "a: !!python/object/apply:os.system ['true']",
    "python name": "a: !!python/name:os.system",
    "surrogate": 'a: "\\ud800"',
    "surrogate key": '"\\udfff": 1',
    "date": "a: 2001-99-99",
    "binary": "a: !!binary '\u00e9'",
    "two": "a: 1\n---\nb: 2\n",
    "undefined": "a: *b",
    "unhashable": "{[a]: 1, {b: 1}: 2}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_text_is_refused_at_once(name: str, tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(RecipeError) as caught:
        read(BOMBS[name], tmp_path)
    assert time.process_time() - started < 20 and len(str(caught.value)) < 2000
    with pytest.raises(RecipeError):
        Tailoring.from_yaml(BOMBS[name])


def test_a_bomb_takes_no_memory() -> None:
    tracemalloc.start()
    for name in ("laughs", "merges"):
        with pytest.raises(RecipeError):
            load_yaml(BOMBS[name], "It")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6


def test_the_depth_that_is_allowed() -> None:
    assert load_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "It") is not None
    with pytest.raises(RecipeError, match="levels"):
        load_yaml("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "It")


@pytest.mark.parametrize("path", ["no/such", "a\0b", "."])
def test_files_that_can_not_be_read_are_told(path: str) -> None:
    with pytest.raises(RecipeError, match=r"The recipe .* can't be read"):
        read_recipe(path)
    with pytest.raises(RecipeError, match=r"The tailoring file .* can't be read"):
        Tailoring.load(path)


def test_a_file_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="it is a device and no file"):
        read_text("/dev/zero", "recipe")
    with (tmp_path / "sparse.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RecipeError, match="at most 8,000,000 bytes are read"):
        read_text(tmp_path / "sparse.yaml", "recipe")


def test_text_that_is_no_utf_8_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="can't be read"):
        read(b"a: \xff", tmp_path)
