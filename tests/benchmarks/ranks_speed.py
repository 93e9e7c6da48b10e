# ruff: noqa: T201
"""Trials per minute of two gloo ranks with one thread each against one rank with one thread; run it as a script.

The ranks share the work on a batch over its candidates (batches of two, one shard), or over the samples of each
candidate (batches of one, two shards). All arms get the same candidates, drawn from the paper's space, about half
of their layers merged; new ones in each round, so that caches save next to nothing. The arms take turns within a
round, each with caches of its own. Where the shards are the same, so must be every bit of the fitness.

Two processes on two cores have one memory: what square matrix products in both ranks at once gain over one rank
alone, measured before and after, is printed beside the ratios. Example::

    python tests/benchmarks/ranks_speed.py --base MODEL --candidate math=FOLDER --candidate code=FOLDER --data DATA
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from evaluation_speed import ZERO_SHOT, gemm_rate, machine
from local_tasks import write_tasks
from tailorlib_strategies.fitness import LMEval
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib.console import console, quieten
from tailorlib.models.family import ModelFamily
from tailorlib.models.shared import SharedFolder
from tailorlib.search.evaluator import Evaluator, Outcome
from tailorlib.search.ranks import gathered
from tailorlib.search.study import Study, StudySettings
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import Tailoring

CPU = torch.device("cpu")
RANKS, ROUND = 2, 2


@dataclass(frozen=True)
class Arm:
    """A way to share out the work."""

    name: str
    ranks: int
    batch: int
    shards: int


ONE, CANDIDATES = Arm("one rank", 1, 2, 1), Arm("two ranks, by candidates", 2, 2, 1)
ONE_SHARDED, SAMPLES = Arm("one rank, two shards", 1, 1, 2), Arm("two ranks, by samples", 2, 1, 2)
ARMS = (ONE, CANDIDATES, ONE_SHARDED, SAMPLES)
PAIRS = ((CANDIDATES, ONE), (SAMPLES, ONE_SHARDED), (SAMPLES, ONE))


class Rank:
    """One process: an evaluator for each arm that it takes part in."""

    def __init__(self, rank: int, args: argparse.Namespace, folder: Path, weights: Path) -> None:
        self.rank, self.args = rank, args
        self.evaluators = {arm: self._evaluator(arm, folder, weights) for arm in ARMS if rank < arm.ranks}

    def _evaluator(self, arm: Arm, folder: Path, weights: Path) -> Evaluator:
        args, cache = self.args, self.args.cache_mib
        study = Study(
            family=ModelFamily(args.base, dict(args.candidate), dtype=args.dtype, merge_cache_mib=cache),
            space=PruningSpace(LayerRemoval(ratio=args.ratio), merges=[TaskArithmetic()]),
            optimizer=RandomSearch(),
            fitness=LMEval(list(ZERO_SHOT), include_path=str(folder / "tasks"), limit=args.questions),
            settings=StudySettings(batch_size=arm.batch, shards=arm.shards, prefix_cache_mib=cache),
        )
        engine = study.prepare(CPU)
        if arm.ranks > 1:
            study.family.share_weights(weights)
        study.family.load(CPU)
        for name in study.family.layout.models:  # every layer is taken from its file once
            study.family.stitch(Tailoring.whole(name, study.family.layout.num_layers))
        pieces = folder / f"{arm.ranks}-{arm.shards}"
        pieces.mkdir(exist_ok=True)
        return Evaluator(study, engine, rank=self.rank, ranks=arm.ranks, folder=pieces)

    def candidates(self, number: int) -> list[Tailoring]:
        """Return the candidates of a round, the same in all processes."""
        space, rng = next(iter(self.evaluators.values())).study.space, numpy_generator("ranks", number)
        return [space.decode(space.sample(rng)) for _ in range(ROUND)]

    def timed(self, arm: Arm, tailorings: Sequence[Tailoring]) -> tuple[float, list[Outcome]]:
        """Evaluate a round's candidates, and return the wall time until all processes are done."""
        evaluator, outcomes = self.evaluators.get(arm), list[Outcome]()
        dist.barrier()
        start = time.perf_counter()
        for first in range(0, len(tailorings), arm.batch):
            if evaluator is None:
                gathered([])  # it has no part in the work, and waits until the results are exchanged
            else:
                outcomes += evaluator.evaluate(tailorings[first : first + arm.batch])
                evaluator.settle()
        dist.barrier()
        return time.perf_counter() - start, outcomes

    def gemm(self) -> float:
        """Return the matrix products per second of both ranks at once, over those of the first one alone."""
        dist.barrier()
        alone = gemm_rate(CPU, torch.float32, 1.0) if self.rank == 0 else 0.0
        dist.barrier()
        together = gathered(gemm_rate(CPU, torch.float32, 1.0))
        return sum(together) / gathered(alone)[0]


def work(rank: int, args: argparse.Namespace, port: int, folder: Path, weights: Path) -> None:
    """Run all rounds in one process; the first one writes down what was found."""
    torch.set_num_threads(1)
    quieten()
    console.quiet = True
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    process = Rank(rank, args, folder, weights)
    for arm in ARMS:
        process.timed(arm, process.candidates(-1))
    limits = [process.gemm()]
    seconds: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    outcomes: dict[str, list[Outcome]] = {arm.name: [] for arm in ARMS}
    for number in range(args.batches):
        turn = number % len(ARMS)
        for arm in (*ARMS[turn:], *ARMS[:turn]):
            taken, found = process.timed(arm, process.candidates(number))
            seconds[arm.name].append(taken)
            outcomes[arm.name] += found
    limits.append(process.gemm())
    fitness = {
        name: [(o.measurement if isinstance(o.measurement, str) else vars(o.measurement)) for o in found]
        for name, found in outcomes.items()
    }
    everyones = gathered(fitness)
    same = all(theirs[arm.name] == fitness[arm.name] for arm in ARMS for theirs in everyones[: arm.ranks])
    if rank == 0:
        costs = [dict(o.costs) for o in outcomes[ONE.name]]
        tokens = process.evaluators[ONE].study.fitness.tokens
        found = {"seconds": seconds, "fitness": fitness, "costs": costs, "limits": limits, "tokens": tokens}
        (folder / "found.json").write_text(json.dumps({**found, "ranks agree": same}), encoding="utf-8")
    dist.destroy_process_group()


def report(found: dict[str, Any], wanted: float) -> None:
    """Print the arms, their ratios, and whether the fitness is the same."""
    seconds, fitness = found["seconds"], found["fitness"]
    trials = {name: len(measured) for name, measured in fitness.items()}
    rate = {name: 60 * trials[name] / sum(taken) for name, taken in seconds.items()}
    mean = {k: sum(c.get(k, 0) for c in found["costs"]) / len(found["costs"]) for k in found["costs"][0]}
    print(
        f"{trials[ONE.name]} candidates of {found['tokens']} tokens, on average {mean['merges']:.1f} merges, "
        f"{mean['layers_run']:.1f} layers run and {mean['layers_reused']:.2f} reused\n"
    )
    print("| arm | batch | shards | s per trial | trials per minute |\n| --- | --- | --- | --- | --- |")
    for arm in ARMS:
        each = sum(seconds[arm.name]) / trials[arm.name]
        print(f"| {arm.name} | {arm.batch} | {arm.shards} | {each:.2f} | {rate[arm.name]:.2f} |")
    print()
    for several, one in PAIRS:
        ratios = sorted(a / b for a, b in zip(seconds[one.name], seconds[several.name], strict=True))
        ratio = rate[several.name] / rate[one.name]
        print(
            f"{several.name} / {one.name}: {ratio:.2f} (rounds {ratios[0]:.2f} to {ratios[-1]:.2f}); wanted "
            f"{wanted}: {'reached' if ratio >= wanted else 'missed'}"
        )
    print(f"matrix products, two ranks / one: {found['limits'][0]:.2f} before, {found['limits'][1]:.2f} after")
    for several, one in PAIRS[:2]:
        equal = found["ranks agree"] and fitness[several.name] == fitness[one.name]
        print(f"fitness of {several.name}, and {one.name}: {'bit-equal' if equal else 'NOT EQUAL'}")
    apart = (abs(a["score"] - b["score"]) for a, b in zip(fitness[ONE.name], fitness[SAMPLES.name], strict=True))
    print(f"largest difference in fitness between one shard and two: {max(apart):.1e}")


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder or name of the base model")
    parser.add_argument(
        *("--candidate",), action="append", type=lambda text: text.split("=", 1), required=True, help="NAME=FOLDER"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--questions", type=int, default=8, help="of each of three zero-shot tasks")
    parser.add_argument(
        "--batches", type=int, default=4, help=f"rounds of {ROUND} candidates; 4 let all arms begin"
    )
    parser.add_argument("--ratio", type=float, default=0.25, help="share of the layers that is removed")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--cache-mib", type=int, default=256, help="of each arm's caches, in each process")
    parser.add_argument("--wanted", type=float, default=1.7, help="the ratio to hold against")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes read it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print(
        f"machine: {machine(CPU)} per rank, {os.cpu_count()} cores; python {platform.python_version()}, "
        f"torch {torch.__version__}, {args.dtype}"
    )
    print(f"command: {shlex.join(sys.argv)}")
    print(f"load before: {os.getloadavg()[0]:.2f}", flush=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name, SharedFolder() as weights:
        folder = Path(name)
        write_tasks(args.data, folder / "tasks")
        mp.spawn(work, (args, port, folder, weights.path), nprocs=RANKS)  # type: ignore[no-untyped-call]
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    failed = [f for fitness in found["fitness"].values() for f in fitness if isinstance(f, str)]
    if failed:
        sys.exit(f"{len(failed)} candidates failed: {failed[0]}")
    report(found, args.wanted)


if __name__ == "__main__":
    main()
