from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tailorlib import Fitness, MergeOperation, Operation, registry
from tailorlib.exceptions import PluginError
from tailorlib.fitness import FITNESS
from tailorlib.operation import OPERATIONS
from tailorlib.optimizer import OPTIMIZERS
from tailorlib.registry import Registry, load_plugin
from tailorlib.search_space import SEARCH_SPACES

MIDPOINT = """
from tailorlib import MergeOperation

class {name}(MergeOperation):
    def merge(self, tensors, *, base, params, generators):
        return sum(tensors) / len(tensors)
"""


@pytest.fixture(autouse=True)
def forget_local_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_named_modules", set())
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("tailorlib_local_"):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", [OPERATIONS, OPTIMIZERS, SEARCH_SPACES], ids=lambda r: r.group)
def test_every_built_in_plugin_can_be_imported_and_is_of_its_kind(kind: Registry) -> None:
    plugins = kind.load_all()
    assert plugins
    assert all(issubclass(cls, kind.kind) and cls.__name__ == name for name, cls in plugins.items())


def test_an_unknown_name_suggests_the_close_one() -> None:
    with pytest.raises(PluginError, match=r"called 'TaskArithmetics'\. Did you mean 'TaskArithmetic'"):
        OPERATIONS.get("TaskArithmetics")


def test_an_unknown_name_without_a_close_one_lists_what_there_is() -> None:
    with pytest.raises(PluginError, match=r"Known: .*Nevergrad, .*RandomSearch, .*StructuredBayes"):
        OPTIMIZERS.get("zzzz")


def test_a_file_of_the_users_own_gives_plugins(tmp_path: Path) -> None:
    load_plugin(write(tmp_path, "mine.py", MIDPOINT.format(name="MyMidpoint")))
    assert "MyMidpoint" in OPERATIONS.names()
    assert issubclass(OPERATIONS.get("MyMidpoint"), MergeOperation)
    assert OPERATIONS.get("MyMidpoint").name == "MyMidpoint"


def test_a_file_named_twice_is_imported_once(tmp_path: Path) -> None:
    path = write(tmp_path, "twice.py", MIDPOINT.format(name="Twice"))
    load_plugin(path)
    first = OPERATIONS.get("Twice")
    load_plugin(path)
    assert OPERATIONS.get("Twice") is first


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    load_plugin(write(tmp_path / "a", "ops.py", MIDPOINT.format(name="FromA")))
    load_plugin(write(tmp_path / "b", "ops.py", MIDPOINT.format(name="FromB")))
    assert {"FromA", "FromB"} <= set(OPERATIONS.names())


def test_a_module_gives_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a_plugin_module.py", MIDPOINT.format(name="OfModule"))
    monkeypatch.syspath_prepend(tmp_path)
    load_plugin("a_plugin_module")
    assert "OfModule" in OPERATIONS.names()


def test_classes_that_nobody_named_are_no_plugins() -> None:
    class Stray(Operation):
        pass

    assert "Stray" not in OPERATIONS.names()


def test_a_file_that_takes_a_built_ins_name_is_refused(tmp_path: Path) -> None:
    load_plugin(write(tmp_path, "again.py", MIDPOINT.format(name="TIES")))
    with pytest.raises(PluginError, match=r"TIES of .*again.py is also in tailorlib_strategies.operations:TIES"):
        OPERATIONS.get("TIES")


def test_two_files_that_claim_one_name_are_refused(tmp_path: Path) -> None:
    load_plugin(write(tmp_path / "a", "x.py", MIDPOINT.format(name="Contested")))
    load_plugin(write(tmp_path / "b", "y.py", MIDPOINT.format(name="Contested")))
    with pytest.raises(PluginError, match="Plugin names are unique; Contested"):
        OPERATIONS.names()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "failed: ZeroDivisionError"),
        ("def (", "failed: SyntaxError"),
        ("import no_such_module_at_all", "failed: ModuleNotFoundError"),
    ],
)
def test_a_file_that_fails_is_named_with_its_error(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "broken.py", text)
    for _ in range(2):  # nothing half-imported stays behind
        with pytest.raises(PluginError, match=rf"broken.py' {message}"):
            load_plugin(path)


@pytest.mark.parametrize(("spec", "message"), [("no/such.py", "no file"), ("no_such_module_x", "No module named")])
def test_a_plugin_that_is_not_there_is_named(spec: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        load_plugin(spec)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("Gone", "tailorlib_strategies.nowhere:Gone"), "can't be imported"),
        (("Missing", "tailorlib_strategies.operations:Missing"), "can't be imported"),
        (("TIES", "tailorlib_strategies.operations:TIES"), "is a Fitness, got"),
    ],
)
def test_a_broken_entry_point_is_named(
    entry: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = EntryPoint(*entry, group=FITNESS.group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    with pytest.raises(PluginError, match=message):
        Registry(Fitness, FITNESS.group).get(entry[0])


def test_an_entry_point_has_the_name_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    alias = EntryPoint("Ties", "tailorlib_strategies.operations:TIES", OPERATIONS.group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [alias])
    with pytest.raises(PluginError, match="one name"):
        Registry(Operation, OPERATIONS.group).get("Ties")


def test_two_packages_that_claim_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [EntryPoint("TIES", f"package_{i}:TIES", OPERATIONS.group) for i in "ab"]
    monkeypatch.setattr(registry, "entry_points", lambda group: claims)
    with pytest.raises(PluginError, match="package_a:TIES and package_b:TIES"):
        Registry(Operation, OPERATIONS.group).names()
