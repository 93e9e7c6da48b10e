"""A rehearsal finds what a real batch of candidates finds: which layers run, and what has to be merged."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import Nevergrad
from tailorlib_strategies.schedulers import ASHA
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib.search.evaluator import Evaluator
from tailorlib.search.plan import estimate, plan_table
from tailorlib.search.rehearsal import _Landscape, rehearse
from tailorlib.tailoring import Tailoring

TRIALS = 16


@pytest.mark.parametrize(("batch_size", "optimizer"), [(1, "DiscreteOnePlusOne"), (4, "DiscreteOnePlusOne")])
def test_what_runs_and_what_is_merged_is_what_an_evaluator_finds(
    make: Callable[..., Evaluator],
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    optimizer: str,
) -> None:
    evaluator = make(batch_size=batch_size)
    study = evaluator.study
    object.__setattr__(study, "optimizer", Nevergrad(optimizer))
    steps = rehearse(study, TRIALS, torch.float32)
    assert len(steps) == TRIALS
    landscape = _Landscape(study)
    best: Tailoring | None = None
    for start in range(0, TRIALS, batch_size):
        batch = steps[start : start + batch_size]
        outcomes = evaluator.evaluate([step.tailoring for step in batch], best)
        found: list[dict[str, Any]] = [dict(outcome.costs) for outcome in outcomes]
        assert [step.layers_run for step in batch] == [costs["layers_run"] for costs in found]
        assert [len(step.merged) for step in batch] == [costs["merges"] for costs in found]
        seen = [step.tailoring for step in steps[: start + batch_size]]
        best = max(seen, key=landscape.fitness)
    assert sum(step.layers_run for step in steps) < sum(len(step.tailoring.layers) for step in steps)


def test_the_optimizer_is_as_new_afterwards(make: Callable[..., Evaluator]) -> None:
    study = make().study
    study.optimizer.setup(study.space, 0)
    expected = [study.optimizer.ask() for _ in range(3)]
    rehearse(study, 5, torch.float32)
    assert [study.optimizer.ask() for _ in range(3)] == expected


def test_no_room_means_that_all_layers_run(make: Callable[..., Evaluator]) -> None:
    study = make(prefix_cache_mib=0).study
    assert all(step.layers_run == len(step.tailoring.layers) for step in rehearse(study, 6, torch.float32))


def test_a_scheduler_and_a_varying_number_of_layers_are_rehearsed_too(make: Callable[..., Evaluator]) -> None:
    study = make().study
    space = PruningSpace(LayerRemoval(count=[1, 4]), merges=[TaskArithmetic()])
    space.setup(study.family.layout)
    object.__setattr__(study, "space", space)
    object.__setattr__(study, "scheduler", ASHA(eta=2, min_samples=4))
    steps = rehearse(study, 24, torch.float32)
    every = study.fitness.num_samples
    rungs = {step.share * every for step in steps}
    assert (
        min(rungs) == pytest.approx(every / 2 ** round(math.log2(every / min(rungs))), abs=0.5) and len(rungs) > 1
    )
    assert len({len(step.tailoring.layers) for step in steps}) > 1
    found = estimate(study, torch.device("cpu"))
    assert found.share == pytest.approx(sum(step.share for step in rehearse(study, 48, torch.float32)) / 48)
    assert 0 < found.share < 1 and 0 <= found.reused < 1
    shown = Console(width=200, record=True, file=io.StringIO())
    shown.print(plan_table(study, torch.device("cpu")))
    text = shown.export_text()
    assert "6, of which 2 to 5 are kept" in text
    assert f"on {found.share:.0%} of the samples" in text and "100 evaluations on all samples" in text
