# ruff: noqa: T201
"""Compares compensations on a real family: nothing searched, nothing trained, one table per question. ::

    python tests/benchmarks/compensation.py --base BASE --candidates code=A commonsense=B math=C \
        --data DATA --record RECORD --only methods criteria tokens domains teachers ridges

Every measurement is kept in RECORD by what was measured, so a run that was stopped goes on where it was.
Kept layers are base + 0.35 times the sum of all task vectors, and so is the teacher, unless a row says otherwise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from compensation_lab import QUESTIONS, SHARES, TEXTS, Lab
from tailorlib_strategies.compensations import Bridge, MagnitudeScale, OutputMap, Refit
from tailorlib_strategies.compensations.teachers import teachers
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.warm_starts import (
    AngularDistance,
    BlockInfluence,
    GapDistance,
    MagnitudeImportance,
    RandomTailoring,
    TaylorImportance,
)
from tailorlib_strategies.warm_starts.removals import merge_by_scale, merged, removed_by

from tailorlib import Tailoring, WarmStart
from tailorlib.calibration.bridges import RIDGES
from tailorlib.calibration.gather import Job, bridge_table
from tailorlib.calibration.mixture import Calibration, CalibrationRows, lay_out
from tailorlib.calibration.written import written_rows
from tailorlib.cli import main as tailor
from tailorlib.compensation import Compensation, CompensationContext, seams
from tailorlib.journal import Journal
from tailorlib.models.terms import TermFiles, keep_terms
from tailorlib.warm_start import WarmStartContext

SCALE = 0.35
SECTIONS = ("methods", "criteria", "tokens", "domains", "teachers", "ridges", "written", "searches")


class Comparison:
    """What the sections share: the lab, the merged layers and the teacher.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        pairs = (pair.partition("=") for pair in args.candidates)
        candidates = {name: model for name, _, model in pairs}
        self.args = args
        self.lab = Lab(args.base, candidates, args.data, args.record, args.questions, args.text_tokens)
        keep_terms(self.lab.family, args.record, cached=True)
        self.number = self.lab.family.layout.num_layers
        self.operation = merge_by_scale("TaskArithmetic", "scale")
        self.dense = Tailoring.whole("base", self.number)
        self.teacher = self.cut(())

    def cut(self, removed: Sequence[int], scale: float = SCALE) -> Tailoring:
        """Return the merge of all candidates without some layers; the base's layers if there is one candidate."""
        names = self.lab.family.layout.candidates
        kept = [i for i in range(self.number) if i not in removed]
        if len(names) < 2:
            return Tailoring.whole("base", self.number, without=removed)
        return Tailoring(tuple(merged(self.operation, scale, names, i) for i in kept))

    def context(self, longest: int) -> CompensationContext:
        """Return what a compensation gets; the teacher is given, so nothing is scored."""
        return CompensationContext(self.lab.family, torch.device("cpu"), longest, lambda t: 0.0)

    def calibration(self, tokens: int | None = None, domains: Sequence[str] | None = None) -> Calibration:
        """Return calibration text."""
        shares = {name: share for name, share in SHARES.items() if domains is None or name in domains}
        return self.lab.data.calibration(tokens or self.args.calibration, shares)

    def bridged(
        self, tailoring: Tailoring, calibration: Calibration, teacher: Tailoring | None = None
    ) -> Tailoring:
        """Return a tailoring with bridges."""
        longest = max(seam.above - seam.layer - 1 for seam in seams(tailoring, self.number))
        rows = lay_out(calibration, self.lab.family.tokenizer, None)
        table = bridge_table(
            Job(
                self.lab.family,
                teacher or self.teacher,
                rows,
                max(longest, self.args.longest),
                torch.device("cpu"),
            )
        )
        layers = list(tailoring.layers)
        for seam in seams(tailoring, self.number):
            layers[seam.plan] = replace(layers[seam.plan], terms=table.terms(seam.layer, seam.above))
        return replace(tailoring, layers=tuple(layers))

    def _rows(self, calibration: Calibration) -> CalibrationRows:
        def write(model: str, tokens: int, length: int) -> list[tuple[int, ...]]:
            return written_rows(self.lab.family, model, tokens, length, 0)

        return lay_out(calibration, self.lab.family.tokenizer, None, write)

    def with_method(self, method: str, tailoring: Tailoring) -> Tailoring:
        """Return a tailoring compensated by a method."""
        calibration = self.calibration()
        made: dict[str, Callable[[], Compensation]] = {
            "magnitude": lambda: MagnitudeScale(calibration, "merge"),
            "output map": lambda: OutputMap(calibration, "merge"),
            "bridge": lambda: Bridge(calibration, "merge"),
            "seams refitted": lambda: Refit(calibration, "merge", layers="gaps", attention=False),
            "seams refitted, attention too": lambda: Refit(calibration, "merge", layers="gaps"),
            "all refitted, MLPs": lambda: Refit(calibration, "merge", attention=False),
            "all refitted": lambda: Refit(calibration, "merge"),
        }
        if method == "nothing":
            return tailoring
        compensation = made[method]()
        compensation.choose = lambda context: ("merge", self.teacher, {})  # type: ignore[attr-defined]
        compensation.prepare(self.context(self.args.longest))
        return compensation.complete(tailoring)

    def removals(self, count: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield what each criterion removes."""
        text = self.calibration().sources["web"]
        space = PruningSpace(LayerRemoval(count=count), merges=[TaskArithmetic()])
        space.setup(self.lab.family.layout)
        context = WarmStartContext(self.lab.family, space, self.lab.engine, 0)
        starts: dict[str, WarmStart] = {
            "block influence": BlockInfluence(text, max_tokens=4096),
            "gap distance": GapDistance(text, max_tokens=4096),
            "one block by angle (ReplaceMe)": AngularDistance(text, max_tokens=4096),
            "Taylor": TaylorImportance(text),
            "magnitude": MagnitudeImportance(),
            "random": RandomTailoring(),
        }
        for name, start in starts.items():
            yield name, removed_by(start, context, start)

    def row(self, name: str, tailoring: Tailoring) -> str:
        """Measure a tailoring and return its row."""
        found = self.lab.summary(tailoring, self.dense)
        cells = [f"{found['nats']:.3f}", f"{found['text']:.1f}"]
        if "plain" in found:
            cells += [f"{found['plain']:.1f}", f"{found['above']:.1f}"]
        one = self.lab.measure(tailoring)
        cells += [f"{one[name]:.3f}" for name in ("encyclopedia", "code", "maths")]
        return f"| {name} | {' | '.join(cells)} |"

    def print_row(self, name: str, tailoring: Tailoring) -> None:
        """Measure a tailoring and print its row."""
        print(self.row(name, tailoring), flush=True)

    def head(self, title: str) -> None:
        """Print a section's title and the head of its table."""
        names = ["", "nats", "text %"]
        names += ["answers %", "above chance %"] if self.args.questions else []
        names += ["encyclopedia", "code", "maths"]
        print(f"\n## {title}\n\n| {' | '.join(names)} |\n|{' --- |' * len(names)}", flush=True)

    def run(self, section: str) -> None:
        """Print the table of a section."""
        args = self.args
        removed = next(iter(self.removals(args.removed)))[1] if args.layers is None else tuple(args.layers)
        cut = self.cut(removed)
        self.head(f"{section}, without {', '.join(map(str, removed))}" if section != "criteria" else section)
        self.print_row("dense base", self.dense)
        self.print_row("teacher", self.teacher)
        if section == "methods":
            for method in args.methods:
                self.print_row(method, self.with_method(method, cut))
        elif section == "criteria":
            for name, gone in self.removals(args.removed):
                for method in args.methods:
                    self.print_row(f"{name} ({_listed(gone)}), {method}", self.with_method(method, self.cut(gone)))
        elif section == "tokens":
            for tokens in args.tokens:
                self.print_row(f"{tokens:,} tokens", self.bridged(cut, self.calibration(tokens)))
        elif section == "domains":
            self.print_row("all domains", self.bridged(cut, self.calibration()))
            for name in SHARES:
                others = [other for other in SHARES if other != name]
                self.print_row(f"without {name}", self.bridged(cut, self.calibration(domains=others)))
            self.print_row("web alone", self.bridged(cut, self.calibration(domains=["web"])))
        elif section == "teachers":
            for name, teacher in teachers(self.lab.family, 0):
                self.print_row(name, self.bridged(cut, self.calibration(), teacher))
        elif section == "written":
            names = self.lab.family.layout.models
            self_written = Calibration(written_by=list(names), tokens=args.calibration)
            by_base = Calibration(written_by=["base"], tokens=args.calibration)
            self.print_row("real text", self.bridged(cut, self.calibration()))
            self.print_row("written by base and variants", self.bridged(cut, self_written))
            self.print_row("written by the base", self.bridged(cut, by_base))
        elif section == "searches":
            for seed in args.seeds:
                for bridged in (True, False):
                    found, seconds = self.searched(seed, bridged=bridged)
                    name = f"seed {seed}, {'bridged' if bridged else 'not bridged'}"
                    self.print_row(f"{name}, {seconds:.1f} s a trial", found)
                    if args.refit:
                        self.print_row(
                            f"{name}, refitted at the end", self.with_method("all refitted", found.bare)
                        )
        elif section == "ridges":
            for ridge in RIDGES:
                self.print_row(f"lambda {ridge:g}", self._ridged(cut, ridge))
            self.print_row("lambda by held-out text", self.bridged(cut, self.calibration()))

    def _ridged(self, tailoring: Tailoring, ridge: float) -> Tailoring:
        rows = lay_out(self.calibration(), self.lab.family.tokenizer, None)
        job = Job(self.lab.family, self.teacher, rows, self.args.longest, torch.device("cpu"), ridges=(ridge,))
        table, layers = bridge_table(job), list(tailoring.layers)
        for seam in seams(tailoring, self.number):
            layers[seam.plan] = replace(layers[seam.plan], terms=table.terms(seam.layer, seam.above))
        return replace(tailoring, layers=tuple(layers))

    def searched(self, seed: int, *, bridged: bool) -> tuple[Tailoring, float]:
        """Return what a search finds, from the command line, and the median seconds of a trial."""
        record = self.args.record
        run = record / f"search-{self.args.removed}-{seed}-{'bridged' if bridged else 'plain'}"
        recipe = record / f"{run.name}.yaml"
        recipe.write_text(yaml.safe_dump(self._recipe(run, seed, bridged)), encoding="utf-8")
        arguments = ["--resume", str(run)] if (run / "journal.jsonl").exists() else ["--config", str(recipe)]
        if tailor(["search", *arguments]) != 0:
            raise SystemExit(f"The search in {run} failed.")
        assert isinstance(self.lab.family.assembly.terms, TermFiles)
        self.lab.family.assembly.terms.sources.append(run / "terms")
        trials = Journal.read(run).trials
        return Tailoring.load(run / "tailoring.yaml"), median(trial.seconds for trial in trials)

    def _recipe(self, run: Path, seed: int, bridged: bool) -> dict[str, Any]:
        args, record = self.args, self.args.record
        texts = {}
        for role, names in (("search", TEXTS), ("calibration", tuple(SHARES))):
            for name in names:
                file = record / f"{role}-{name}.jsonl"
                lines = (json.dumps({"text": text}) + "\n" for text in self.lab.data.texts(name, role))
                file.write_text("".join(lines), encoding="utf-8")
                texts[role, name] = {"class_path": "JSONLines", "init_args": {"path": str(file.resolve())}}
        parts: dict[str, Any] = {
            name: {
                "class_path": "Perplexity",
                "init_args": {"text": texts["search", name], "context_length": 256, "max_tokens": 2048},
            }
            for name in TEXTS
        }
        tasks = [{"task": f"local_{name}", "samples": list(range(400, 432))} for name in QUESTIONS]
        settings = {"tasks": tasks, "include_path": str((record / "tasks").resolve())}
        parts["questions"] = {"class_path": "LMEval", "init_args": settings}
        influence = {
            "class_path": "BlockInfluence",
            "init_args": {"text": texts["calibration", "web"], "merge_scales": [0.2, 0.35, 0.5]},
        }
        recipe: dict[str, Any] = {
            "family": {
                "class_path": "ModelFamily",
                "init_args": {
                    "base": args.base,
                    "candidates": dict(pair.split("=", 1) for pair in args.candidates),
                    "dtype": "float32",
                },
            },
            "search_space": {
                "class_path": "PruningSpace",
                "init_args": {
                    "removal": {"class_path": "LayerRemoval", "init_args": {"count": args.removed}},
                    "merges": [{"class_path": "TaskArithmetic", "init_args": {"scale": [0.0, 1.0]}}],
                },
            },
            "optimizer": "StructuredBayes",
            "fitness": {"class_path": "WeightedMean", "init_args": {"parts": parts}},
            "warm_starts": [
                influence,
                {**influence, "class_path": "GapDistance"},
            ],
            "study": {"directory": str(run), "trials": args.trials, "seed": seed, "export": False},
            "trainer": {"accelerator": "cpu"},
        }
        if bridged:
            sources = {name: texts["calibration", name] for name in SHARES}
            calibration = {"sources": sources, "shares": SHARES, "tokens": args.calibration}
            recipe["compensation"] = {
                "class_path": "Bridge",
                "init_args": {"calibration": calibration, "teacher": "merge"},
            }
        return recipe


def _listed(layers: Sequence[int]) -> str:
    """Return layers as text, runs of them as ranges."""
    runs: list[list[int]] = []
    for i in layers:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def main() -> None:
    """Run the sections that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--candidates", nargs="+", required=True, help="NAME=MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--removed", type=int, default=8)
    parser.add_argument("--layers", type=int, nargs="+", help="remove these, instead of block influence's")
    parser.add_argument("--longest", type=int, default=8, help="gap that tables are gathered for")
    parser.add_argument("--calibration", type=int, default=98_304, help="tokens")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16_384, 65_536, 98_304, 262_144])
    parser.add_argument("--questions", type=int, default=0, help="of each task; 0: texts alone")
    parser.add_argument("--text-tokens", type=int, default=4096, help="of each text")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["nothing", "magnitude", "output map", "bridge", "seams refitted, attention too", "all refitted"],
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the searches")
    parser.add_argument("--trials", type=int, default=30, help="of a search")
    parser.add_argument("--refit", action="store_true", help="what searches find, too")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    comparison = Comparison(args)
    print(json.dumps({k: str(v) for k, v in vars(args).items()}))
    for section in args.only:
        comparison.run(section)


if __name__ == "__main__":
    main()
