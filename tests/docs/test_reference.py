"""What the documentation says can be imported can be, from where it says; and it says so of every public name."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import tailorlib

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
PAGES = sorted([*DOCS.glob("write-*.md"), *(DOCS / "reference").glob("*.md")])
_ENTRY = re.compile(r"^::: (tailorlib[\w.]+)\n(?:    options:\n      members: \[([^\]]+)\])?", flags=re.MULTILINE)


def entries(page: str) -> dict[str, str]:
    """Return the names that a reference page describes, each with its module."""
    found: dict[str, str] = {}
    for path, members in _ENTRY.findall(page):
        module, _, name = path.rpartition(".")
        names = [name] if not members else [member.strip() for member in members.split(",")]
        found |= dict.fromkeys(names, path if members else module)
    return found


def test_the_reference_and_the_package_have_the_same_names() -> None:
    public = entries(REFERENCE.partition("\n## ")[0])
    assert set(public) == set(tailorlib.__all__) - {"__version__"}


def test_every_name_of_the_reference_is_one_thing_wherever_it_is_imported_from() -> None:
    for name, module in entries(REFERENCE).items():
        described = getattr(importlib.import_module(module), name)
        assert getattr(tailorlib, name, described) is described


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_dotted_name_on_a_page_exists(page: Path) -> None:
    for dotted in set(re.findall(r"`(tailorlib(?:\.\w+)+)`", page.read_text(encoding="utf-8"))):
        assert _exists(dotted), dotted


def test_the_contract_tests_are_all_offered() -> None:
    testing, contracts = (importlib.import_module(f"tailorlib.testing{end}") for end in ("", ".contracts"))
    checks = {name for name in vars(contracts) if name.startswith("check_")}
    assert checks == {name for name in testing.__all__ if name.startswith("check_")}
    page = (DOCS / "write-a-plugin.md").read_text(encoding="utf-8")
    assert [name for name in sorted(checks) if f"`{name}`" not in page] == []


def _exists(dotted: str) -> bool:
    module, _, name = dotted.rpartition(".")
    if dotted in _groups():
        return True
    try:
        return hasattr(importlib.import_module(module), name) or bool(importlib.import_module(dotted))
    except ImportError:
        return False


def _groups() -> set[str]:
    from tailorlib.plugins import REGISTRIES

    return {registry.group for registry in REGISTRIES}
