"""Mistakes in tasks of one's own, named as what they are, all at once; a network only where data is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tailorlib_strategies.fitness import LMEval, WeightedMean

from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.requests import TaskRequests
from tailorlib.evaluation.tasks import TaskSettings
from tailorlib.exceptions import DataError, RecipeError, TailorError

QUESTIONS = [
    {"q": "The opposite of hot is", "choices": ["cold", "dog"], "label": 0},
    {"q": "The lazy dog", "choices": ["flies", "sleeps"], "label": 1},
]
TASK: dict[str, Any] = {
    "task": "own",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
}
WRITES: dict[str, Any] = {"output_type": "generate_until", "doc_to_choice": None}
METRIC: dict[str, Any] = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown setting": ({"weight": 2.0}, "The task 'own' has no setting 'weight'. Known: "),
    "a misspelt setting": ({"num_fewshots": 2}, "has no setting 'num_fewshots'. Did you mean 'num_fewshot'?"),
    "a setting of examples": ({"fewshot_config": {"samplr": "x"}}, "'samplr'. Did you mean 'sampler'?"),
    "a sampler": ({"fewshot_config": {"sampler": "frist_n"}}, "no sampler 'frist_n'. Did you mean 'first_n'?"),
    "an output type": ({"output_type": "multiple_choise"}, "'multiple_choise'. Did you mean 'multiple_choice'?"),
    "no choices": ({"doc_to_choice": None}, "output_type multiple_choice needs doc_to_choice"),
    "a metric": ({"metric_list": [{"metric": "acuracy"}]}, "no metric 'acuracy'. Did you mean 'acc'?"),
    "no metric": (
        {"metric_list": [{"metrc": "acc"}]},
        "an entry of metric_list names its 'metric', got {'metrc': 'acc'}",
    ),
    "metrics that are no list": ({"metric_list": {"metric": "acc"}}, "metric_list is a list of mappings, got"),
    "an aggregation": ({"metric_list": [{**METRIC, "aggregation": "maen"}]}, "'maen'. Did you mean 'mean'?"),
    "a filter": (
        {"filter_list": [{"name": "x", "filter": [{"function": "regx"}]}]},
        "'regx'. Did you mean 'regex'?",
    ),
    "half a filter": (
        {"filter_list": [{"name": "x"}]},
        "filter_list has a 'name' and a list 'filter', got {'name': 'x'}",
    ),
    "a number of examples": ({"num_fewshot": "three"}, "num_fewshot is a whole number of at least 0, got 'three'"),
    "less than no example": ({"num_fewshot": -1}, "num_fewshot is a whole number of at least 0, got -1"),
    "repeats": ({"repeats": 0}, "repeats is a whole number of at least 1, got 0"),
    "a limit": ({"limit": "x"}, "limit is a positive number, got 'x'"),
    "documents": ({"samples": "x"}, "samples is a list of numbers of documents, got 'x'"),
    "no documents": ({"samples": []}, "samples is a list of numbers of documents, got []"),
    "a key that is no text": ({1: 2}, "a mapping whose keys are texts"),
    "a split": ({"test_split": 3}, "test_split is the name of a split, got 3"),
    "no data": ({"dataset_kwargs": {}}, "dataset_kwargs names them with data_files or data_dir; got {}."),
    "no settings of the data": ({"dataset_kwargs": None}, "names them with data_files or data_dir; got {}."),
    "a misspelt name of the data": (
        {"dataset_kwargs": {"data_fils": "x"}},
        "got {'data_fils': 'x'}. Did you mean 'data_files'?",
    ),
}
"""Found before any data is read."""
DATA: dict[str, tuple[dict[str, Any], str]] = {
    "a split": (
        {"test_split": "tset"},
        "test_split is a split of its data, got 'tset'. Did you mean 'test'? The data has test.",
    ),
    "another split": (
        {"validation_split": "dev"},
        "validation_split is a split of its data, got 'dev'. Known: test.",
    ),
    "the examples' split": (
        {"num_fewshot": 1, "fewshot_split": "trian"},
        "fewshot_split is a split of its data, got 'trian'",
    ),
    "no split": ({"test_split": None}, "names the split to score, got neither. There is test."),
    "a field": (
        {"doc_to_text": "{{question}}"},
        "uses the field 'question', which its documents don't have. Known: choices, label, q.",
    ),
    "a close field": (
        {"doc_to_text": "{{lable}}"},
        "the field 'lable', which its documents don't have. Did you mean 'label'? Fields: ",
    ),
    "a field that is no template": (
        {"doc_to_target": "lable"},
        "doc_to_target names the field 'lable', which its documents don't have. Did you mean 'label'?",
    ),
    "choices": (
        {"doc_to_choice": "chioces"},
        "doc_to_choice names the field 'chioces', which its documents don't have. Did you mean 'choices'?",
    ),
    "a template that gives no list": ({"doc_to_choice": "{{q}}"}, "a template that gives a list; got '{{q}}'"),
    "choices that are a text": (
        {"doc_to_choice": "q"},
        "doc_to_choice gives a list of texts, got 'The opposite of hot is' at document 0",
    ),
    "half a template": ({"doc_to_text": "{{q"}, "'{{q' can't be read: unexpected end of template"),
    "a filter of a template": ({"doc_to_text": "{{q|uper}}"}, "No filter named 'uper'"),
    "an attribute": ({"doc_to_text": "{{q.text}}"}, "doc_to_text fails at document 0: UndefinedError"),
    "an answer out of range": (
        {"doc_to_target": 5},
        "a number from 0 to 1 or one of ['cold', 'dog']; got 5 at document 0",
    ),
    "an answer that is no choice": ({"doc_to_target": "{{q}}"}, "got 'The opposite of hot is' at document 0"),
    "too many examples": (
        {"num_fewshot": 9, "fewshot_split": "test"},
        "9 examples are asked for, the split 'test' has 2, and no question is an example of itself.",
    ),
    "one example too many": (
        {"num_fewshot": 2, "fewshot_split": "test"},
        "2 examples are asked for, the split 'test' has 2",
    ),
    "a document": ({"samples": [0, 99]}, "has the documents 0 to 1; samples asks for 99."),
    "a setting of the data": (
        {"dataset_kwargs": {"data_files": __file__, "seperator": "x"}},
        "its data can't be read: TypeError",
    ),
}
DOCUMENTS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "an empty text": (
        [QUESTIONS[0], {**QUESTIONS[1], "q": " "}],
        {},
        "doc_to_text gives an empty text at document 1",
    ),
    "an empty text to answer": (
        [{**QUESTIONS[0], "q": ""}],
        WRITES,
        "doc_to_text gives an empty text at document 0",
    ),
    "an empty choice": (
        [{**QUESTIONS[0], "choices": ["", "x"]}],
        {},
        "a choice is a text of at least one character",
    ),
    "no choice": (
        [QUESTIONS[0], {**QUESTIONS[1], "choices": []}],
        {},
        "gives a list of texts, got [] at document 1",
    ),
    "a missing text": (
        [QUESTIONS[0], {**QUESTIONS[1], "q": None}],
        {"doc_to_text": "q"},
        "gives a text, got None at document 1",
    ),
    "an answer out of range": ([QUESTIONS[0], {**QUESTIONS[1], "label": 2}], {}, "got 2 at document 1"),
    "an unknown answer": ([{**QUESTIONS[0], "label": -1}], {}, "got -1 at document 0"),
    "nothing to score": (
        [QUESTIONS[0], {**QUESTIONS[1], "q": ""}],
        {"output_type": "loglikelihood_rolling", "doc_to_choice": None, "doc_to_text": "", "doc_to_target": "q"},
        "doc_to_target gives the text to score, got '' at document 1",
    ),
}


@pytest.fixture(autouse=True)
def own_tasks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave lm-eval's own tasks out: to index them takes a minute."""
    monkeypatch.setattr("tailorlib.evaluation.task_entries._default_index", dict)


@pytest.fixture
def engine(tiny: Callable[..., Any]) -> Engine:
    return Engine(tiny()[1], torch.device("cpu"), 250)


def entry(folder: Path, questions: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return {**TASK, "dataset_kwargs": {"data_files": {"test": str(path)}}, **settings}


def said(engine: Engine, *entries: Any, **settings: Any) -> str:
    """Return what is said of the faults of tasks."""
    fitness = LMEval(list(entries), **settings)
    with pytest.raises(TailorError) as caught:
        fitness.check()
        fitness.setup(engine)
    return str(caught.value)


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_is_named_before_data_is_read(case: str, tmp_path: Path) -> None:
    settings, message = SETTINGS[case]
    with pytest.raises(DataError) as caught:
        LMEval([{**entry(tmp_path, QUESTIONS), **settings}]).check()
    assert message in str(caught.value)


@pytest.mark.parametrize("case", DATA)
def test_what_does_not_fit_the_data_is_named(case: str, tmp_path: Path, engine: Engine) -> None:
    settings, message = DATA[case]
    found = said(engine, {**entry(tmp_path, QUESTIONS), **settings})
    assert message in found
    assert "network" not in found


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_that_cannot_count_is_named(case: str, tmp_path: Path, engine: Engine) -> None:
    questions, settings, message = DOCUMENTS[case]
    assert message in said(engine, {**entry(tmp_path, questions), **settings})


def test_a_missing_data_file_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    entry(tmp_path, QUESTIONS)
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(tmp_path / "qestions.jsonl")}}}
    with pytest.raises(DataError, match=r"there is no data file '.*'\. Did you mean 'questions\.jsonl'\?"):
        LMEval([task]).check()


@pytest.mark.parametrize(
    ("content", "message"), [('{"q": ', "its data can't be read: "), ("", "hold no document")]
)
def test_a_data_file_that_cannot_be_read_is_named(
    content: str, message: str, tmp_path: Path, engine: Engine
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(content)
    found = said(engine, {**TASK, "dataset_kwargs": {"data_files": {"test": str(path)}}})
    assert message in found and "network" not in found


def test_a_network_is_spoken_of_where_something_is_fetched(engine: Engine) -> None:
    found = said(engine, {**TASK, "dataset_path": "some-one/data-set"})
    assert "its data set 'some-one/data-set' is to be fetched from the hub" in found
    assert "needs a network, or a filled cache" in found
    assert "Did you mean 'json'?" in said(engine, {**TASK, "dataset_path": "jsno"})
    folder = said(engine, {**TASK, "dataset_path": "./no/folder"})
    assert "there is no folder './no/folder'" in folder and "network" not in folder


def test_faults_of_all_tasks_come_together(tmp_path: Path, engine: Engine) -> None:
    one = entry(tmp_path, QUESTIONS)
    found = said(engine, {**one, "task": "a", "test_split": "tset"}, {**one, "task": "b", "doc_to_text": "{{x}}"})
    assert "There are 2 faults" in found and "'tset'" in found and "the field 'x'" in found
    parts = {"one": LMEval([{**one, "weight": 1}]), "two": LMEval(["hellaswga"], include_path=str(tmp_path))}
    with pytest.raises(RecipeError) as caught:
        WeightedMean(parts).check()
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["one", "two"]


def test_code_of_a_task_is_named_by_file_and_line(tmp_path: Path, engine: Engine) -> None:
    task = entry(tmp_path, QUESTIONS)
    (tmp_path / "own_code.py").write_text("def process(docs):\n    return docs.map(lambda d: {'x': d['qq']})\n")
    text = json.dumps(task)[:-1] + ', "process_docs": !function own_code.process}'
    (tmp_path / "own.yaml").write_text(text)
    found = said(engine, "own", include_path=str(tmp_path))
    assert "process_docs fails: KeyError: 'qq' (own_code.py, line 2)." in found
    assert "Fields: q, choices, label." in found


def test_task_files_that_cannot_be_read_are_named_with_the_task(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: own\n  output_type: [")
    with pytest.raises(DataError) as caught:
        LMEval(["own"], include_path=str(tmp_path)).check()
    assert "lm-eval has no task called 'own'." in str(caught.value)
    assert "own.yaml' can't be read" in str(caught.value)


def test_members_of_a_group_are_checked(tmp_path: Path, engine: Engine) -> None:
    own = entry(tmp_path, QUESTIONS)
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    group = {"group": "mine", "task": ["own", {**own, "task": "here", "doc_to_text": "{{x}}"}]}
    assert "The task 'mine::here': doc_to_text uses the field 'x'" in said(
        engine, group, include_path=str(tmp_path)
    )
    with pytest.raises(DataError, match=r"no task called 'owm'\. Did you mean 'own'\?"):
        LMEval([{"group": "mine", "task": ["own", "owm"]}], include_path=str(tmp_path)).check()


def test_samples_of_a_task_that_is_not_asked_for_are_refused(tmp_path: Path, engine: Engine) -> None:
    found = said(engine, entry(tmp_path, QUESTIONS), samples={"onw": [0]})
    assert "samples names the tasks that are asked for, got 'onw'. Did you mean 'own'?" in found


def test_sound_tasks_are_taken(tmp_path: Path, engine: Engine) -> None:
    own = entry(tmp_path, QUESTIONS, num_fewshot=1, fewshot_split="test", metric_list=[METRIC])
    labels = {"doc_to_choice": ["A", "B"], "doc_to_target": "{{['A', 'B'][label]}}"}
    constant = {"doc_to_text": "", "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}"}
    fitness = LMEval([own, {**own, **labels, "task": "labels"}, {**own, **constant, "task": "constant"}])
    fitness.check()
    fitness.setup(engine)
    assert fitness.num_samples == 6


def test_a_choice_may_follow_nothing(tmp_path: Path, engine: Engine) -> None:
    """BLiMP asks for that, and lm-eval begins with a special token, however the nothing is written."""
    plain = entry(tmp_path, [{**question, "empty": ""} for question in QUESTIONS])
    texts = ("", "{{empty}}", "empty")
    written = [TaskRequests([{**plain, "doc_to_text": text}], engine, TaskSettings()) for text in texts]
    first = written[0].requests
    assert len(first) == 4
    assert [each.requests for each in written] == [first] * 3
