from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_tasks import simple_evaluate

from tailorlib.evaluation import task_entries
from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.requests import TaskRequests
from tailorlib.evaluation.tasks import TaskSettings
from tailorlib.exceptions import DataError

CPU = torch.device("cpu")
ALL = ["tiny_choice", "tiny_mutual", "tiny_schema", "tiny_last_word", "tiny_text"]
MAX_LENGTH = 48  # so that contexts are truncated and long texts roll


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {}),
        ("llama", {"num_fewshot": 2, "limit": 4}),
        ("qwen2", {"limit": 0.5}),
        ("gpt_neox", {}),
        ("gemma3_text", {}),
    ],
)
def test_everything_is_as_lm_eval_has_it(
    tiny: Callable[..., Any],
    kept_randomness: Callable[[], AbstractContextManager[None]],
    tasks: str,
    model_type: str,
    settings: dict[str, Any],
    packing: bool,
) -> None:
    model, tokenizer = tiny(model_type, "sdpa")
    engine = Engine(tokenizer, CPU, MAX_LENGTH, packing=packing)
    ours = TaskRequests(ALL, engine, TaskSettings(include_path=tasks, **settings))
    found = ours.evaluate(engine.score(model, engine.compile(ours.requests)))
    expected = simple_evaluate(model, tokenizer, ALL, tasks, MAX_LENGTH, kept_randomness(), 3, **settings)

    for name in ALL:
        samples = expected["samples"][name]
        theirs = [(args, resp[0]) for s in samples for args, resp in zip(s["arguments"], s["resps"], strict=True)]
        instances = ours.tasks[name].instances
        assert len(theirs) == len(instances)
        for (args, answer), instance in zip(theirs, instances, strict=True):
            assert instance.args == args
            if name == "tiny_text":
                assert instance.resps[0] == pytest.approx(answer, abs=1e-3)
            else:
                assert instance.resps[0][0] == pytest.approx(answer[0], abs=1e-4)
                assert instance.resps[0][1] == answer[1]
        for key, value in expected["results"][name].items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            of_counts = metric.startswith("acc") or metric == "exact_match"
            assert found.metrics[f"{name}/{metric}"] == (value if of_counts else pytest.approx(value, rel=1e-5))


def test_groups_are_aggregated_as_lm_eval_does(
    tiny: Callable[..., Any], kept_randomness: Callable[[], AbstractContextManager[None]], tasks: str
) -> None:
    model, tokenizer = tiny("llama", "sdpa")
    engine = Engine(tokenizer, CPU, MAX_LENGTH)
    names = ["tiny_choice", "tiny_schema"]
    ours = TaskRequests(["tiny_group"], engine, TaskSettings(include_path=tasks))
    assert sorted(ours.tasks) == names
    found = ours.evaluate(engine.score(model, engine.compile(ours.requests)))
    expected = simple_evaluate(model, tokenizer, ["tiny_group"], tasks, MAX_LENGTH, kept_randomness())
    assert found.metrics["tiny_group/acc"] == expected["results"]["tiny_group"]["acc,none"]


def test_evaluating_again_gives_the_same(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, MAX_LENGTH)
    ours = TaskRequests(ALL, engine, TaskSettings(include_path=tasks))
    compiled = engine.compile(ours.requests)
    first, again = (ours.evaluate(engine.score(model, compiled)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("normalised", [True, False])
def test_probability_is_the_softmax_over_choices(
    tiny: Callable[..., Any], tasks: str, choice_documents: list[dict[str, Any]], normalised: bool
) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256)
    ours = TaskRequests(["tiny_choice"], engine, TaskSettings(include_path=tasks), length_normalised=normalised)
    scores = engine.score(model, engine.compile(ours.requests))
    found = ours.evaluate(scores).probability["tiny_choice"]
    values, expected = iter(scores.log_likelihood.tolist()), []
    for doc in choice_documents:
        choices = doc["c"]
        lengths = [len(c.encode()) if normalised else 1 for c in choices]
        mean = sum(lengths) / len(lengths)
        weights = [math.exp(next(values) / n * mean) for n in lengths]
        expected.append(weights[doc["gold"]] / sum(weights))
    assert found == pytest.approx(sum(expected) / len(expected))


def test_chance_is_one_over_the_number_of_choices(
    tiny: Callable[..., Any], tasks: str, choice_documents: list[dict[str, Any]]
) -> None:
    _, tokenizer = tiny()
    ours = TaskRequests(
        ["tiny_choice", "tiny_text"], Engine(tokenizer, CPU, 256), TaskSettings(include_path=tasks)
    )
    mean = sum(1 / len(doc["c"]) for doc in choice_documents) / len(choice_documents)
    assert ours.chance()["tiny_choice/acc"] == pytest.approx(mean)
    assert ours.chance()["tiny_choice/probability"] == pytest.approx(mean)
    assert "tiny_choice/exact_match" not in ours.chance()
    assert not any(name.startswith("tiny_text") for name in ours.chance())
    assert ours.chance({"tiny_choice": [0], "tiny_text": [0]})["tiny_choice/acc"] == pytest.approx(1 / 3)


def test_data_files_are_found_beside_the_task_file(
    tiny: Callable[..., Any], tasks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    ours = TaskRequests(["tiny_choice"], Engine(tiny()[1], CPU, 256), TaskSettings(include_path=tasks, limit=2))
    assert len(ours.requests) == 6


def test_unknown_task_gets_a_close_name(
    tiny: Callable[..., Any], tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_entries, "_default_index", dict)  # thousands of files take half a minute
    with pytest.raises(DataError, match=r"no task called 'tiny_choise'\. Did you mean 'tiny_choice'"):
        TaskRequests(["tiny_choise"], Engine(tiny()[1], CPU, 256), TaskSettings(include_path=tasks))


def test_missing_folder_and_missing_data_are_refused(tiny: Callable[..., Any], tasks: str) -> None:
    engine = Engine(tiny()[1], CPU, 256)
    with pytest.raises(DataError, match="there is no folder 'nowhere'"):
        TaskRequests(["tiny_choice"], engine, TaskSettings(include_path="nowhere"))
    (Path(tasks) / "tiny_choice.jsonl").unlink()
    with pytest.raises(DataError, match=r"'tiny_choice': there is no data file 'tiny_choice.jsonl'"):
        TaskRequests(["tiny_choice"], engine, TaskSettings(include_path=tasks))


def test_a_task_without_questions_is_refused(tiny: Callable[..., Any], tasks: str) -> None:
    (Path(tasks) / "tiny_choice.jsonl").write_text("")
    with pytest.raises(DataError, match="'tiny_choice': its data files hold no document"):
        TaskRequests(["tiny_choice"], Engine(tiny()[1], CPU, 256), TaskSettings(include_path=tasks))


def test_a_task_whose_filter_leaves_no_question_is_refused(tiny: Callable[..., Any], tasks: str) -> None:
    with pytest.raises(
        DataError, match="'tiny_choice': the split 'validation' has no document after process_docs"
    ):
        entry = {"task": "tiny_choice", "process_docs": lambda docs: docs.filter(lambda doc: False)}
        TaskRequests([entry], Engine(tiny()[1], CPU, 256), TaskSettings(include_path=tasks))


def test_questions_longer_than_the_context_are_counted(
    tiny: Callable[..., Any], tasks: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(tiny()[1], CPU, 20)
    ours = TaskRequests(["tiny_choice", "tiny_text"], engine, TaskSettings(include_path=tasks))
    long = {
        instance.doc_id
        for instance in ours.tasks["tiny_choice"].instances
        if len(engine.tokenizer("".join(instance.args))["input_ids"]) > 21
    }
    assert 0 < len(long) < 6
    assert ours.truncated == {"tiny_choice": len(long), "tiny_text": 0}  # text is cut into windows
    messages = [r.message for r in caplog.records if "lose tokens from the left" in r.message]
    assert messages == [
        f"{len(long)} questions of the task 'tiny_choice' are longer than the context of 20 tokens: as with "
        "lm-eval, they lose tokens from the left."
    ]


def test_an_answer_longer_than_the_context_is_refused(tiny: Callable[..., Any], tasks: str) -> None:
    with pytest.raises(DataError, match=r"context of 3 tokens; one of 'tiny_choice' has \d+\. Raise study.max_le"):
        TaskRequests(["tiny_choice"], Engine(tiny()[1], CPU, 3), TaskSettings(include_path=tasks))


def test_lm_eval_is_quiet(tiny: Callable[..., Any], tasks: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256)
    capfd.readouterr()
    settings = TaskSettings(include_path=tasks, gen_kwargs={"max_gen_toks": 4})
    ours = TaskRequests(["tiny_choice", "tiny_generation"], engine, settings)
    ours.evaluate(engine.score(model, engine.compile(ours.requests)), ours.generate(model))
    assert capfd.readouterr() == ("", "")
