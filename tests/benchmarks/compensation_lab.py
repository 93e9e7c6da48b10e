"""A real family set up to compare compensations: text to calibrate on, text and questions that nothing saw.

All sets are split by rows: calibration, search and test never share one. Domains of the calibration: web text,
encyclopedia, code, maths, and right answers to questions of the kinds that are tested.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from local_tasks import write_tasks
from tailorlib_strategies.fitness import LMEval, Perplexity

from tailorlib import Tailoring, TextSource
from tailorlib.calibration.mixture import Calibration
from tailorlib.evaluation.engine import Engine
from tailorlib.fitness import Fitness, Measurement
from tailorlib.models.family import ModelFamily

SHARES = {"web": 0.3, "encyclopedia": 0.15, "code": 0.2, "maths": 0.15, "answers": 0.2}
QUESTIONS = ("hellaswag", "piqa", "arc_easy", "sciq", "blimp")
TEXTS = ("encyclopedia", "code", "maths")
CHANCE = {"hellaswag": 0.25, "piqa": 0.5, "arc_easy": 0.25, "sciq": 0.25, "blimp": 0.5}


@dataclass
class Rows(TextSource):
    """Documents of rows of data sets.

    Args:
        texts: The documents.
    """

    texts: Sequence[str]

    def documents(self) -> list[str]:
        """Return them."""
        return list(self.texts)


class Data:
    """The data sets of a folder, each cut into rows to calibrate on, to search on and to test on.

    Args:
        folder: One folder per data set with JSON Lines files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def calibration(self, tokens: int, shares: Mapping[str, float] | None = None, **settings: Any) -> Calibration:
        """Return calibration text of some domains."""
        chosen = dict(shares or SHARES)
        sources: dict[str, TextSource] = {name: Rows(self.texts(name, "calibration")) for name in chosen}
        return Calibration(sources, chosen, tokens=tokens, **settings)

    def texts(self, domain: str, role: str) -> list[str]:
        """Return the documents of a domain for a role: ``calibration``, ``search`` or ``test``."""
        if domain == "web":
            return self._part("c4_sample", "train", role)
        if domain == "code":
            return self._part("python_code", "validation", role)
        if domain == "answers":
            return [text for name in QUESTIONS for text in self._answers(name, role)]
        name = {"encyclopedia": "wikitext2", "maths": "gsm8k"}[domain]
        if role == "test":
            return [_text(row) for row in self._rows(name, "validation")]
        rows = [_text(row) for row in self._rows(name, "train")]
        half = len(rows) // 2
        return rows[:half] if role == "calibration" else rows[half:]

    def _part(self, name: str, split: str, role: str) -> list[str]:
        """Return the documents of some files of a data set: parts of one file are never in two roles."""
        rows = self._rows(name, split)
        files = list(dict.fromkeys(str(row["id"]).partition("#")[0] for row in rows))
        low, high = {"calibration": (0.0, 0.5), "search": (0.5, 0.65), "test": (0.65, 1.0)}[role]
        chosen = set(files[int(low * len(files)) : int(high * len(files))])
        return [_text(row) for row in rows if str(row["id"]).partition("#")[0] in chosen]

    def _answers(self, name: str, role: str) -> list[str]:
        rows = self._rows(name, "validation")
        low, high = {"test": (0.0, 0.4), "search": (0.4, 0.5), "calibration": (0.5, 1.0)}[role]
        return [
            row["query"] + row["choices"][row["gold"]]
            for row in rows[int(low * len(rows)) : int(high * len(rows))]
        ]

    def _rows(self, name: str, split: str) -> list[dict[str, Any]]:
        (file,) = (self.folder / name).glob(f"{split}.jsonl")
        return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _text(row: Mapping[str, Any]) -> str:
    return str(row["text"]) if "text" in row else f"{row['question']}\n{row['answer']}"


class Lab:
    """A loaded family with an engine and the tests.

    Args:
        base: The base model.
        candidates: Models by name.
        data: Folder of the data sets.
        record: Folder of task files and of measurements, which are kept by tailoring.
        questions: Number of questions of each task; 0 for texts alone.
        tokens: Number of tokens of each text.
    """

    def __init__(
        self,
        base: str,
        candidates: Mapping[str, str],
        data: Path,
        record: Path,
        questions: int,
        tokens: int = 4096,
    ) -> None:
        self.data, self.record, self.questions = Data(data), record, questions
        record.mkdir(parents=True, exist_ok=True)
        write_tasks(data, record / "tasks")
        self.family = ModelFamily(base, dict(candidates), dtype="float32")
        device = torch.device("cpu")
        self.family.prepare()
        self.engine = Engine(self.family.tokenizer, device, 2048)
        self.tests: dict[str, Fitness] = {
            name: Perplexity(Rows(self.data.texts(name, "test")), context_length=512, max_tokens=tokens)
            for name in TEXTS
        }
        if questions:
            names: list[Any] = [f"local_{name}" for name in QUESTIONS]
            self.tests["questions"] = LMEval(names, include_path=str(record / "tasks"), limit=questions)
        for test in self.tests.values():
            test.check()
            test.setup(self.engine)
        self.family.load(device)
        self._file = record / f"measured-{questions}-{tokens}.json"
        self.known: dict[str, dict[str, float]] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def measure(self, tailoring: Tailoring) -> dict[str, float]:
        """Return nats of each text and accuracies of each task, kept by the tailoring's digest."""
        if tailoring.digest not in self.known:
            model = self.family.stitch(tailoring)
            found: dict[str, float] = {}
            for name, test in self.tests.items():
                self._add(found, name, test.evaluate(model))
            self.engine.states.clear()
            self.known[tailoring.digest] = found
            self._file.write_text(json.dumps(self.known))
        return self.known[tailoring.digest]

    def _add(self, found: dict[str, float], name: str, measured: Measurement) -> None:
        if name != "questions":
            found[name] = measured.metrics["nats_per_token"]
            return
        for task in QUESTIONS:
            metric = "acc" if task == "blimp" else "acc_norm"
            found[task] = next(v for k, v in measured.metrics.items() if k.endswith(f"local_{task}/{metric}"))

    def summary(self, tailoring: Tailoring, dense: Tailoring) -> dict[str, float]:
        """Return mean nats, and text, plain accuracy and accuracy above chance in percent of the dense model's."""
        one, whole = self.measure(tailoring), self.measure(dense)
        texts = [one[name] for name in TEXTS]
        result = {
            "nats": sum(texts) / len(texts),
            "text": 100 * sum(math.exp(whole[name] - one[name]) for name in TEXTS) / len(TEXTS),
        }
        if self.questions:
            plain = [sum(found[t] for t in QUESTIONS) for found in (one, whole)]
            chance = sum(CHANCE.values())
            result["plain"] = 100 * plain[0] / plain[1]
            result["above"] = 100 * (plain[0] - chance) / (plain[1] - chance)
        return result
