"""What every test is held to: no network, and no trace in the global random generators.

Tests also keep the tables of ``docs/reference/``: a test records what it found with the fixture ``evidence``, and
``pytest --write-reference`` writes it behind the mark in ``docs/reference/TABLE.md``. A row or column that ran and
that the committed page lacks fails the run.

Tests run in several processes (``make test``, pytest-xdist): each has one thread, and a cache of its own.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each, before torch counts them
    os.environ["OMP_NUM_THREADS"] = "1"

import random
import resource
import socket
from collections.abc import Generator, Iterator
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


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests convert and train is kept apart from the user's cache and from that of other test processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAILORLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes longest begin first: else one process works on it when the others have nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node: Any) -> None:
    """Take over what the tests of a worker found."""
    for table, rows in getattr(node, "workeroutput", {}).get("evidence", {}).items():
        for row, cells in rows.items():
            EVIDENCE.record(table, row, **cells)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker: the process that started it looks at all together
        session.config.workeroutput["evidence"] = EVIDENCE.tables
        return
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
    for name in (name for name, cost in COSTS.items() if cost > CPU_BUDGET):
        session.config.get_terminal_writer().line(
            f"{name} takes {COSTS[name]:.0f} s of CPU; a test without the mark slow may take {CPU_BUDGET:.0f}."
        )
        session.exitstatus = 1


CPU_BUDGET = 60.0
"""Seconds of CPU that a test without the mark ``slow`` may take; wall time would depend on what else runs."""
MOST = 10
"""How many of the most expensive tests are listed."""
COSTS: dict[str, float] = {}
BEFORE = pytest.StashKey[float]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[BEFORE] = _cpu()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "teardown":
        report.cpu = _cpu() - item.stash[BEFORE]
        report.is_slow = item.get_closest_marker("slow") is not None
    return report


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "teardown" and not report.is_slow:
        COSTS[report.nodeid] = report.cpu


def pytest_terminal_summary(terminalreporter: Any) -> None:
    dearest = sorted(COSTS.items(), key=lambda item: -item[1])[:MOST]
    if len(COSTS) > MOST:
        terminalreporter.section(f"{sum(COSTS.values()):.0f} s of CPU in {len(COSTS)} tests, most of it in")
        for name, cost in dearest:
            terminalreporter.write_line(f"{cost:6.1f} s  {name}")


def _cpu() -> float:
    """Return the CPU time of this process and of its children that ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": repr(np.random.get_state(legacy=False)),  # noqa: NPY002
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
