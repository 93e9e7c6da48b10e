"""The hook that makes the reference pages, as a module for tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

HOOK = Path(__file__).parents[2] / "docs" / "hooks" / "generated.py"


@pytest.fixture(scope="session")
def generated() -> ModuleType:
    """The module ``docs/hooks/generated.py``."""
    spec = importlib.util.spec_from_file_location("tailorlib_docs_generated", HOOK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
