"""The local lm-eval task of the quickstart: sound data, and loadable from any folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.requests import TaskRequests
from tailorlib.evaluation.tasks import TaskSettings
from tailorlib.testing.tiny import tiny_tokenizer

FOLDER = Path(__file__).parents[2] / "recipes" / "quickstart"
SIZES = {"search": 80, "test": 160}


def _items(split: str) -> list[dict[str, Any]]:
    lines = (FOLDER / f"everyday_facts_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("split", "size"), SIZES.items())
def test_each_item_has_four_distinct_choices_and_one_answer(split: str, size: int) -> None:
    items = _items(split)
    assert len(items) == size
    for item in items:
        assert set(item) == {"category", "question", "choices", "answer"}
        assert len(item["choices"]) == len({c.lower() for c in item["choices"]}) == 4, item
        assert item["answer"] in range(4)
        assert all(c == c.strip() and c for c in (item["question"], *item["choices"]))


@pytest.mark.parametrize("split", SIZES)
def test_the_right_answers_are_evenly_placed(split: str) -> None:
    counts = Counter(item["answer"] for item in _items(split))
    assert set(counts.values()) == {SIZES[split] // 4}


def test_no_question_is_asked_twice() -> None:
    questions = Counter(item["question"] for split in SIZES for item in _items(split))
    assert set(questions.values()) == {1}


def test_both_splits_have_the_same_mix_of_categories() -> None:
    search, test = (Counter(item["category"] for item in _items(split)) for split in SIZES)
    assert {name: 2 * count for name, count in search.items()} == test


@pytest.mark.parametrize("split", SIZES)
def test_the_yaml_names_its_own_data(split: str) -> None:
    task = yaml.safe_load((FOLDER / f"everyday_facts_{split}.yaml").read_text(encoding="utf-8"))
    assert task["task"] == f"everyday_facts_{split}"
    assert task["dataset_kwargs"]["data_files"] == {"test": f"everyday_facts_{split}.jsonl"}


@pytest.mark.parametrize("split", SIZES)
def test_it_loads_from_another_working_folder(split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_tokenizer(), torch.device("cpu"), max_length=256)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    name = f"everyday_facts_{split}"
    task = TaskRequests([name], engine, TaskSettings(include_path=str(FOLDER))).tasks[name]
    documents = list(task.test_docs())
    assert len(documents) == SIZES[split]
    first = documents[0]
    assert task.doc_to_text(first) == first["question"]
    assert task.doc_to_choice(first) == first["choices"]
