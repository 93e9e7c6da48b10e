"""Texts that every Python has: whole, fixed, and never the same words in two splits."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from tailorlib_strategies.texts import ArithmeticProblems, PydocTopics, StandardLibraryCode
from tailorlib_strategies.texts import standard_library as code
from tailorlib_strategies.texts.arithmetic_templates import TEMPLATES
from tailorlib_strategies.texts.pydoc_topics import _key, _paragraphs
from tailorlib_strategies.texts.splits import SHARES, Split, pack, split_of

from tailorlib.exceptions import DataError
from tailorlib.text import TextSource

SPLITS: tuple[Split, ...] = get_args(Split)
KINDS: tuple[type[TextSource], ...] = (StandardLibraryCode, PydocTopics, ArithmeticProblems)


@pytest.mark.parametrize("kind", KINDS)
def test_no_document_is_in_two_splits_or_twice(kind) -> None:
    counts = Counter(document for split in SPLITS for document in kind(split).documents())
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_text_and_is_the_same_on_every_call(kind, split) -> None:
    documents = list(kind(split).documents())
    assert sum(map(len, documents)) > 30_000
    assert documents == list(kind(split).documents())


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_split_is_refused(kind) -> None:
    with pytest.raises(DataError, match="splits train, search, test, got 'dev'"):
        kind("dev")


def test_names_spread_over_the_splits_by_their_shares() -> None:
    counts = Counter(split_of(f"name {i}") for i in range(4000))
    for split, share in SHARES.items():
        assert abs(counts[split] / 4000 - share) < 0.03


def test_packed_documents_keep_to_their_bounds_and_cut_at_lines() -> None:
    pieces = ["a\n" * 30, "b\n" * 10, "long line\n" * 200, "c\n" * 5]
    documents = pack(pieces, low=50, high=100)
    assert all(50 <= len(d) <= 100 for d in documents)
    assert all(line in {"a", "b", "c", "long line"} for d in documents for line in d.splitlines())


class TestStandardLibraryCode:
    def test_documents_are_code_of_the_announced_length(self) -> None:
        documents = StandardLibraryCode("train", count=50).documents()
        assert len(documents) == 50
        assert all(1_400 <= len(d) <= 4_000 for d in documents)
        assert sum("def " in d for d in documents) > 40

    def test_no_module_file_is_in_two_splits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for i in range(40):
            (tmp_path / f"module{i}.py").write_text(f"def function_{i}():\n    return {i}  # {'x' * 60}\n" * 30)
        monkeypatch.setattr(code.sysconfig, "get_path", lambda name: str(tmp_path))
        monkeypatch.setattr(code.sys, "stdlib_module_names", frozenset(f"module{i}" for i in range(40)))
        seen = {
            split: set(re.findall(r"function_\d+", str(StandardLibraryCode(split).documents())))
            for split in SPLITS
        }
        assert all(seen.values())
        assert sum(map(len, seen.values())) == len(set().union(*seen.values())) == 40

    def test_oddities_are_left_out(self) -> None:
        root = Path(code.sysconfig.get_path("stdlib"))
        files = code._module_files(root)
        parts = {part for name in files for part in name.split("/")}
        assert not parts & {"idlelib", "turtledemo", "lib2to3", "encodings", "test", "tests", "site-packages"}
        assert "json/decoder.py" in files

    def test_a_python_without_source_is_an_error_that_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(code.sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(DataError, match="there is none below"):
            StandardLibraryCode().documents()


class TestPydocTopics:
    def test_topics_that_quote_each_other_are_in_one_split(self) -> None:
        seen: dict[str, str] = {}
        for split in SPLITS:
            for document in PydocTopics(split).documents():
                for key in map(_key, _paragraphs(document)):
                    if len(key) >= 100:
                        assert seen.setdefault(key, split) == split

    def test_the_splits_have_their_shares(self) -> None:
        sizes = {split: sum(map(len, PydocTopics(split).documents())) for split in SPLITS}
        for split, share in SHARES.items():
            assert abs(sizes[split] / sum(sizes.values()) - share) < 0.05


class TestArithmeticProblems:
    def test_the_first_problem_is_the_same_on_every_machine(self) -> None:
        first = ArithmeticProblems("train", count=1).documents()[0]
        assert hashlib.sha256(first.encode()).hexdigest()[:16] == "0abde4dce67e4a55", first

    def test_worked_answers_are_right(self) -> None:
        for split in SPLITS:
            for document in ArithmeticProblems(split, count=400, seed=3).documents():
                steps = re.findall(r"(?<![\d] )(\d+(?: [-+*/] \d+)+) = (\d+)", document)
                assert all(_value(left) == int(right) for left, right in steps), document
                assert re.search(r"(?:answer is|makes|result is) \d+\.\n$", document), document

    def test_the_answer_closes_the_working(self) -> None:
        for document in ArithmeticProblems("test", count=200).documents():
            *_, last = re.findall(r"\d+", document)
            assert len(re.findall(rf"(?<!\d){last}(?!\d)", document)) > 1, document

    @pytest.mark.parametrize("other", ["search", "test"])
    def test_another_seed_never_reaches_a_training_problem(self, other: Split) -> None:
        trained = {_problem(d) for seed in range(3) for d in ArithmeticProblems("train", 800, seed).documents()}
        for seed in range(3):
            assert not trained & {_problem(d) for d in ArithmeticProblems(other, 800, seed).documents()}

    def test_all_splits_have_the_same_mix_of_templates(self) -> None:
        for split in SPLITS:
            openings = Counter(_skeleton(d) for d in ArithmeticProblems(split, 2 * len(TEMPLATES)).documents())
            assert set(openings.values()) == {2}

    def test_more_problems_than_there_are_is_refused(self) -> None:
        with pytest.raises(DataError, match="gives each problem once"):
            ArithmeticProblems("search", count=100_000).documents()


def _problem(document: str) -> tuple[str, ...]:
    """Return a problem without its names and objects."""
    return (str(_skeleton(document)), *re.findall(r"\d+", document.split("Answer:")[0]))


def _skeleton(document: str) -> int:
    """Return the number of the template that a document was made of."""
    question = document.split("\nAnswer:")[0].removeprefix("Question: ")
    matching = [i for i, t in enumerate(TEMPLATES) if re.fullmatch(_pattern(t.question), question)]
    assert len(matching) == 1, question
    return matching[0]


def _pattern(template: str) -> str:
    return re.sub(r"\\\{(\w+)\\\}", ".+?", re.escape(template))


def _value(expression: str) -> float:
    """Compute ``2 * 3`` or ``1 + 2 + 3``: one kind of operator at a time."""
    numbers = [int(n) for n in re.findall(r"\d+", expression)]
    operator = next(iter(set(re.findall(r"[-+*/]", expression))))
    value: float = numbers[0]
    for number in numbers[1:]:
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value / number}[operator]
    return value
