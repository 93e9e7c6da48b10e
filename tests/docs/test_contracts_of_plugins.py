"""The contract tests as the documentation shows them: run on the documentation's own plugins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tailorlib.evaluation.engine import Engine
from tailorlib.models.family import ModelFamily
from tailorlib.plugins import find_class
from tailorlib.registry import load_plugin
from tailorlib.search_space import FamilyLayout
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_model

PLUGINS = Path(__file__).parents[2] / "docs" / "plugins"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    folder = write_tiny_model(tmp_path_factory.mktemp("family") / "base", num_layers=2)
    family = ModelFamily(str(folder), dtype="float32")
    family.prepare()
    family.load(torch.device("cpu"))
    return family


def test_plugins_keep_their_contracts(family: ModelFamily) -> None:
    for name in ("median_merge", "tabu_search", "one_cut", "qualifying", "first_choice", "louder_seams"):
        load_plugin(str(PLUGINS / f"{name}.py"))
    Median, TabuSearch = find_class("Median"), find_class("TabuSearch")
    OneCut, Qualifying, FirstChoice = map(find_class, ("OneCut", "Qualifying", "FirstChoice"))
    LouderSeams = find_class("LouderSeams")
    model = family.stitch(Tailoring.whole("base", 2))
    engine = Engine(family.tokenizer, device=torch.device("cpu"), max_length=64, tokens_per_batch=256)
    sentences = ["The opposite of hot is cold.", "def add(a, b)", "Anna has 3 apples."]

    # --8<-- [start:example]
    from tailorlib.testing.contracts import (
        check_compensation,
        check_fitness,
        check_merge_operation,
        check_optimizer,
        check_scheduler,
        check_search_space,
    )

    check_merge_operation(Median())
    check_scheduler(Qualifying)

    space = OneCut(count=2)
    space.setup(FamilyLayout(candidates=("a", "b"), num_layers=12, layer_types=("full_attention",) * 12))
    check_search_space(space)
    check_optimizer(TabuSearch, space)

    fitness = FirstChoice(sentences)
    fitness.setup(engine)
    check_fitness(fitness, model, engine)
    check_compensation(LouderSeams(), family)
    # --8<-- [end:example]
