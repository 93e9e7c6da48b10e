"""Shared data is found, wherever it is cut; data that only looks alike is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tailorlib_strategies.fitness import KLDivergence, LMEval, Perplexity, WeightedMean
from tailorlib_strategies.texts import ArithmeticProblems, PydocTopics, StandardLibraryCode

from tailorlib import Fitness, TextSource
from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.overlap import SHINGLE, Overlap, overlap, question_fingerprint, text_fingerprint
from tailorlib.testing.tiny import tiny_tokenizer

STORY = " ".join(f"On day {i} the {['red', 'green', 'blue'][i % 3]} fox met {i * 7} dogs." for i in range(400))
NEIGHBOURHOOD = 320
"""Characters, white space not counted, of which a shared stretch is always found."""


class Given(TextSource):
    def __init__(self, *documents: str) -> None:
        self._documents = documents

    def documents(self) -> Sequence[str]:
        return self._documents


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_tokenizer(), torch.device("cpu"), 512)


@pytest.fixture
def ready(engine: Engine) -> Callable[[Fitness], Fitness]:
    def setup(fitness: Fitness) -> Fitness:
        fitness.setup(engine)
        return fitness

    return setup


def whole(text: TextSource) -> Perplexity:
    return Perplexity(text, context_length=64, max_tokens=None)


Ready = Callable[[Fitness], Fitness]


@pytest.mark.parametrize(
    "text",
    [StandardLibraryCode("test", 12), PydocTopics("test"), ArithmeticProblems("test", 40)],
    ids=lambda text: type(text).__name__,
)
def test_the_same_text_is_shared_whole_however_long_the_windows(ready: Ready, text: TextSource) -> None:
    number = len(text.documents())
    search = ready(Perplexity(text, context_length=16, max_tokens=16 * number))
    for other in (whole(text), KLDivergence(text, context_length=100, max_tokens=None, top_k=512)):
        for found in (overlap(search, ready(other)), overlap(ready(other), search)):
            assert (found.shared, found.total, found.share) == (number, number, 1.0)
        assert any(found.example[:60] in " ".join(d.split()) for d in text.documents())


@pytest.mark.parametrize("splits", [("train", "search"), ("train", "test"), ("search", "test")])
def test_splits_share_no_prose_and_no_arithmetic(splits: Any) -> None:
    for kind in (PydocTopics, lambda split: ArithmeticProblems(split, 400)):
        first, second = (
            frozenset().union(*(text_fingerprint(d).digests for d in kind(split).documents())) for split in splits
        )
        assert first
        assert first.isdisjoint(second)


def test_what_modules_of_two_splits_have_in_common_is_copied_code() -> None:
    """Python's library repeats licences and whole functions in several files: all of it is found, nothing else."""
    first, second = (
        ["".join(d.split()).casefold() for d in StandardLibraryCode(s, 10_000).documents()]
        for s in ("search", "test")
    )
    seen = frozenset().union(*(text_fingerprint(d).digests for d in first))
    shared = {i for i, d in enumerate(second) if not seen.isdisjoint(text_fingerprint(d).digests)}
    known = {d[i : i + SHINGLE] for d in first for i in range(len(d) - SHINGLE + 1)}
    copied = {
        i for i, d in enumerate(second) if any(d[j : j + SHINGLE] in known for j in range(len(d) - SHINGLE + 1))
    }
    assert shared <= copied
    long = {d[i : i + NEIGHBOURHOOD] for d in first for i in range(len(d) - NEIGHBOURHOOD + 1)}
    certain = {i for i, d in enumerate(second) if any(d[j : j + NEIGHBOURHOOD] in long for j in range(len(d)))}
    assert {i for i in certain if len(second[i]) >= NEIGHBOURHOOD} <= shared
    assert 0 < len(shared) <= 0.03 * len(second)


def test_a_stretch_is_found_wherever_it_is_cut() -> None:
    book = text_fingerprint(STORY)
    bare = "".join(STORY.split())
    for start in range(0, len(bare) - NEIGHBOURHOOD, 97):
        piece = text_fingerprint("Another beginning. " + bare[start : start + NEIGHBOURHOOD] + " Another end.")
        assert not piece.digests.isdisjoint(book.digests), start


def test_text_that_is_laid_out_anew_is_the_same() -> None:
    again = "\n\n".join(STORY.upper().split())
    assert text_fingerprint(again).digests == text_fingerprint(STORY).digests
    other = text_fingerprint(STORY.replace("fox", "cow"))
    assert other.digests.isdisjoint(text_fingerprint(STORY).digests)


@pytest.mark.parametrize("length", [0, 1, SHINGLE - 1, SHINGLE, SHINGLE + 1, SHINGLE + 63, SHINGLE + 64])
def test_texts_of_any_length_have_a_digest_and_differ_by_one_character(length: int) -> None:
    text = "".join(STORY.split())[:length]
    found = text_fingerprint(text)
    assert len(found.digests) >= 1
    assert text_fingerprint(text).digests == found.digests
    if length:
        other = text_fingerprint(text[: length // 2] + "#" + text[length // 2 + 1 :])
        assert other.digests.isdisjoint(found.digests) == (length < 2 * SHINGLE)


def test_each_shingle_has_its_polynomial_hash() -> None:
    """Against the definition, in Python's own integers."""
    text = "".join(STORY.split())[: SHINGLE + 200].casefold() + "é日🙂" * 30
    base, modulus = 0x9E3779B97F4A7C15, 2**64

    def mixed(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % modulus
        value = (value ^ value >> 27) * 0x94D049BB133111EB % modulus
        return value ^ value >> 31

    hashes = []
    for start in range(len(text) - SHINGLE + 1):
        value = 0
        for character in text[start : start + SHINGLE]:
            value = (value * base + ord(character)) % modulus
        hashes.append(mixed(value))
    expected = {min(hashes[i : i + 64]) for i in range(len(hashes) - 63)}
    assert text_fingerprint(text).digests == {f"{value:016x}" for value in expected}


def test_a_part_of_the_documents_is_counted(ready: Ready) -> None:
    documents = ArithmeticProblems("test", 30).documents()
    search, report = ready(whole(Given(*documents[:10]))), ready(whole(Given(*documents[5:30])))
    assert overlap(search, report) == Overlap(5, 25, example=overlap(search, report).example)
    assert overlap(search, report).share == 0.2
    assert overlap(report, search).share == 0.5
    assert any(" ".join(d.split()).startswith(overlap(search, report).example[:70]) for d in documents[5:10])


def test_only_documents_that_are_scored_count(ready: Ready) -> None:
    documents = [STORY[i * 2000 : i * 2000 + 2000] for i in range(8)]
    few = ready(Perplexity(Given(*documents), context_length=16, max_tokens=48))
    assert len(few.fingerprints) == 3
    assert overlap(few, ready(whole(Given(*documents)))).shared == 3


def test_only_what_is_scored_of_a_long_document_counts(ready: Ready) -> None:
    start = ready(Perplexity(Given(STORY), context_length=64, max_tokens=256))
    rest = ready(whole(Given(STORY[len(STORY) // 2 :])))
    assert overlap(start, rest).shared == 0
    assert overlap(ready(whole(Given(STORY))), rest).shared == 1


def test_a_mean_has_the_data_of_its_parts(ready: Ready) -> None:
    prose, code = PydocTopics("test"), StandardLibraryCode("test", 5)
    both = ready(WeightedMean({"a": whole(prose), "b": WeightedMean({"c": whole(code)})}))
    assert len(both.fingerprints) == len(prose.documents()) + 5
    assert overlap(ready(whole(code)), both).shared == 5


def test_a_fitness_that_says_nothing_shares_nothing(ready: Ready) -> None:
    class Silent(Fitness):
        pass

    assert overlap(ready(Silent()), ready(whole(Given(STORY)))).shared == 0
    nothing = overlap(ready(whole(Given(STORY))), ready(Silent()))
    assert (nothing.shared, nothing.total, nothing.share, nothing.example) == (0, 0, 0.0, "")


# -- Tasks --------------------------------------------------------------------------------------------------------

KINDS = ["tiny_choice", "tiny_mutual", "tiny_schema", "tiny_last_word", "tiny_text", "tiny_generation"]


def task(tasks: str, name: str, **settings: Any) -> LMEval:
    return LMEval([{"task": name, **settings}], include_path=tasks)


@pytest.mark.parametrize("name", KINDS)
def test_a_task_of_any_kind_shares_all_with_itself(ready: Ready, tasks: str, name: str) -> None:
    first, again = (ready(task(tasks, name)) for _ in range(2))
    number = len((Path(tasks) / f"{name}.jsonl").read_text().splitlines())
    found = overlap(first, again)
    assert (found.shared, found.total) == (number, number)
    assert len({d for piece in first.fingerprints for d in piece.digests}) == number  # no two are the same


def test_few_shot_examples_do_not_matter_and_documents_count_once_each(ready: Ready, tasks: str) -> None:
    plain, shots = (ready(task(tasks, "tiny_choice", num_fewshot=n)) for n in (0, 2))
    assert overlap(plain, shots).shared == 6
    some = ready(task(tasks, "tiny_choice", samples=[1, 4]))
    assert overlap(some, shots) == Overlap(2, 6, example=overlap(some, shots).example)
    assert overlap(shots, some).share == 1.0
    assert overlap(some, shots).example == "Anna has 3 apples and buys 4 more; now she has"


def test_two_tasks_share_the_questions_that_they_have_in_common(ready: Ready, tasks: str) -> None:
    # the same file under another task's name, the same choices: the questions are the same
    assert overlap(ready(task(tasks, "tiny_choice")), ready(task(tasks, "tiny_mutual"))).shared == 6
    lines = (Path(tasks) / "tiny_choice.jsonl").read_text().splitlines()
    changed = [json.dumps({**json.loads(line), "c": ["yes", "no"], "gold": 0}) for line in lines[2:4]]
    (Path(tasks) / "tiny_mutual.jsonl").write_text("\n".join([*lines[:2], *changed]) + "\n")
    found = overlap(ready(task(tasks, "tiny_choice")), ready(task(tasks, "tiny_mutual")))
    assert (found.shared, found.total) == (2, 4)


def test_different_tasks_share_nothing(ready: Ready, tasks: str) -> None:
    different = [ready(task(tasks, n)) for n in ("tiny_choice", "tiny_schema", "tiny_last_word", "tiny_text")]
    for first in different:
        for second in different:
            assert (overlap(first, second).shared > 0) == (first is second)


def test_a_text_and_a_task_that_reads_the_same_text_share_it(ready: Ready, tasks: str) -> None:
    (Path(tasks) / "tiny_text.jsonl").write_text(json.dumps({"text": STORY[:3000]}) + "\n")
    assert overlap(ready(whole(Given("x", STORY))), ready(task(tasks, "tiny_text"))).share == 1.0


def test_questions_are_told_apart_by_every_part() -> None:
    pieces = [
        question_fingerprint("a", ["b", "c"]),
        question_fingerprint("a", ["b", "d"]),
        question_fingerprint("b", ["a", "c"]),
        question_fingerprint("a", ["bc"]),
        question_fingerprint("a", ["b", "c", ""]),
        question_fingerprint("ab", ["c"]),
        question_fingerprint("a b", ["c"]),
        question_fingerprint("a\x1f1:b", ["c"]),
        text_fingerprint("abc"),
    ]
    assert len(frozenset().union(*(piece.digests for piece in pieces))) == len(pieces)
    assert question_fingerprint(" a\n", [" b", "c"]).digests == question_fingerprint("a", ["b", "c "]).digests


def test_digests_are_the_same_in_every_process() -> None:
    code = (
        "from tailorlib.evaluation.overlap import question_fingerprint, text_fingerprint\n"
        f"print(sorted(text_fingerprint({STORY!r}).digests), question_fingerprint('q', ['a', 'b']).digests)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    expected = f"{sorted(text_fingerprint(STORY).digests)} {question_fingerprint('q', ['a', 'b']).digests}"
    assert other.stdout.strip() == expected
