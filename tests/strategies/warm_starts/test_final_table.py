"""Warm starts as rows of the final table, where a tailoring needn't lie in the search space."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tailorlib_strategies.fitness import Perplexity
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.warm_starts import BlockInfluence, FullDepthMerge, LaCo, LeaveOneOut, TaylorImportance
from transformers import PreTrainedModel
from warm_start_cases import CPU, Given, less, loss, removed, token_ids

from tailorlib import WarmStart
from tailorlib.models.family import ModelFamily
from tailorlib.search.benchmark import run_benchmark
from tailorlib.search.study import Benchmark, Study


def test_every_baseline_has_its_row(folders: dict[str, Path], plain: PreTrainedModel) -> None:
    greedy = LeaveOneOut(Given(), greedy=True)
    baselines: list[WarmStart] = [
        BlockInfluence(Given()),
        LaCo(Given()),
        FullDepthMerge("TaskArithmetic", {"scale": 0.5}),
        TaylorImportance(Given()),
        greedy,
    ]
    study = Study(
        family=ModelFamily(str(folders["base"]), {n: str(folders[n]) for n in "ab"}, dtype="float32"),
        space=PruningSpace(LayerRemoval(count=2), merges=[TaskArithmetic()]),
        optimizer=RandomSearch(),
        fitness=Perplexity(Given()),
        benchmark=Benchmark(Perplexity(Given()), baselines, variants=False),
    )
    engine = study.prepare(CPU)
    study.family.load(CPU)
    with torch.inference_mode():  # as Lightning runs it
        rows = {row.name: row for row in run_benchmark(study, engine, None)}
    assert list(rows) == ["dense base", *(start.label for start in baselines)]
    sizes = {name: row.parameters for name, row in rows.items()}
    whole = sizes.pop("dense base")
    assert sizes.pop("full-depth merge (TaskArithmetic)") == whole
    assert len(set(sizes.values())) == 1 and whole > max(sizes.values())
    context = study.context(engine)
    gone = removed(greedy.propose(context)[0])
    with torch.no_grad():
        nats = float(loss(less(plain, gone), token_ids(greedy, context)))
    assert rows[greedy.label].measurement.metrics["nats_per_token"] == pytest.approx(nats, abs=1e-5)
