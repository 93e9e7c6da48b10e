"""What simple_evaluate accepts, and settings of single tasks, reach lm-eval."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_tasks import answers_of, metrics_of, simple_evaluate
from jsonargparse import ArgumentParser
from tailorlib_strategies.fitness import LMEval

from tailorlib import Fitness
from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.requests import TaskRequests
from tailorlib.evaluation.tasks import TaskSettings
from tailorlib.exceptions import DataError, RecipeError

CPU = torch.device("cpu")
Keep = Callable[[], AbstractContextManager[None]]
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"


def arguments(requests: TaskRequests, task: str) -> list[Any]:
    return [instance.args for instance in requests.tasks[task].instances]


@pytest.mark.parametrize(
    "settings",
    [
        {"limit": 2},
        {"limit": 0.3},
        {"samples": {"tiny_choice": [4, 1], "tiny_last_word": [0, 2]}},
        {"num_fewshot": 3, "fewshot_random_seed": 7, "random_seed": 3},
        {"num_fewshot": 2, "system_instruction": "Think."},
        {"num_fewshot": 2, "apply_chat_template": True, "system_instruction": "Think."},
        {"num_fewshot": 2, "apply_chat_template": True, "fewshot_as_multiturn": False},
    ],
    ids=repr,
)
def test_arguments_do_what_they_do_in_simple_evaluate(
    tiny: Callable[..., Any], tasks: str, kept_randomness: Keep, settings: dict[str, Any]
) -> None:
    model, tokenizer = tiny()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    names = ["tiny_choice", "tiny_last_word"]
    for name in names:
        path = Path(tasks) / f"{name}.yaml"
        path.write_text(path.read_text().replace('"output_type"', '"fewshot_split": "validation", "output_type"'))
    engine = Engine(tokenizer, CPU, 250)
    ours = TaskRequests(names, engine, TaskSettings(include_path=tasks, **settings))
    found = ours.evaluate(engine.score(model, engine.compile(ours.requests)))
    expected = simple_evaluate(model, tokenizer, names, tasks, 250, kept_randomness(), **settings)
    for name in names:
        instances = ours.tasks[name].instances
        theirs = [args for sample in expected["samples"][name] for args in sample["arguments"]]
        assert [instance.args for instance in instances] == theirs
        for instance, (log_likelihood, greedy) in zip(instances, answers_of(expected, name), strict=True):
            assert instance.resps[0] == (pytest.approx(log_likelihood, abs=1e-3), greedy)
    assert found.metrics == pytest.approx(metrics_of(expected), rel=1e-5)


def test_beginning_of_text_can_be_asked_for(tiny: Callable[..., Any], tasks: str, kept_randomness: Keep) -> None:
    _, tokenizer = tiny()
    settings = TaskSettings(include_path=tasks, model_args={"prefix_token_id": 7})
    ours = TaskRequests(["tiny_text"], Engine(tokenizer, CPU, 250), settings)
    assert all(request.context[0] == 7 for request in ours.requests)
    with pytest.raises(DataError, match=r"model_args are add_bos_token, .*; got dtype"):
        TaskRequests(["tiny_text"], Engine(tokenizer, CPU, 250), TaskSettings(model_args={"dtype": "float16"}))


def test_an_entry_has_settings_of_its_own(tiny: Callable[..., Any], tasks: str) -> None:
    engine = Engine(tiny()[1], CPU, 250)
    entries = [
        {"task": "tiny_choice", "num_fewshot": 2, "limit": 3, "description": "Choose. "},
        {"task": "tiny_last_word", "samples": [2]},
        "tiny_schema",
    ]
    ours = TaskRequests(entries, engine, TaskSettings(include_path=tasks, limit=2))
    texts = [text for text, _ in arguments(ours, "tiny_choice")]
    assert {instance.doc_id for instance in ours.tasks["tiny_choice"].instances} == {0, 1, 2}
    assert all(text.startswith("Choose. ") and text.count("\n\n") == 2 for text in texts)
    assert [instance.doc["word"] for instance in ours.tasks["tiny_last_word"].instances] == ["7"]
    assert {instance.doc_id for instance in ours.tasks["tiny_schema"].instances} == {0, 1}


def test_settings_of_a_group_reach_its_members(tiny: Callable[..., Any], tasks: str) -> None:
    engine = Engine(tiny()[1], CPU, 250)
    ours = TaskRequests(
        [{"task": "tiny_group", "limit": 1, "target_delimiter": " -> "}], engine, TaskSettings(include_path=tasks)
    )
    assert sorted(ours.tasks) == ["tiny_choice", "tiny_schema"]
    assert all(answer.startswith(" -> ") for name in ours.tasks for _, answer in arguments(ours, name))
    assert {i.doc_id for task in ours.tasks.values() for i in task.instances} == {0}


def test_a_group_can_be_made_in_a_recipe(tiny: Callable[..., Any], tasks: str, kept_randomness: Keep) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 250)
    group = {
        "group": "mine",
        "task": ["tiny_schema", {"task": "tiny_choice", "num_fewshot": 0}],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    ours = TaskRequests([group], engine, TaskSettings(include_path=tasks))
    found = ours.evaluate(engine.score(model, engine.compile(ours.requests)))
    expected = simple_evaluate(model, tokenizer, ["tiny_group"], tasks, 250, kept_randomness())
    assert found.metrics["mine/acc"] == expected["results"]["tiny_group"]["acc,none"]


def test_tasks_come_from_files_and_from_the_recipe_itself(tiny: Callable[..., Any], tasks: str) -> None:
    engine = Engine(tiny()[1], CPU, 250)
    by_file = TaskRequests([{"task": f"{tasks}/tiny_choice.yaml", "limit": 2}], engine)
    config = json.loads((Path(tasks) / "tiny_choice.yaml").read_text())
    config["dataset_kwargs"] = {"data_files": {"validation": f"{tasks}/tiny_choice.jsonl"}}
    inline = TaskRequests([{**config, "task": "of_my_own", "limit": 2}], engine)
    assert list(inline.tasks) == ["of_my_own"]
    assert arguments(by_file, "tiny_choice") == arguments(inline, "of_my_own")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "At least one lm-eval task is named, got none"),
        (["tiny_choice", {"task": "tiny_group"}], r"asked for once, got 'tiny_choice' twice"),
        ([{"limit": 3}], r"a name, or a mapping with 'task' or 'group', got \{'limit': 3\}"),
        (
            [{"task": "tiny_choice", "num_fewshots": 3}],
            "'tiny_choice' has no setting 'num_fewshots'. Did you mean 'num_fewshot'?",
        ),
        (
            [{"task": "tiny_choice", "samples": [99]}],
            "'tiny_choice' has the documents 0 to 5; samples asks for 99",
        ),
        ([{"task": "tiny_choice", "output_type": "sing"}], "'tiny_choice'.*sing"),
    ],
)
def test_entries_that_make_no_sense_are_refused(
    tiny: Callable[..., Any], tasks: str, entries: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        TaskRequests(entries, Engine(tiny()[1], CPU, 250), TaskSettings(include_path=tasks))


def test_the_metric_that_counts_can_be_chosen_for_each_task(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 250)
    entries = [{"task": "tiny_choice", "metric": "acc_norm"}, "tiny_schema", "tiny_last_word"]
    fitness = LMEval(entries, include_path=tasks)
    fitness.setup(engine)
    found = fitness.evaluate(model)
    counted = ["tiny_choice/acc_norm", "tiny_schema/probability", "tiny_last_word/probability"]
    assert found.score == pytest.approx(sum(found.metrics[name] for name in counted) / 3)
    by_metric = LMEval(
        ["tiny_last_word"], include_path=tasks, signal="metric"
    )  # perplexity comes first, but falls
    by_metric.setup(engine)
    measured = by_metric.evaluate(model)
    assert measured.score == measured.metrics["tiny_last_word/acc"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"signal": "metric", "metric": "f1"},
            r"task 'tiny_last_word' has no metric 'f1'\. Known: acc, perplexity",
        ),
        (
            {"signal": "metric", "metric": "perplexity"},
            r"less of 'perplexity' of the task 'tiny_last_word' is better",
        ),
    ],
)
def test_metrics_that_cannot_count_are_refused(
    tiny: Callable[..., Any], tasks: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        LMEval(["tiny_last_word"], include_path=tasks, **settings).setup(Engine(tiny()[1], CPU, 250))


def test_a_recipe_can_give_all_of_them(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("""
fitness:
  class_path: tailorlib_strategies.fitness.LMEval
  init_args:
    tasks:
      - hellaswag
      - {task: gsm8k, num_fewshot: 5, limit: 50, metric: "exact_match,flexible-extract"}
      - {group: mine, task: [arc_easy, {task: piqa, num_fewshot: 0}]}
    gen_kwargs: {max_gen_toks: 64, do_sample: false}
    samples: {hellaswag: [0, 2]}
    model_args: {add_bos_token: true}
""")
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--fitness", type=Fitness)
    fitness = parser.instantiate_classes(parser.parse_args(["--config", str(recipe)])).fitness
    assert isinstance(fitness, LMEval)
    assert fitness.names[0] == "hellaswag"
    assert fitness.names[1]["limit"] == 50
    assert fitness.names[2]["task"][1] == {"task": "piqa", "num_fewshot": 0}
    assert fitness._settings["gen_kwargs"] == {"max_gen_toks": 64, "do_sample": False}


def test_faults_of_settings_come_together() -> None:
    with pytest.raises(RecipeError, match="4 faults") as caught:
        LMEval([{"task": "a", "limit": -1}], limit=1, samples={"a": [0]}, generation_batch_size=0, num_fewshot=-2)
    assert "limit is positive, got -1" in str(caught.value)
    assert "a limit or samples, got both" in str(caught.value)
