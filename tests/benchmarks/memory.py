# ruff: noqa: T201
"""Memory of a live family against its limits; run it as a script.

Every layer of every model is used once, in a process of its own for each setting, so that no peak hides another.
What a process holds is the difference between now and before the family was opened, as the kernel counts it
(``/proc/self/smaps_rollup``, so on Linux only):

- live: what ``Stitcher.memory()`` says; of that, mapped is in views of files, which the system can drop;
- own: anonymous memory, which nothing but the end of the process gives back; it is held to the limit;
- Rss, Pss, Uss: all resident pages; those with each page divided by the processes that map it; those of no other.

The limit is (K + 1) models in the data type that is computed in, and 10 %; for a quantised family, 0.6 bytes
(4 bits) per parameter of the quantised matrices. Then several processes hold the same family at once, with
weights shared and without, and the sum of their Pss is what they take together. Example::

    python tests/benchmarks/memory.py MODEL --candidate math=FOLDER --candidate code=FOLDER
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import sys
import time
from contextlib import ExitStack
from importlib.metadata import version
from math import prod
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MEBI = 2**20


def kernel() -> dict[str, int]:
    """Return what the kernel says of this process's memory, in bytes."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    lines = {line.split(":")[0]: line.split(":")[1].split() for line in text.splitlines()[1:]}
    found = {name: 1024 * int(words[0]) for name, words in lines.items() if words[-1] == "kB"}
    uss = found["Private_Clean"] + found["Private_Dirty"]
    return {"own": found["Anonymous"], "Rss": found["Rss"], "Pss": found["Pss"], "Uss": uss}


def use(args: argparse.Namespace, setting: dict[str, str], folder: str, pipe: Connection) -> None:
    """Open the family, use every layer once, and send what that takes; then wait, holding it."""
    import torch

    from tailorlib.models.family import ModelFamily
    from tailorlib.tailoring import Tailoring

    torch.set_num_threads(1)
    names = dict(pair.split("=", 1) for pair in args.candidate)
    ids = torch.arange(5, 37)[None]
    before = _after_imports(torch)
    start = time.perf_counter()
    family = ModelFamily(args.base, names, **setting)  # type: ignore[arg-type]
    family.prepare()
    shared = family.share_weights(Path(folder)) if folder else None
    family.load(torch.device("cpu"))
    for name in family.layout.models:
        with torch.inference_mode():
            family.stitch(Tailoring.whole(name, family.layout.num_layers))(ids)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"seconds": seconds, "live": family.stitcher.memory(), "sizes": _sizes(family)}
    found["written"] = 0 if shared is None else shared.built
    pipe.send(found)
    pipe.recv()  # until all processes hold their families
    gc.collect()
    now = kernel()
    pipe.send({name: now[name] - before[name] for name in now})
    pipe.recv()


def _after_imports(torch: Any) -> dict[str, int]:
    """Return the process's memory once everything that a first model loads is loaded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.inference_mode():
        config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        LlamaForCausalLM(config)(torch.arange(4)[None])
    gc.collect()
    return kernel()


def _sizes(family: Any) -> dict[str, int]:
    """Return the parameters of a model's layers, those in matrices, those outside of all models, and bytes of one.

    Adapters that leave embeddings and head alone have the base's: they count once.
    """
    from tailorlib.tailoring import Tailoring

    whole = Tailoring.whole("base", family.layout.num_layers)
    shapes = [shape for plan in whole.layers for _, shape, _ in family.assembly.layer_shapes(plan)]
    matrices = sum(prod(shape) for shape in shapes if len(shape) > 1)
    inner = sum(map(prod, shapes))
    stored = {name: prod(shape) for name, shape, _ in family.assembly.outer_shapes()}
    origins = {
        (id(where), name): size
        for checkpoint in family.checkpoints.values()
        for part, size in stored.items()
        for where, name in [checkpoint.origin(family.architecture.stored_name(part))]
    }
    outer = sum(origins.values())
    width = family.compute_dtype.itemsize
    return {"inner": inner, "outer": outer, "matrices": matrices, "width": width}


def measure(
    args: argparse.Namespace, setting: dict[str, str], processes: int = 1, folder: str = ""
) -> list[dict[str, Any]]:
    """Return what processes hold that have the same family open at the same time."""
    context = get_context("spawn")
    pipes, running = [], []
    for _ in range(processes):
        mine, theirs = context.Pipe()
        process = context.Process(target=use, args=(args, setting, folder, theirs))
        process.start()
        pipes.append(mine)
        running.append(process)
    found: list[dict[str, Any]] = [pipe.recv() for pipe in pipes]
    for result, pipe in zip(found, pipes, strict=True):
        pipe.send(None)
        result |= pipe.recv()
    for pipe, process in zip(pipes, running, strict=True):
        pipe.send(None)
        process.join()
    return found


def report(name: str, found: dict[str, Any]) -> None:
    """Print a row of what a family in full precision takes, against (K + 1) models."""
    live, sizes = dict(found["live"]), found["sizes"]
    mapped, merged = live.pop("mapped"), live.pop("merged")
    models = len(live)
    whole = (models * sizes["inner"] + sizes["outer"]) * sizes["width"]
    held = sum(live.values()) + merged
    kept = "kept" if max(held, found["own"]) <= 1.1 * whole else "**broken**"
    share, each = max(held, found["own"]) / whole, whole / models / MEBI
    limit = f"{share:.3f} of {models} models of {each:,.0f} MiB on average; 1.1 is {kept}"
    row(name, held, mapped, found, limit)


def report_quantised(name: str, found: dict[str, Any]) -> None:
    """Print a row of what a quantised family takes, against bytes per parameter of the quantised matrices."""
    live, sizes = dict(found["live"]), found["sizes"]
    mapped, merged = live.pop("mapped"), live.pop("merged")
    plain = (len(live) * (sizes["inner"] - sizes["matrices"]) + sizes["outer"]) * sizes["width"]
    each = (sum(live.values()) - plain) / (len(live) * sizes["matrices"])
    verdict = f"; 0.6 is {'kept' if each <= 0.6 else '**broken**'}" if name != "int8" else ""
    row(
        name,
        sum(live.values()) + merged,
        mapped,
        found,
        f"{each:.3f} bytes per parameter of the matrices{verdict}",
    )


def row(name: str, held: float, mapped: float, found: dict[str, Any], limit: str) -> None:
    """Print a row of the table."""
    sizes = " | ".join(f"{size / MEBI:,.0f}" for size in (held, mapped, found["own"], found["Rss"]))
    print(f"| {name} | {sizes} | {limit} | {found['seconds']:.0f} |", flush=True)


def report_together(name: str, found: list[dict[str, Any]]) -> float:
    """Print a row of what several processes take together, and return the sum of their Pss."""
    together, own = (float(sum(result[key] for result in found)) for key in ("Pss", "own"))
    seconds = max(result["seconds"] for result in found)
    print(f"| {name} | {together / MEBI:,.0f} | {own / MEBI:,.0f} | {seconds:.0f} |", flush=True)
    return together


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the base model")
    parser.add_argument("--candidate", action="append", default=[], help="NAME=MODEL, once for each")
    parser.add_argument("--stored", default="bfloat16", help="the data type that the models are stored in")
    parser.add_argument("--processes", type=int, default=2, help="how many share a node")
    parser.add_argument("--parent", type=Path, help="where the shared folder is made; default: temporary files")
    parser.add_argument("--json", type=Path, help="a file for all numbers, in bytes")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    from tailorlib.models.shared import SharedFolder

    args = arguments()
    machine = platform.processor() or platform.machine()
    print(f"machine: {machine}, {os.cpu_count()} cores, Linux {platform.release()}")
    print(f"versions: tailorlib {version('tailorlib')}, torch {version('torch')}")
    print(f"command: {shlex.join(sys.argv)}")
    numbers: dict[str, Any] = {}
    print("\n| | live layers, MiB | of it mapped | own, MiB | resident, MiB | limit | took, s |")
    print("| --- | ---: | ---: | ---: | ---: | --- | ---: |")
    for dtype in dict.fromkeys(("float32", args.stored)):
        (numbers[dtype],) = measure(args, {"dtype": dtype})
        report(dtype, numbers[dtype])
    for kind in ("nf4", "fp4", "int8"):
        (numbers[kind],) = measure(args, {"dtype": "float32", "quantization": kind})
        report_quantised(kind, numbers[kind])
    print(f"\n| {args.processes} processes, float32 | proportional set size, MiB | own, MiB | took, s |")
    print("| --- | ---: | ---: | ---: |")
    private = numbers["private"] = measure(args, {"dtype": "float32"}, args.processes)
    before = report_together("each for itself", private)
    with ExitStack() as stack:
        folder = stack.enter_context(SharedFolder(args.parent))
        shared = numbers["shared"] = measure(args, {"dtype": "float32"}, args.processes, str(folder.path))
    after = report_together("shared", shared)
    print(f"\nShared, they take {after / before:.2f} times as much; at best {1 / args.processes:.2f}.")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
