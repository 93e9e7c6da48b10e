from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace
from transformers import AutoModelForCausalLM, PreTrainedModel
from warm_start_cases import CPU, in_space

from tailorlib import WarmStartContext
from tailorlib.evaluation.engine import Engine
from tailorlib.models.family import ModelFamily
from tailorlib.testing.tiny import write_tiny_family


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base of 6 layers and three fine-tunes of it."""
    return write_tiny_family(tmp_path_factory.mktemp("family"), candidates=3, num_layers=6)


@pytest.fixture(scope="session")
def context(folders: dict[str, Path]) -> WarmStartContext:
    """The base and two candidates; two of the upper five layers go."""
    return context_of(folders, "ab")


@pytest.fixture(scope="session")
def three(folders: dict[str, Path]) -> WarmStartContext:
    """The same with three candidates."""
    return context_of(folders, "abc")


@pytest.fixture
def plain(folders: dict[str, Path]) -> PreTrainedModel:
    """The base as transformers loads it: what the tests calculate with, tailorlib aside."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folders["base"], attn_implementation="eager")
    return model.eval()


def context_of(folders: dict[str, Path], names: str) -> WarmStartContext:
    family = ModelFamily(str(folders["base"]), {n: str(folders[n]) for n in names}, dtype="float32")
    family.load(CPU)
    space = PruningSpace(LayerRemoval(count=2, protect=[0]), merges=[TaskArithmetic()])
    context = WarmStartContext(family, space, Engine(family.tokenizer, CPU, 256, state_bytes=1 << 26), seed=7)
    return in_space(context, space)
