# ruff: noqa: T201
"""Hold the engine against ``lm_eval.simple_evaluate`` on real tasks and random tailorings; run it as a script.

For each task: the largest difference of a request's log-likelihood, and how many greedy flags, accuracies and
choices differ. Perplexities are made of log-likelihoods and differ as those do: by what part of their value is a
column of its own. Example::

    python tests/benchmarks/evaluation_agreement.py --data DATA --model MODEL --adapters code=DIR math=DIR
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from evaluation_speed import machine
from local_tasks import MMLU, TASKS, write_tasks
from tailorlib_strategies.operations import TIES, LayerRemoval, Linear, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib.evaluation.engine import Engine, Scores
from tailorlib.evaluation.requests import TaskRequests, quiet_lm_eval
from tailorlib.evaluation.tasks import TaskSettings
from tailorlib.models.family import ModelFamily
from tailorlib.seeding import numpy_generator


@dataclass
class Row:
    """What differs in one task, all tailorings together."""

    requests: int = 0
    largest: float = 0.0
    flags: int = 0
    accuracies: int = 0
    accuracies_differing: int = 0
    perplexity: float = 0.0
    questions: int = 0
    choices: int = 0
    packed_plain: float = 0.0


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--model", required=True, help="the base model")
    parser.add_argument("--adapters", nargs="*", default=[], metavar="NAME=DIR", help="fine-tunes of it")
    parser.add_argument("--tailorings", type=int, default=2)
    parser.add_argument("--remove", type=float, default=0.25, help="share of the layers that a tailoring removes")
    parser.add_argument("--questions", type=int, default=20, help="of each task, and of each MMLU subject")
    parser.add_argument("--subjects", type=int, default=3, help="of MMLU")
    parser.add_argument("--tasks", nargs="+", default=[*TASKS, MMLU], choices=[*TASKS, MMLU])
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=8, help="of simple_evaluate")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"machine: {machine(torch.device('cpu'))}\ncommand: {shlex.join(sys.argv)}")
    print(f"python {platform.python_version()}, torch {torch.__version__}, float32")

    family = ModelFamily(args.model, dict(pair.split("=", 1) for pair in args.adapters), dtype="float32")
    family.load(torch.device("cpu"))
    space = PruningSpace(LayerRemoval(args.remove), merges=[TaskArithmetic(), TIES(), Linear()])
    space.setup(family.layout)
    rng = numpy_generator("agreement")
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(args.data, Path(folder), args.subjects)
        comparison = Comparison(family, folder, args)
        for seed in range(args.tailorings):
            tailoring = space.decode(space.sample(rng), seed=seed)
            print(
                f"tailoring {seed + 1}: {len(tailoring.layers)} layers of {', '.join(tailoring.models)}",
                flush=True,
            )
            comparison.add(family.stitch(tailoring))
            print(comparison.table(), flush=True)


class Comparison:
    """Counts what differs between the engine, packed and plain, and ``simple_evaluate``."""

    def __init__(self, family: ModelFamily, folder: str, args: argparse.Namespace) -> None:
        self.family, self.folder, self.args = family, folder, args
        names = [name for name in args.tasks if name != MMLU]
        entries: list[Any] = [*names, *([{"task": MMLU, "num_fewshot": 5}] if MMLU in args.tasks else [])]
        engines = [
            Engine(family.tokenizer, torch.device("cpu"), args.max_length, packing=p) for p in (True, False)
        ]
        self.ours = TaskRequests(entries, engines[0], TaskSettings(include_path=folder, limit=args.questions))
        self.engines = [(engine, engine.compile(self.ours.requests)) for engine in engines]
        packed, plain = (compiled.tokens for _, compiled in self.engines)
        print(f"{len(self.ours.requests)} requests, {plain} tokens in plain rows, {packed} packed", flush=True)
        self.rows = {name: Row() for name in self.ours.tasks}

    def add(self, model: Any) -> None:
        """Compare under one model."""
        packed, plain = (engine.score(model, compiled) for engine, compiled in self.engines)
        found = self.ours.evaluate(packed)
        theirs = dict(self._simple_evaluate(model))
        for name, task in self.ours.tasks.items():
            row = self.rows[name]
            results = theirs[name if name in theirs else MMLU]
            self._add_answers(row, task, results["samples"][name])
            self._add_choices(row, task, packed, plain)
            for key, value in results["results"][name].items():
                metric, _, kind = key.partition(",")
                if kind != "none" or metric.endswith("_stderr"):
                    continue
                own = found.metrics[f"{name}/{metric}"]
                if metric.startswith("acc"):
                    row.accuracies += 1
                    row.accuracies_differing += own != value
                else:
                    row.perplexity = max(row.perplexity, abs(own - value) / abs(value))

    def _add_answers(self, row: Row, task: Any, samples: Any) -> None:
        answers = [answer for sample in samples for (answer,) in sample["resps"]]
        for answer, instance in zip(answers, task.instances, strict=True):
            own = instance.resps[0]
            row.requests += 1
            if isinstance(own, tuple):
                row.largest = max(row.largest, abs(own[0] - answer[0]))
                row.flags += own[1] != answer[1]
            else:
                row.largest = max(row.largest, abs(own - answer))

    def _add_choices(self, row: Row, task: Any, packed: Scores, plain: Scores) -> None:
        questions: dict[int, list[tuple[int, ...]]] = {}
        for instance in task.instances:
            questions.setdefault(instance.doc_id, []).append(self.ours.requests_of(instance))
        for choices in questions.values():
            sums = [
                torch.stack([scores.log_likelihood[list(choice)].sum() for choice in choices])
                for scores in (packed, plain)
            ]
            row.packed_plain = max(row.packed_plain, float((sums[0] - sums[1]).abs().max()))
            row.questions += 1
            row.choices += int(sums[0].argmax() != sums[1].argmax())

    def _simple_evaluate(self, model: Any) -> Iterator[tuple[str, Any]]:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        with quiet_lm_eval():
            lm = HFLM(
                pretrained=model,
                tokenizer=self.family.tokenizer,
                batch_size=self.args.batch_size,
                max_length=self.args.max_length,
            )
        for name in self.args.tasks:
            with quiet_lm_eval():
                results = lm_eval.simple_evaluate(
                    lm,
                    tasks=[name],
                    limit=self.args.questions,
                    num_fewshot=5 if name == MMLU else None,
                    task_manager=TaskManager(include_path=self.folder, include_defaults=False),
                    bootstrap_iters=0,
                )
            yield name, results

    def table(self) -> str:
        """Return the comparison so far as a Markdown table."""
        head = (
            "task",
            "requests",
            "largest log-likelihood difference",
            "greedy flags differing",
            "accuracies differing",
            "perplexity, relative difference",
            "packed against plain: largest difference",
            "choices differing",
        )
        lines = [head, ("---",) * len(head)]
        lines += [
            (
                name,
                str(row.requests),
                f"{row.largest:.1e}",
                str(row.flags),
                f"{row.accuracies_differing} of {row.accuracies}",
                f"{row.perplexity:.1e}" if row.perplexity else "",
                f"{row.packed_plain:.1e}",
                f"{row.choices} of {row.questions}",
            )
            for name, row in self.rows.items()
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
