"""lm-eval's documents as samples: a measurement of the first ones, continued, shared out; and its signals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_tasks import metrics_of, simple_evaluate
from tailorlib_strategies.fitness import LMEval

from tailorlib.evaluation.documents import Document, signals_of
from tailorlib.evaluation.engine import CompiledRequests, Engine, Scores
from tailorlib.evaluation.generation import Generator
from tailorlib.evaluation.packing import Request
from tailorlib.evaluation.requests import TaskRequests
from tailorlib.evaluation.tasks import TaskSettings
from tailorlib.exceptions import DataError, EvaluationError, RecipeError
from tailorlib.testing.contracts import check_fitness

CPU = torch.device("cpu")
KINDS = ["tiny_group", "tiny_mutual", "tiny_last_word", "tiny_text", "tiny_generation"]
SHORT = {"max_gen_toks": 5}
SAMPLED = {"max_gen_toks": 5, "do_sample": True, "temperature": 1.5}
Keep = Callable[[], AbstractContextManager[None]]


def ready(tokenizer: Any, tasks: str, names: list[Any] = KINDS, engine: Any = None, **settings: Any) -> LMEval:
    fitness = LMEval(names, include_path=tasks, gen_kwargs=settings.pop("gen_kwargs", SHORT), **settings)
    fitness.setup(engine or Engine(tokenizer, CPU, 200))
    return fitness


def chosen(fitness: LMEval, samples: int) -> dict[str, list[int]]:
    """Return lm-eval's numbers of the first samples' documents, in its order."""
    found: dict[str, list[int]] = {}
    for task, number in fitness._samples.documents[:samples]:
        found.setdefault(task, []).append(number)
    return {task: sorted(numbers) for task, numbers in found.items()}


@pytest.mark.parametrize("gen_kwargs", [SHORT, SAMPLED], ids=["greedy", "sampled"])
def test_documents_of_every_kind_are_samples(tiny: Callable[..., Any], tasks: str, gen_kwargs: Any) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    fitness = LMEval(KINDS, include_path=tasks, gen_kwargs=gen_kwargs)
    check_fitness(fitness, model, Engine(tokenizer, CPU, 200))
    assert fitness.num_samples == 6 + 3 + 6 + 3 + 3 + 3
    assert fitness.min_samples == 6


@pytest.mark.parametrize("samples", [6, 13, 23])
def test_the_first_samples_are_measured_as_lm_eval_does(
    tiny: Callable[..., Any], tasks: str, kept_randomness: Keep, samples: int
) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    fitness = ready(tokenizer, tasks)
    found = fitness.evaluate(model, samples)
    documents = chosen(fitness, samples)
    expected = simple_evaluate(
        *(model, tokenizer, KINDS, tasks, 200, kept_randomness()), samples=documents, gen_kwargs=SHORT
    )
    signals = {name: v for name, v in found.metrics.items() if name.endswith(("/probability", "/margin"))}
    metrics = {name: v for name, v in found.metrics.items() if name not in signals}
    assert "tiny_group/acc" in metrics
    assert metrics == pytest.approx(metrics_of(expected), rel=1e-5)
    counts = {name: v for name, v in metrics.items() if name.endswith(("/acc", "/acc_norm", "/exact_match"))}
    assert counts == {name: metrics_of(expected)[name] for name in counts}
    # the tasks are whole again
    assert [len(t.instances) for t in fitness._tasks.tasks.values()] == [18, 6, 36, 3, 3, 3]
    whole = fitness.evaluate(model)
    assert whole == fitness.evaluate(model)
    assert whole.metrics != found.metrics


def test_all_samples_give_what_all_requests_give(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    engine = Engine(tokenizer, CPU, 200)
    ours = TaskRequests(KINDS, engine, TaskSettings(include_path=tasks, gen_kwargs=SHORT))
    direct = ours.evaluate(engine.score(model, engine.compile(ours.requests)), ours.generate(model))
    found = ready(tokenizer, tasks).evaluate(model)
    for metric, value in direct.metrics.items():
        counted = metric.endswith(("/acc", "/acc_norm", "/exact_match"))
        assert found.metrics[metric] == (value if counted else pytest.approx(value, rel=1e-5)), metric
    for task, value in direct.probability.items():
        assert found.metrics[f"{task}/probability"] == pytest.approx(value, rel=1e-5)
    samples = ready(tokenizer, tasks)._samples
    # the very same log-likelihoods give the very same metrics, in whatever order the documents come
    scores = engine.score(model, engine.compile(ours.requests))
    values, flags = scores.log_likelihood.tolist(), scores.greedy.tolist()
    texts = ours.generate(model)
    results = []
    for task, number in samples.documents:
        instances = ours.instances_of(task, number)
        if ours.generates(task):
            results.append([texts[id(instance)] for instance in instances])
            continue
        own = [ours.requests_of(instance) for instance in instances]
        results.append([[sum(values[i] for i in one), all(flags[i] for i in one)] for one in own])
    assert samples.measure(results) == ours.evaluate(scores, texts)


def test_the_order_depends_on_the_seed_alone(tiny: Callable[..., Any], tasks: str) -> None:
    tokenizer = tiny()[1]
    names = ["tiny_choice", "tiny_last_word"]
    first = ready(tokenizer, tasks, names)._samples.documents
    again = ready(tokenizer, tasks, names, engine=Engine(tokenizer, CPU, 100, packing=False))._samples.documents
    others = [ready(tokenizer, tasks, names, order_seed=seed)._samples.documents for seed in (1, 2)]
    assert first == again
    assert any(other != first for other in others)
    for order in (first, *others):
        assert sorted(order) == [
            *(("tiny_choice", i) for i in range(6)),
            *(("tiny_last_word", i) for i in range(3)),
        ]
        assert [task for task, _ in order] == [*("tiny_choice", "tiny_last_word", "tiny_choice") * 3]
    # other tasks beside it change nothing in a task's own order
    beside = ready(tokenizer, tasks, ["tiny_text", *names])._samples.documents
    assert [d for d in beside if d[0] == "tiny_choice"] == [d for d in first if d[0] == "tiny_choice"]


def test_what_was_scored_is_never_scored_again(
    tiny: Callable[..., Any], tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    scored: list[Request] = []
    written: list[int] = []
    score, generate = Engine.score, Generator.generate

    def count_scored(self: Engine, model: Any, compiled: CompiledRequests) -> Scores:
        scored.extend(compiled.requests)
        return score(self, model, compiled)

    def count_written(self: Generator, model: Any, instances: Any = None) -> Any:
        written.extend(id(instance) for instance in instances)
        return generate(self, model, instances)

    monkeypatch.setattr(Engine, "score", count_scored)
    monkeypatch.setattr(Generator, "generate", count_written)
    fitness = ready(tokenizer, tasks)
    for stretch in (range(8), range(8, 15), range(15, 24)):
        fitness.score_samples(model, stretch)
    assert sorted(map(repr, scored)) == sorted(map(repr, fitness._tasks.requests))
    assert sorted(written) == sorted(id(i) for i in fitness._tasks.tasks["tiny_generation"].instances)


def test_a_sampled_text_depends_on_its_document_alone(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    names = [{"task": "tiny_generation", "repeats": 2}]
    fitness = ready(tokenizer, tasks, names, gen_kwargs=SAMPLED)
    together = fitness.score_samples(model, range(3))
    assert together == [fitness.score_samples(model, [i])[0] for i in range(3)]
    assert together == fitness.score_samples(model, [2, 0, 1])[1:] + fitness.score_samples(model, [2])
    assert len({text for ((first, second),) in together for text in (first, second)}) > 3
    other = ready(tokenizer, tasks, names, gen_kwargs=SAMPLED, torch_random_seed=5)
    assert together != other.score_samples(model, range(3))


def test_few_samples_are_refused(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    fitness = ready(tokenizer, tasks, ["tiny_choice", "tiny_last_word"])
    with pytest.raises(EvaluationError, match="LMEval is measured on at least 2 samples, got 1"):
        fitness.evaluate(model, 1)


def test_generated_documents_are_shared_out_evenly_too(tiny: Callable[..., Any], tasks: str) -> None:
    fitness = ready(tiny()[1], tasks)
    parts = fitness.shards(range(24), 3)
    writes = [sum(fitness._samples.documents[i][0] == "tiny_generation" for i in part) for part in parts]
    assert writes == [1, 1, 1]


def test_chance_is_that_of_the_documents_that_were_asked(
    tiny: Callable[..., Any], tasks: str, choice_documents: list[dict[str, Any]]
) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    fitness = ready(tokenizer, tasks, ["tiny_choice"])
    for samples in (2, 6):
        shares = [1 / len(choice_documents[i]["c"]) for i in chosen(fitness, samples)["tiny_choice"]]
        assert fitness.evaluate(model, samples).chance["tiny_choice/acc"] == pytest.approx(np.mean(shares))


# -- Signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalised", [True, False])
def test_margin_is_between_the_right_choice_and_the_best_wrong_one(
    tiny: Callable[..., Any], tasks: str, choice_documents: list[dict[str, Any]], normalised: bool
) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    engine = Engine(tokenizer, CPU, 200)
    fitness = ready(tokenizer, tasks, ["tiny_choice"], signal="margin", length_normalised=normalised)
    found = fitness.evaluate(model)
    requests = fitness._tasks.requests
    values = iter(engine.score(model, engine.compile(requests)).log_likelihood.tolist())
    margins = []
    for doc in choice_documents:
        lengths = [len(choice.encode()) if normalised else 1 for choice in doc["c"]]
        scaled = [next(values) / n * sum(lengths) / len(lengths) for n in lengths]
        right = scaled.pop(doc["gold"])
        margins.append(right - max(scaled))
    assert found.metrics["tiny_choice/margin"] == pytest.approx(np.mean(margins), rel=1e-5)
    assert found.score == pytest.approx(np.mean([1 / (1 + math.exp(-margin)) for margin in margins]), rel=1e-5)
    assert 0 < found.score < 1
    assert "tiny_choice/margin" not in found.chance
    assert (
        sum(margin > 0 for margin in margins) / 6
        == found.metrics["tiny_choice/acc_norm" if normalised else "tiny_choice/acc"]
    )


def test_margins_of_several_right_choices() -> None:
    log_likelihood = {1: -1.0, 2: -3.0, 3: -2.5}
    one, two, all_right, target = (
        Document((1, 2, 3), (1, 1, 1), (0,)),
        Document((1, 2, 3), (1, 1, 1), (1, 2)),
        Document((1, 2, 3), (1, 1, 1), (0, 1, 2)),
        Document((1,), (2,), ()),
    )
    assert one.margin(log_likelihood) == pytest.approx(1.5)
    assert two.margin(log_likelihood) == pytest.approx(-1.5)  # the best right one is the third
    assert [document.has_margin for document in (one, two, all_right, target)] == [True, True, False, False]
    with pytest.raises(ValueError, match="one kind only"):
        all_right.margin(log_likelihood)
    found = signals_of([one, two, all_right], log_likelihood)
    assert found["margin"] == pytest.approx(0.0)
    assert found["decision"] == pytest.approx(0.5)
    assert set(signals_of([all_right, target], log_likelihood)) == {"probability"}
    assert signals_of([], log_likelihood) == {}
    far = signals_of([Document((1, 2), (1, 1), (0,))], {1: 0.0, 2: -5000.0})
    assert (far["margin"], far["decision"]) == (5000.0, 1.0)


def test_lengths_scale_margins_as_they_scale_probabilities() -> None:
    document = Document((1, 2), (2, 6), (0,))
    log_likelihood = {1: -3.0, 2: -6.0}
    margin = document.margin(log_likelihood)
    assert margin == pytest.approx((-3 / 2 + 6 / 6) * 4)
    assert document.probability(log_likelihood) == pytest.approx(1 / (1 + math.exp(-margin)))


def test_tasks_without_margin_count_by_what_they_have(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    names = ["tiny_choice", "tiny_last_word", "tiny_generation"]
    fitness = ready(tokenizer, tasks, names, signal="margin")
    found = fitness.evaluate(model)
    alone = ready(tokenizer, tasks, ["tiny_choice"], signal="margin").evaluate(model)
    others = [found.metrics["tiny_last_word/probability"], found.metrics["tiny_generation/exact_match"]]
    assert found.score == pytest.approx((alone.score + sum(others)) / 3, rel=1e-5)
    assert "tiny_last_word/margin" not in found.metrics
    with pytest.raises(RecipeError, match="takes a metric with signal: metric, got metric='acc'"):
        LMEval(["tiny_choice"], signal="margin", metric="acc")
    with pytest.raises(DataError, match="has no metric 'acc_nrm'"):
        ready(tokenizer, tasks, ["tiny_choice"], signal="metric", metric="acc_nrm")


def test_the_least_sample_has_something_to_count(tiny: Callable[..., Any], tasks: str) -> None:
    """All choices of a document can be right: it has no margin."""
    model, tokenizer = tiny("llama", "sdpa")
    path = Path(tasks) / "tiny_choice.jsonl"
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    order = [number for _, number in ready(tokenizer, tasks, ["tiny_choice"])._samples.documents]
    for place, number in enumerate(order):
        right = range(len(documents[number]["c"])) if place < 3 else [documents[number]["gold"]]
        documents[number]["gold"] = list(right)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    entry = {"task": "tiny_choice", "metric_list": [{"metric": "acc", "aggregation": "mean"}]}
    fitness = ready(tokenizer, tasks, [entry, "tiny_last_word"], signal="margin")
    places = [i for i, (task, _) in enumerate(fitness._samples.documents) if task == "tiny_choice"]
    assert fitness.min_samples == places[3] + 1
    assert math.isfinite(fitness.evaluate(model, fitness.min_samples).score)
    assert ready(tokenizer, tasks, [entry, "tiny_last_word"]).min_samples == 2
