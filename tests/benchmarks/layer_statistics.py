# ruff: noqa: T201
"""What layer statistics cost, and what RegMean and Fisher make of them; run it as a script.

Gathers each statistic of a family in a process of its own and a cache of its own: seconds of wall time and of CPU
time (a busy machine shows in the first), disk, peak resident memory (mapped files included). Then merges the
candidates in all layers alike, by each method, with embeddings, norm and head of the base, and measures the
perplexity of text that nothing was calibrated on. Example::

    python tests/benchmarks/layer_statistics.py BASE math=MATH code=CODE --tokens 8192
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from tailorlib_strategies.fitness import Perplexity
from tailorlib_strategies.texts import ArithmeticProblems, Interleaved, PydocTopics, StandardLibraryCode

from tailorlib.distributions import ParamValue
from tailorlib.evaluation.engine import Engine
from tailorlib.models.family import ModelFamily
from tailorlib.operation import OPERATIONS, MergeOperation
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring

METHODS: Mapping[str, Mapping[str, ParamValue]] = {"Linear": {}, "RegMean": {"alpha": 0.9}, "Fisher": {}}
PARTS = {"code": StandardLibraryCode, "prose": PydocTopics, "arithmetic": ArithmeticProblems}


def family_of(base: str, candidates: Mapping[str, str], tokens: int) -> ModelFamily:
    """Return a family that is calibrated on code, prose and arithmetic in turn."""
    text = Interleaved([part(split="train") for part in PARTS.values()])
    family = ModelFamily(base, dict(candidates), "float32", calibration=text, calibration_tokens=tokens)
    family.prepare()
    return family


def operation(name: str) -> MergeOperation:
    """Return a merge by name."""
    found = OPERATIONS.get(name)()
    assert isinstance(found, MergeOperation)
    return found


def gather(name: str, base: str, candidates: Mapping[str, str], tokens: int) -> tuple[float, float, float]:
    """Gather the statistic of a merge; return seconds of wall and CPU time, and peak resident memory in MB."""
    family = family_of(base, candidates, tokens)
    family.require([operation(name)])
    started, busy = time.perf_counter(), time.process_time()
    family.load(torch.device("cpu"))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes on macOS, kilobytes on Linux
    return seconds, cpu_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def merged(family: ModelFamily, name: str) -> Tailoring:
    """Return the merge of all candidates in all layers."""
    fixed = {n: d.default for n, d in operation(name).distributions().items()} | dict(METHODS[name])
    models = family.layout.candidates
    layers = (tuple(LayerSource(m, i) for m in models) for i in range(family.layout.num_layers))
    return Tailoring(tuple(LayerPlan(sources, name, tuple(fixed.items())) for sources in layers))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="what a recipe takes as a base")
    parser.add_argument("candidates", nargs="+", help="NAME=MODEL, two or more")
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration text")
    parser.add_argument("--held-out", type=int, default=4096, help="tokens to measure perplexity on")
    args = parser.parse_args()
    candidates = dict(entry.split("=", 1) for entry in args.candidates)
    print(f"machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}\ncommand: {shlex.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TAILORLIB_CACHE"] = folder
        for name in ("RegMean", "Fisher"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                seconds, cpu, peak = pool.submit(gather, name, args.base, candidates, args.tokens).result()
            kind = operation(name).statistic
            size = sum(f.stat().st_size for f in Path(folder, "statistics").glob(f"{kind}-*/*")) / 1e6
            number = 1 + len(candidates)
            print(f"{kind} of {number} models: {seconds:.0f} s ({cpu:.0f} s of CPU), ", end="")
            print(f"{size:.0f} MB on disk, peak {peak:.0f} MB")
        measure(family_of(args.base, candidates, args.tokens), args.held_out)


def measure(family: ModelFamily, held_out: int) -> None:
    """Print the seconds of a merged layer, and perplexities."""
    device = torch.device("cpu")
    family.load(device)
    for name in METHODS:
        plan = merged(family, name).layers[family.layout.num_layers // 2]
        list(family.assembly.layer_tensors(plan, 0, device))  # files are mapped now
        started = time.perf_counter()
        list(family.assembly.layer_tensors(plan, 0, device))
        print(f"{name}: {time.perf_counter() - started:.2f} s for one layer")
    number = family.layout.num_layers
    models = {m: Tailoring.whole(m, number) for m in (BASE, *family.layout.candidates)}
    models |= {name: merged(family, name) for name in METHODS}
    mixture = Interleaved([part(split="test") for part in PARTS.values()])
    fitness = Perplexity(mixture, max_tokens=held_out)
    fitness.setup(Engine(family.tokenizer, device, max_length=512))
    for name, tailoring in models.items():
        found = fitness.evaluate(family.stitch(tailoring)).metrics
        print(f"{name}: perplexity {found['perplexity']:.3f} ({found['nats_per_token']:.4f} nats per token)")


if __name__ == "__main__":
    main()
