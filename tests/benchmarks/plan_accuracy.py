# ruff: noqa: T201
"""Hold what ``tailor plan`` says of a recipe against what its search then takes; run it as a script.

Both run in fresh processes, from the recipe's folder, as the command line runs them, with nothing exported and no
benchmark; a recorder in each process notes what the plan estimates and what the search measures:

- seconds per trial over all trials that the optimizer proposed, and without the study's first, which
  takes most layers from their files;
- share of the layers that didn't run, layers that ran, merges, and seconds of stitching (which is merging, and
  taking layers from their files for the first time);
- memory of the family: what the stitcher holds when each layer of each model was used, for which all of them are
  stitched when the search is over.

Printed beside it: by how much the search's process grew at most while it had the family (Linux only), which also
has activations, and depends on how many layers the search came to use. What follows the recipe are options of the
command line, for both. Example::

    python tests/benchmarks/plan_accuracy.py recipe.yaml --threads 2 --repeats 2 --study.trials 30
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

WITHIN = 0.25


def run(verb: str, options: list[str], recipe: str, folder: str) -> None:
    """Run a verb of the command line in this process, with a recorder; what it finds goes to ``folder``."""
    os.chdir(Path(recipe).parent)
    log = os.open(Path(folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    from tailorlib.start import main

    sys.argv = ["tailor", verb, "--config", recipe, *options]
    found: dict[str, Any] = {}
    {"plan": watch_plan, "search": watch_search}[verb](found)
    start = time.perf_counter()
    status = main(sys.argv[1:])
    found["seconds"] = time.perf_counter() - start

    import torch

    found["threads"] = torch.get_num_threads()
    (Path(folder) / "found.json").write_text(json.dumps(found), encoding="utf-8")
    sys.exit(status)


def watch_plan(found: dict[str, Any]) -> None:
    """Note what is estimated, and what is rehearsed for it."""
    from tailorlib.search import plan

    def estimated(value: Any, *_: Any) -> None:
        found["estimate"] = asdict(value)

    def rehearsed(steps: Any, *_: Any) -> None:
        found["merges"] = fmean(len(step.merged) for step in steps) if steps else 0.0
        found["layers_run"] = fmean(step.layers_run for step in steps) if steps else None

    after(plan, "estimate", estimated)
    after(plan, "rehearse", rehearsed)


def watch_search(found: dict[str, Any]) -> None:
    """Note the trials, the time of stitching each, and the memory."""
    from tailorlib.models.family import ModelFamily
    from tailorlib.search.module import SearchModule

    stitching: dict[str, float] = {}
    close, load, stitch = SearchModule.close, ModelFamily.load, ModelFamily.stitch

    def loading(family: ModelFamily, device: Any) -> None:
        found.setdefault("before", memory_of_process("VmRSS"))
        load(family, device)

    def stitched(family: ModelFamily, tailoring: Any) -> Any:
        start = time.perf_counter()
        model = stitch(family, tailoring)
        stitching[tailoring.digest] = stitching.get(tailoring.digest, 0.0) + time.perf_counter() - start
        return model

    def closing(search: SearchModule) -> None:
        if "trials" not in found and search.trials:
            found["peak"] = memory_of_process("VmHWM")
            found["trials"] = [
                {**t.to_dict(), "stitching": stitching.get(t.tailoring.digest, 0.0)} for t in search.trials
            ]
            found["used"], found["whole"] = memory_of_family(search.study.family)
        close(search)

    SearchModule.close, ModelFamily.load, ModelFamily.stitch = closing, loading, stitched  # type: ignore[method-assign]


def after(module: Any, name: str, look: Callable[..., None]) -> None:
    """Let something look at what a function of a module returns."""
    function = getattr(module, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        look(value)
        return value

    setattr(module, name, watched)


def memory_of_family(family: Any) -> tuple[int, int]:
    """Return the bytes of what was used of the models, and once each layer of each model was used."""
    from tailorlib.tailoring import Tailoring

    def held() -> int:
        memory = family.stitcher.memory()
        return sum(memory.get(name, 0) for name in family.layout.models)

    used = held()
    for name in family.layout.models:  # with the base's embeddings, norm and head, as the estimate has it
        family.stitch(Tailoring(Tailoring.whole(name, family.layout.num_layers).layers))
    return used, held()


def memory_of_process(kind: str) -> int | None:
    """Return a figure of this process's memory as the kernel counts it, in bytes; ``None`` where it has none."""
    file = Path("/proc/self/status")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")), None)


def in_process(verb: str, recipe: Path, options: list[str]) -> dict[str, Any]:
    """Return what a fresh process finds; end with its last words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        common = [*options, "--study.directory", f"{folder}/run", "--study.export", "false"]
        process = get_context("spawn").Process(target=run, args=(verb, common, str(recipe), folder))
        process.start()
        process.join()
        file, log = Path(folder) / "found.json", Path(folder) / "log"
        if process.exitcode or not file.is_file():
            said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
            sys.exit(f"tailor {verb} failed ({process.exitcode}):\n{said[-3000:]}")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found


Row = tuple[str, float | None, float | None, str]
"""What is compared, the estimate, the measurement, and the unit."""


def compared(plan: dict[str, Any], search: dict[str, Any]) -> Iterator[Row]:
    """Yield estimates beside measurements."""
    estimate = plan["estimate"]
    all_trials = [t for t in search["trials"] if t["origin"] == "optimizer" and t["state"] == "complete"]
    later = [t for t in all_trials if t["number"]]
    for which, trials in (("all", all_trials), ("without the first", later)):
        seconds = fmean(t["seconds"] for t in trials) if trials else None
        yield f"seconds per trial, {which}", estimate["seconds_per_trial"], seconds, "s"
    mean = {
        k: fmean(t["costs"].get(k, 0.0) for t in all_trials) for k in ("layers_run", "layers_reused", "merges")
    }
    layers = mean["layers_run"] + mean["layers_reused"]
    yield "of it stitching", estimate["merge_seconds"], fmean(t["stitching"] for t in all_trials), "s"
    yield "layers that run", plan.get("layers_run"), mean["layers_run"], ""
    yield "reused layers", 100 * estimate["reused"], 100 * mean["layers_reused"] / layers if layers else None, "%"
    yield "merges per trial", plan.get("merges"), mean["merges"], ""
    yield "memory of the family", estimate["device_bytes"] / 2**20, search["whole"] / 2**20, "MiB"


def report(plan: dict[str, Any], search: dict[str, Any]) -> list[Row]:
    """Print one comparison, and return its rows."""
    rows = list(compared(plan, search))
    print("| | estimated | measured | ratio | within 25 % |\n| --- | --- | --- | --- | --- |")
    for name, estimated, measured, unit in rows:
        told, found = (f"{v:,.2f} {unit}".strip() if v is not None else "" for v in (estimated, measured))
        ratio = estimated / measured if estimated is not None and measured else None
        verdict = "" if ratio is None else "yes" if abs(ratio - 1) <= WITHIN else "no"
        print(f"| {name} | {told} | {found} | {'' if ratio is None else f'{ratio:.2f}'} | {verdict} |")
    trials = search["trials"]
    caches = max(sum(t["costs"].get(f"{c}_cache_mib", 0.0) for c in ("prefix", "merge")) for t in trials)
    grown = None if search["before"] is None else (search["peak"] - search["before"]) / 2**20
    print(
        f"{len(trials)} trials, {sum(t['origin'] != 'optimizer' for t in trials)} of them warm starts, "
        f"{sum(t['state'] != 'complete' for t in trials)} failed; the first one {trials[0]['seconds']:.2f} s; "
        f"{search['threads']} threads; the commands took {plan['seconds']:.0f} s and {search['seconds']:.0f} s\n"
        f"the layers that were used hold {search['used'] / 2**20:,.0f} MiB, caches at most {caches:,.0f} of "
        f"{plan['estimate']['cache_bytes'] / 2**20:,.0f} MiB"
        + (f"; the process grew by {grown:,.0f} MiB" if grown is not None else "")
        + "\n",
        flush=True,
    )
    return rows


def main() -> None:
    """Estimate, search, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--repeats", type=int, default=1, help="of plan and search")
    parser.add_argument("--threads", type=int, help="of PyTorch; by default as the command line would choose")
    args, options = parser.parse_known_args()
    recipe = args.recipe.resolve()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # the processes read it
    if (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("benchmark"):
        options += ["--benchmark.fitness", "null"]
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"versions: tailorlib {version('tailorlib')}, torch {version('torch')}")
    print(f"command: {shlex.join(sys.argv)}\n")
    ratios = []
    for number in range(args.repeats):
        load = os.getloadavg()[0]
        plan, search = (in_process(verb, recipe, options) for verb in ("plan", "search"))
        print(f"run {number + 1}, load before: {load:.2f}")
        _, estimated, measured, _ = report(plan, search)[0]
        if estimated is None or not measured:
            sys.exit("no trial of the optimizer was completed: there is nothing to compare")
        ratios.append(estimated / measured)
    kept = all(abs(ratio - 1) <= WITHIN for ratio in ratios)
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"seconds per trial, estimated / measured: {listed}; within 25 %: {'yes' if kept else 'no'}")


if __name__ == "__main__":
    main()
