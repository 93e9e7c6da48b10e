"""A few cases of each class of faults; ``make proof`` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest
from proof_bench import Bench
from proof_cases import spread
from proof_classes import CLASSES

FEW = {"journals": 9, "kept results": 3, "hostile models": 6, "recipes": 2}
"""Classes whose cases need no process of their own, and how many are run."""
SLOW = {"kills": 5, "full disks": 6, "signals": 6, "plugins": 4}
"""Those that start processes."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def check(name: str, count: int, bench: Bench, folder: Path) -> None:
    for i, case in enumerate(spread(CLASSES[name](bench).cases(), count)):
        (folder / str(i)).mkdir()
        case.check(folder / str(i))


@pytest.mark.parametrize("name", FEW)
def test_some_faults_of_a_class(name: str, bench: Bench, tmp_path: Path) -> None:
    check(name, FEW[name], bench, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_some_faults_of_a_class_with_processes(name: str, bench: Bench, tmp_path: Path) -> None:
    check(name, SLOW[name], bench, tmp_path)


def test_every_class_is_sampled_and_has_cases_of_different_names(bench: Bench) -> None:
    assert {*FEW, *SLOW} <= set(CLASSES)
    for cls in CLASSES.values():
        cases = cls(bench).cases()
        assert len({case.name for case in cases}) == len(cases)
        assert sum(case.faults for case in cases) >= 100
