"""Every registered plugin keeps its contract; what is skipped is skipped by a declared capability."""

from __future__ import annotations

import inspect

import pytest
import torch
from tailorlib_strategies.operations import TIES, LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import StructuredBayes
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.texts import ArithmeticProblems

from tailorlib import MergeOperation, Operation, Optimizer, SearchSpace
from tailorlib.calibration.mixture import Calibration
from tailorlib.compensation import COMPENSATIONS
from tailorlib.models.family import ModelFamily
from tailorlib.models.terms import keep_terms
from tailorlib.operation import OPERATIONS
from tailorlib.optimizer import OPTIMIZERS
from tailorlib.scheduler import SCHEDULERS
from tailorlib.search_space import SEARCH_SPACES
from tailorlib.testing.contracts import (
    LAYOUT,
    check_compensation,
    check_merge_operation,
    check_optimizer,
    check_scheduler,
    check_search_space,
)
from tailorlib.testing.tiny import write_tiny_family

OPERATION_CLASSES = OPERATIONS.load_all()
SETTINGS = {
    "LayerRemoval": {"count": 2},
    "PruningSpace": {"removal": LayerRemoval(count=2)},
    "FoldingSpace": {"removal": LayerRemoval(count=2)},
    "ParEGO": {"optimizer": StructuredBayes()},
}
"""What a plugin's ``__init__`` can't do without."""


def small_space() -> SearchSpace:
    space = PruningSpace(LayerRemoval(count=2), merges=[TaskArithmetic(), TIES()])
    space.setup(LAYOUT)
    return space


@pytest.mark.parametrize("name", [n for n, c in OPERATION_CLASSES.items() if issubclass(c, MergeOperation)])
def test_merge_operation_keeps_its_contract(name: str) -> None:
    check_merge_operation(OPERATION_CLASSES[name]())


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    folders = write_tiny_family(tmp_path_factory.mktemp("family"), num_layers=6)
    found = ModelFamily(str(folders["base"]), {name: str(folders[name]) for name in "ab"}, dtype="float32")
    found.load(torch.device("cpu"))
    keep_terms(found, folders["base"].parent, cached=True)
    return found


@pytest.mark.parametrize("name", COMPENSATIONS.names())
def test_compensation_keeps_its_contract(name: str, family: ModelFamily) -> None:
    calibration = Calibration({"arithmetic": ArithmeticProblems()}, tokens=800, context_length=32)
    check_compensation(COMPENSATIONS.get(name)(calibration=calibration), family)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", OPERATIONS.names())
def test_operation_has_the_name_of_its_class_and_a_docstring(name: str) -> None:
    cls: type[Operation] = OPERATION_CLASSES[name]
    assert cls.name == cls.__name__ == name
    assert inspect.getdoc(cls)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_optimizer_keeps_its_contract(name: str) -> None:
    cls: type[Optimizer] = OPTIMIZERS.get(name)
    space = small_space()
    if "conditional" not in cls.supports or "subset" not in cls.supports:
        pytest.skip(f"{name} declares support for {sorted(cls.supports)} only")
    check_optimizer(lambda: cls(**SETTINGS.get(name, {})), space)
    varying = PruningSpace(LayerRemoval(count=[1, 4]), merges=[TaskArithmetic()])
    varying.setup(LAYOUT)
    check_optimizer(lambda: cls(**SETTINGS.get(name, {})), varying, trials=8)


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_scheduler_keeps_its_contract(name: str) -> None:
    check_scheduler(SCHEDULERS.get(name))


@pytest.mark.parametrize("name", SEARCH_SPACES.names())
def test_search_space_keeps_its_contract(name: str) -> None:
    check_search_space(SEARCH_SPACES.get(name)(**SETTINGS.get(name, {})))
