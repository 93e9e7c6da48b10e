# ruff: noqa: T201
"""Time and memory of ``tailor export`` beside ``mergekit-yaml``, as whole processes; run it as a script.

Both make the same models: three candidates merged whole with the base's embeddings, by each method in turn, and
a selection of layers. Each merges in float32 and stores bfloat16. The runs alternate. Peak memory is the largest
resident set of the process, mapped files included, as the kernel counts it. Example::

    python tests/benchmarks/export_vs_mergekit.py BASE MATH COMMONSENSE CODE --runs 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

DENSITY = 0.5
WEIGHT = 0.4
METHODS: Mapping[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # name: mergekit's method, tailorlib's operation, mergekit's parameters (without weights), tailorlib's
    "TIES": ("ties", "TIES", {"density": DENSITY, "normalize": True}, {"density": DENSITY, "scale": 1.0}),
    "task arithmetic": ("task_arithmetic", "TaskArithmetic", {}, {"scale": WEIGHT}),
    "linear": ("linear", "Linear", {"normalize": True}, {}),
    "DARE-TIES": ("dare_ties", "DARETIES", {"density": DENSITY}, {"density": DENSITY, "scale": WEIGHT}),
    "passthrough": ("passthrough", "LayerSelection", {}, {}),
}
REMOVED = 0.25
"""Share of the layers that the selection of layers leaves out, from the middle."""


@dataclass(frozen=True)
class Run:
    """One process: seconds of wall time, seconds of all processors, peak resident bytes."""

    seconds: float
    processor: float
    peak: int


def run(command: Sequence[str], log: Path) -> Run:
    """Run a command to its end.

    Raises:
        SystemExit: If it fails; what it said is in ``log``.
    """
    start = time.perf_counter()
    with log.open("wb") as output:
        process = os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, output.fileno(), 2)],
        )
        _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{shlex.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")
    return Run(
        seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    )


def mergekit_config(name: str, base: str, candidates: Sequence[str], kept: Sequence[int]) -> dict[str, Any]:
    """Return mergekit's YAML for a method: all layers of all candidates, or the selection."""
    method, _, parameters, ours = METHODS[name]
    config: dict[str, Any] = {"merge_method": method, "dtype": "float32", "out_dtype": "bfloat16"}
    if method == "passthrough":
        config["slices"] = [
            {"sources": [{"model": candidates[i % len(candidates)], "layer_range": [i, i + 1]}]} for i in kept
        ]
        return config
    own = {k: v for k, v in parameters.items() if k == "density"}
    shared = {k: v for k, v in parameters.items() if k != "density"}
    weight = ours.get("scale", 1.0)
    config["models"] = [{"model": c, "parameters": {"weight": weight, **own}} for c in candidates]
    if method != "linear":
        config["base_model"] = base
    if shared:
        config["parameters"] = shared
    return config


def tailoring(name: str, layers: int, kept: Sequence[int], candidates: int) -> dict[str, Any]:
    """Return the same model as plain data of a tailoring file."""
    from tailorlib.operation import OPERATIONS, MergeOperation

    _, operation, _, ours = METHODS[name]
    names = [f"c{k}" for k in range(candidates)]
    if name == "passthrough":
        owners = {"embeddings": names[kept[0] % candidates]}
        owners |= dict.fromkeys(("norm", "head"), names[kept[-1] % candidates])
        plans = [{"sources": [f"{names[i % candidates]}:{i}"]} for i in kept]
        return {"tailoring": 1, **owners, "layers": plans}
    cls = OPERATIONS.get(operation)
    assert issubclass(cls, MergeOperation)
    params = {k: d.default for k, d in cls().distributions().items()} | ours
    plan: dict[str, Any] = {"operation": operation, "params": params}
    part = {**plan, "models": names}
    if cls.needs_base:
        part["base"] = "base"
    layers_plans = [
        {**plan, "sources": [f"{n}:{i}" for n in names], **({"base": f"base:{i}"} if cls.needs_base else {})}
        for i in range(layers)
    ]
    return {"tailoring": 1, "embeddings": part, "norm": part, "head": part, "layers": layers_plans}


def recipe(base: str, candidates: Sequence[str]) -> dict[str, Any]:
    """Return the shortest recipe that a family can be exported with."""
    family = {"base": base, "candidates": {f"c{k}": path for k, path in enumerate(candidates)}}
    return {"family": {"class_path": "ModelFamily", "init_args": family}}


def largest_difference(ours: Path, theirs: Path) -> str:
    """Compare the written tensors; mergekit spells the head out or not, so only common names count."""
    import torch
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, Path]:
        found = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                found.update(dict.fromkeys(opened.keys(), file))
        return found

    mine, others = tensors(ours), tensors(theirs)
    worst, where = 0.0, "-"
    for key in sorted(mine.keys() & others.keys()):
        with safe_open(mine[key], "pt") as a, safe_open(others[key], "pt") as b:
            difference = float((a.get_tensor(key).float() - b.get_tensor(key).float()).abs().max())
        if difference > worst or torch.isnan(torch.tensor(difference)):
            worst, where = difference, key
    only = sorted(mine.keys() ^ others.keys())
    return f"largest difference of a weight {worst:.3g} ({where})" + (f"; only one has {only}" if only else "")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="folder of the base model, safetensors")
    parser.add_argument("candidates", nargs="+", help="folders of whole fine-tuned models, safetensors")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--runs", type=int, default=3, help="of each tool, alternating")
    parser.add_argument("--tailor", default="tailor", help="the command")
    parser.add_argument("--compare", action="store_true", help="also compare the weights of both tools")
    args = parser.parse_args()
    base, *candidates = (str(Path(p).absolute()) for p in (args.base, *args.candidates))
    layers = int(json.loads((Path(base) / "config.json").read_text())["num_hidden_layers"])
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS')=}")
    print(f"versions: tailorlib {version('tailorlib')}, mergekit {version('mergekit')}, torch {version('torch')}")
    print(f"command: {shlex.join(sys.argv)}")
    with tempfile.TemporaryDirectory(prefix="export_vs_mergekit.") as folder:
        work = Path(folder)
        (work / "recipe.yaml").write_text(json.dumps(recipe(base, candidates)))  # JSON is YAML
        for name in args.methods:
            compare(name, base, candidates, layers, work, args)
            if args.compare:
                print(f"  {_apart(largest_difference, work / 'tailor', work / 'mergekit')}")


def compare(
    name: str, base: str, candidates: Sequence[str], layers: int, work: Path, args: argparse.Namespace
) -> None:
    """Make one model with both tools, in turn, and print the figures."""
    removed = round(REMOVED * layers)
    first = (layers - removed) // 2
    kept = [i for i in range(layers) if not first <= i < first + removed]
    theirs = mergekit_config(name, base, candidates, kept)
    (work / "mergekit.yaml").write_text(json.dumps(theirs))
    (work / "tailoring.yaml").write_text(json.dumps(_apart(tailoring, name, layers, kept, len(candidates))))
    recipe_file, plan, output = (str(work / n) for n in ("recipe.yaml", "tailoring.yaml", "tailor"))
    commands = {
        "tailor": [
            *(*shlex.split(args.tailor), "export", "--config", recipe_file, "--tailoring", plan),
            *("--output", output),
        ],
        "mergekit": ["mergekit-yaml", str(work / "mergekit.yaml"), str(work / "mergekit")],
    }
    results: dict[str, list[Run]] = {tool: [] for tool in commands}
    load = os.getloadavg()[0]
    for _ in range(args.runs):
        for tool, command in commands.items():
            shutil.rmtree(work / tool, ignore_errors=True)
            results[tool].append(run(command, work / f"{tool}.log"))
    print(f"\n{name} (load before: {load:.2f}): {json.dumps(theirs)[:200]} ...")
    for tool, found in results.items():
        print(f"  {shlex.join(commands[tool])}")
        seconds = ", ".join(f"{r.seconds:.1f}" for r in found)
        processor = statistics.median(r.processor for r in found)
        print(
            f"    {_median(found):.1f} s (median of {seconds}), processors {processor:.1f} s, peak "
            f"{_peak(found) / 1e6:,.0f} MB"
        )
    time_ratio = _median(results["tailor"]) / _median(results["mergekit"])
    print(f"  ratio: time {time_ratio:.2f}, memory {_peak(results['tailor']) / _peak(results['mergekit']):.2f}")


def _median(runs: Sequence[Run]) -> float:
    return statistics.median(r.seconds for r in runs)


def _peak(runs: Sequence[Run]) -> int:
    return max(r.peak for r in runs)


def _apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own: this one must stay small, since a child's peak counts from it."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


if __name__ == "__main__":
    main()
