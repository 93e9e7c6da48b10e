"""What every test is held to: no network, and no trace in the global random generators.

Tests also keep the tables of ``docs/reference/``: a test records what it found with the fixture ``evidence``, and
``pytest --write-reference`` writes it behind the mark in ``docs/reference/TABLE.md``. A row or column that ran and
that the committed page lacks fails the run.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nevergrad  # noqa: F401  (its import draws from the global generators: let it be before any test)
import numpy as np
import pytest
import torch

from tailorlib import registry


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in {"localhost", "127.0.0.1", "::1", socket.gethostname()}:
            raise RuntimeError(f"Tests run offline; this one connects to {address}.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def global_randomness_untouched() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = _states()
    yield
    changed = [name for name, state in _states().items() if state != before[name]]
    assert not changed, f"The test drew from the global random generator of {', '.join(changed)}."


@pytest.fixture(autouse=True, scope="module")
def plugins_forgotten() -> Iterator[None]:
    """What tests name with ``--plugins`` is no plugin in the next file."""
    before = set(registry._named_modules)
    yield
    registry._named_modules.clear()
    registry._named_modules.update(before)


REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
MARK = "<!-- Written by the tests: make reference -->"


class Evidence:
    """What tests found, by table, row and column."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, dict[str, str]]] = {}

    def record(self, table: str, row: str, **cells: object) -> None:
        """Note cells of a row; a column's name is given with ``_`` for a space."""
        found = self.tables.setdefault(table, {}).setdefault(row, {})
        found.update({name.replace("_", " "): str(value) for name, value in cells.items()})

    def text(self, table: str) -> str:
        rows = self.tables[table]
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines = [["", *columns], ["---"] * (len(columns) + 1)]
        lines += [[row, *(cells.get(column, "") for column in columns)] for row, cells in sorted(rows.items())]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def lacking(self, table: str) -> list[str]:
        """Return rows and columns that ran and that the committed page doesn't show."""
        page = REFERENCE / f"{table}.md"
        _, _, written = (page.read_text(encoding="utf-8") if page.exists() else "").partition(MARK)
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written.strip().splitlines()]
        columns, rows = (lines[0] if lines else []), [line[0] for line in lines[2:]]
        ran = self.tables[table]
        missing = [row for row in ran if row not in rows]
        return missing + sorted({column for cells in ran.values() for column in cells} - set(columns))


EVIDENCE = Evidence()


@pytest.fixture(scope="session")
def evidence() -> Evidence:
    """Collects the reference tables."""
    return EVIDENCE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-reference", action="store_true", help="write the tables of docs/reference/")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    for table in EVIDENCE.tables:
        if session.config.getoption("--write-reference"):
            page = REFERENCE / f"{table}.md"
            head, _, _ = page.read_text(encoding="utf-8").partition(MARK)
            page.write_text(f"{head}{MARK}\n\n{EVIDENCE.text(table)}\n", encoding="utf-8")
        elif lacking := EVIDENCE.lacking(table):
            session.config.get_terminal_writer().line(
                f"docs/reference/{table}.md lacks {', '.join(lacking)}: run make reference"
            )
            session.exitstatus = 1


def _states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": repr(np.random.get_state(legacy=False)),  # noqa: NPY002
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
