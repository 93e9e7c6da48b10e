"""The store of evaluations: shared by processes, whole after a kill."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from evaluations import Evaluations, Key, Scorer, fitness_key
from tailorlib_strategies.fitness import Perplexity, WeightedMean

from tailorlib import TextSource
from tailorlib.evaluation.engine import Engine
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring
from tailorlib.testing.tiny import tiny_tokenizer, write_tiny_model

KEY = Key("family", "fitness", "candidate")
WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from evaluations import Evaluations, Key
store, name = Evaluations(Path(sys.argv[2])), sys.argv[3]
for i in range(int(sys.argv[4])):
    for key in (Key("f", "g", "shared"), Key("f", "g", name)):
        known = len(store.get(key))
        store.extend(key, known, [[known, 0.1 * known], [known + 1, 0.1 * (known + 1)]])
    print(i, flush=True)
"""


class Given(TextSource):
    def __init__(self, word: str = "fox") -> None:
        self._word = word

    def documents(self) -> Sequence[str]:
        return [f"The quick brown {self._word} jumps over {i} dogs. " * 8 for i in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Evaluations]:
    opened = Evaluations(tmp_path / "folder" / "evaluations.sqlite")
    yield opened
    opened.close()


def cut(*layers: int) -> Tailoring:
    return Tailoring(tuple(LayerPlan((LayerSource(BASE, i),)) for i in layers))


def test_results_come_back_as_they_were(store: Evaluations) -> None:
    assert store.get(KEY) == []
    first, more = [0.1 + 0.2, [-1e-300, True], "text"], [[["a", "b"]], {"score": -2.5}]
    store.extend(KEY, 0, first, cut(0, 2))
    store.extend(KEY, 3, more)
    assert store.get(KEY) == first + more
    assert store.get(KEY._replace(tailoring="other")) == []
    assert store.get(KEY._replace(fitness="other")) == []
    assert store.get(KEY._replace(family="other")) == []
    assert (store.counts.lookups, store.counts.found, store.counts.added) == (5, 1, 5)
    again = Evaluations(store.path)
    assert again.get(KEY) == first + more
    assert again.studies() == [("family", "fitness", 1, 5)]


def test_what_is_known_stays_and_gaps_are_refused(store: Evaluations) -> None:
    store.extend(KEY, 0, [1, 2, 3])
    store.extend(KEY, 1, [20, 30, 4])
    store.extend(KEY, 0, [10])
    assert store.get(KEY) == [1, 2, 3, 4]
    assert store.counts.added == 4
    with pytest.raises(ValueError, match="no gap: 4 are known, got some from 6 on"):
        store.extend(KEY, 6, [7])
    assert store.get(KEY) == [1, 2, 3, 4]


def writer(store: Evaluations, name: str, times: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(store.path), name, str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_several_processes_write_at_once_and_a_killed_one_loses_nothing(store: Evaluations) -> None:
    writers = [writer(store, "a", 40), writer(store, "b", 40), writer(store, "killed", 10**6)]
    assert writers[2].stdout is not None
    done = [int(writers[2].stdout.readline()) for _ in range(25)][-1] + 1
    writers[2].send_signal(signal.SIGKILL)
    assert [w.wait() for w in writers] == [0, 0, -signal.SIGKILL]
    for name in ("a", "b", "killed", "shared"):
        found = store.get(Key("f", "g", name))
        assert found == [[i, 0.1 * i] for i in range(len(found))], name
        assert len(found) % 2 == 0
    assert len(store.get(Key("f", "g", "a"))) == len(store.get(Key("f", "g", "b"))) == 80
    assert 2 * done <= len(store.get(Key("f", "g", "killed")))
    for w in writers:
        assert w.stdout is not None
        w.stdout.close()
    store.extend(Key("f", "g", "killed"), 0, [])  # the lock of the killed one is gone


def test_whole_candidates_are_exported_the_same_way_each_time(store: Evaluations, tmp_path: Path) -> None:
    for number, results in enumerate(([1.0, 2.0, 6.0], [5.0], [2.0, 2.0, 2.0])):
        tailoring = cut(0, number)
        store.extend(Key("f", "g", tailoring.digest), 0, results, tailoring)
    store.extend(Key("f", "other", cut(0, 5).digest), 0, [1.0, 1.0, 1.0], cut(0, 5))
    targets = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"]
    for target in targets:
        assert store.export(target, "f", "g", 2, lambda results: sum(results)) == 2
    assert targets[0].read_bytes() == targets[1].read_bytes()
    head, *lines = map(json.loads, gzip.decompress(targets[0].read_bytes()).splitlines())
    assert head == {"family": "f", "fitness": "g", "samples": 2}
    found = {Tailoring.from_dict(line["tailoring"]): line["score"] for line in lines}
    assert found == {cut(0, 0): 3.0, cut(0, 2): 4.0}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    made = ModelFamily(str(write_tiny_model(tmp_path_factory.mktemp("model"), num_layers=4)), dtype="float32")
    made.prepare()
    made.load(torch.device("cpu"))
    return made


def test_a_sample_is_scored_once_for_all(store: Evaluations, family: ModelFamily) -> None:
    engine = Engine(family.tokenizer, torch.device("cpu"), 256)
    fitness = Perplexity(Given(), context_length=16, max_tokens=160)
    fitness.setup(engine)
    expected = fitness.evaluate(family.stitch(cut(0, 1, 3))).score
    first = Scorer(family, fitness, engine, store)
    assert first.measure(cut(0, 1, 3), 4).score != pytest.approx(expected)
    assert store.counts.added == 4
    assert first.measure(cut(0, 1, 3)).score == pytest.approx(expected, rel=1e-6)
    assert store.counts.added == fitness.num_samples == 10
    second = Scorer(family, fitness, engine, Evaluations(store.path))
    assert second.measure(cut(0, 1, 3)).score == pytest.approx(expected, rel=1e-6)
    assert second.store.counts.added == 0
    assert second.measure(cut(0, 2, 3)).score != pytest.approx(expected)
    assert second.store.counts.added == 10


def test_a_fitness_is_known_by_its_data_and_settings() -> None:
    def key(max_length: int = 256, word: str = "fox", **settings: Any) -> str:
        engine = Engine(tiny_tokenizer(), torch.device("cpu"), max_length)
        fitness = WeightedMean(
            {"a": Perplexity(Given(word), **{"context_length": 16, "max_tokens": 64, **settings})}
        )
        fitness.setup(engine)
        return fitness_key(fitness, engine)

    assert key() == key()
    others = [key(), key(max_length=128), key(word="cow"), key(context_length=17), key(max_tokens=65), key(seed=1)]
    assert len(set(others)) == len(others)
