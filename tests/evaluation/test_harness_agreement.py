"""lm-eval's own tasks over random tailorings: log-likelihoods, greedy flags and metrics are simple_evaluate's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_oracles import FULL, SLIDING
from harness_tasks import SCORED, answers_of, metrics_of, simple_evaluate, write_harness_tasks
from model_cases import random_tailoring

from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.requests import TaskRequests
from tailorlib.evaluation.tasks import TaskSettings
from tailorlib.models.family import ModelFamily
from tailorlib.testing.tiny import write_tiny_family

CPU = torch.device("cpu")
TASKS = [*SCORED, {"task": "tiny_mmlu", "num_fewshot": 5}]
MAX_LENGTH = 900
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "llama": (3, {}),
    "qwen2": (1, {}),
    "gemma3_text": (1, {"sliding_window": 16, "layer_types": [SLIDING, SLIDING, FULL] * 2}),
    "gpt_neox": (1, {}),
}
"""Number of random tailorings and config values by model type."""


@pytest.mark.parametrize("model_type", MODELS)
def test_scores_flags_and_metrics_are_those_of_simple_evaluate(
    model_type: str, tmp_path: Path, kept_randomness: Callable[[], AbstractContextManager[None]]
) -> None:
    tailorings, config = MODELS[model_type]
    folders = write_tiny_family(tmp_path / "family", model_type=model_type, max_position_embeddings=1024, **config)
    family = ModelFamily(str(folders["base"]), {n: str(folders[n]) for n in "ab"}, dtype="float32")
    family.load(CPU)
    tasks = str(write_harness_tasks(tmp_path / "tasks"))
    plain = Engine(family.tokenizer, CPU, MAX_LENGTH, packing=False)
    packed = Engine(family.tokenizer, CPU, MAX_LENGTH)
    ours = TaskRequests(TASKS, packed, TaskSettings(include_path=tasks))
    assert len(ours.tasks) == len(SCORED) + 2
    shared, alone = packed.compile(ours.requests), plain.compile(ours.requests)
    assert shared.tokens < 0.6 * alone.tokens
    for seed in range(tailorings):
        model = family.stitch(random_tailoring(family, seed))
        scores = packed.score(model, shared)
        found = ours.evaluate(scores)
        assert shared.packed
        results = simple_evaluate(
            model, family.tokenizer, list(SCORED), tasks, MAX_LENGTH, kept_randomness(), log_samples=True
        )
        few_shot = simple_evaluate(
            model, family.tokenizer, ["tiny_mmlu"], tasks, MAX_LENGTH, kept_randomness(), num_fewshot=5
        )
        results["samples"] |= few_shot["samples"]
        results["results"] |= few_shot["results"]
        for name, task in ours.tasks.items():
            theirs = answers_of(results, name)
            assert len(theirs) == len(task.instances) >= 4
            for (log_likelihood, greedy), instance in zip(theirs, task.instances, strict=True):
                answer = instance.resps[0]
                if greedy is None:
                    assert answer == pytest.approx(log_likelihood, abs=1e-3)
                else:
                    assert answer[0] == pytest.approx(log_likelihood, abs=1e-3)
                    assert answer[1] == greedy
        expected = metrics_of(results)
        assert set(found.metrics) == set(expected)
        for name, value in expected.items():
            counted = "/acc" in name
            assert found.metrics[name] == (value if counted else pytest.approx(value, rel=1e-5)), name
        # with packing off: the same choices, which is what the accuracies count
        again = ours.evaluate(plain.score(model, alone))
        counts = {name: value for name, value in found.metrics.items() if "/acc" in name}
        assert counts == {name: again.metrics[name] for name in counts}
        torch.testing.assert_close(
            plain.score(model, alone).log_likelihood, scores.log_likelihood, atol=1e-3, rtol=0
        )
