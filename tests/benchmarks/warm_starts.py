# ruff: noqa: T201
"""What each warm start costs, which layers it removes, and what is left of the model; run it as a script.

Each row is a warm start's first proposal, as in a final table: seconds of wall time and of CPU time of the
proposal (a busy machine shows in the first), the layers that are removed or folded away, and nats per token of
held-out text that nothing was calibrated on. Example::

    python tests/benchmarks/warm_starts.py BASE math=MATH code=CODE --calibrate train.jsonl --held-out test.jsonl
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time

import torch
from tailorlib_strategies.fitness import Perplexity
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import FoldingSpace, PruningSpace
from tailorlib_strategies.texts import JSONLines, StandardLibraryCode
from tailorlib_strategies.warm_starts import (
    AngularDistance,
    BlockInfluence,
    DesignedStart,
    FullDepthMerge,
    LaCo,
    LeaveOneOut,
    MagnitudeImportance,
    RandomTailoring,
    SingleVariants,
    TaylorImportance,
    UniformMix,
)

from tailorlib import Tailoring, TextSource, WarmStart, WarmStartContext
from tailorlib.evaluation.engine import Engine
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import BASE


def starts(text: TextSource, tokens: int, candidates: tuple[str, ...], scale: float) -> list[WarmStart]:
    """Return all of them, set alike."""
    influence = BlockInfluence(text, max_tokens=tokens)
    lists: list[WarmStart] = [
        influence,
        AngularDistance(text, max_tokens=tokens),
        TaylorImportance(text, max_tokens=tokens),
    ]
    return [
        influence,
        BlockInfluence(text, max_tokens=tokens, merge_scales=[scale]),
        AngularDistance(text, max_tokens=tokens),
        MagnitudeImportance(),
        TaylorImportance(text, max_tokens=tokens),
        DesignedStart(lists),
        UniformMix(removal=influence),
        *(SingleVariants(influence, variant=name) for name in candidates),
        FullDepthMerge("TaskArithmetic", {"scale": scale}),
        RandomTailoring(),
        LaCo(text, max_tokens=tokens),
        LaCo(text, merged_layers=2, max_tokens=tokens),
        LeaveOneOut(text, max_tokens=tokens),
        LeaveOneOut(text, greedy=True, max_tokens=tokens),
    ]


def removed(tailoring: Tailoring, num_layers: int) -> str:
    """Return the layers that a tailoring lacks, in words."""
    depths = {plan.sources[0].layer for plan in tailoring.layers}
    return ", ".join(str(i) for i in range(num_layers) if i not in depths) or "none"


def main() -> None:
    """Measure and print."""
    args = arguments()
    candidates = dict(entry.split("=", 1) for entry in args.candidates)
    print(f"machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}\ncommand: {shlex.join(sys.argv)}\n")
    family = ModelFamily(args.base, candidates)
    family.load(torch.device(args.device))
    layout = family.layout
    engine = Engine(family.tokenizer, torch.device(args.device), 1024, state_bytes=1 << 30)
    text = JSONLines(args.calibrate) if args.calibrate else StandardLibraryCode(split="search")
    test = JSONLines(args.held_out) if args.held_out else StandardLibraryCode(split="test")
    fitness = Perplexity(test, max_tokens=args.held_out_tokens)
    fitness.setup(engine)

    def loss(tailoring: Tailoring) -> float:
        return float(fitness.evaluate(family.stitch(tailoring)).metrics["nats_per_token"])

    print("| | proposals | seconds | CPU seconds | removed | nats per token |\n|---|---|---|---|---|---|")
    print(f"| dense base | | | | none | {loss(Tailoring.whole(BASE, layout.num_layers)):.3f} |", flush=True)
    removal = LayerRemoval(ratio=args.ratio)
    for start in starts(text, args.tokens, layout.candidates, args.scale):
        if args.only and type(start).__name__ not in args.only:
            continue
        space = (
            FoldingSpace(removal) if isinstance(start, LaCo) else PruningSpace(removal, merges=[TaskArithmetic()])
        )
        space.setup(layout)
        context = WarmStartContext(family, space, engine, args.seed)
        started, busy = time.perf_counter(), time.process_time()
        proposals = start.propose(context)
        seconds, cpu = time.perf_counter() - started, time.process_time() - busy
        merges = isinstance(start, BlockInfluence) and start.merge_scales
        row, label = (proposals[-1], f", merged at {args.scale}") if merges else (proposals[0], "")
        print(f"| {start.label}{label} | {len(proposals)} | {seconds:.1f} | {cpu:.1f} | ", end="")
        print(f"{removed(row, layout.num_layers)} | {loss(row):.3f} |", flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="what a recipe takes as a base")
    parser.add_argument("candidates", nargs="+", help="NAME=MODEL, two or more")
    parser.add_argument("--calibrate", help="JSON Lines file; the standard library's source by default")
    parser.add_argument("--held-out", help="JSON Lines file; other parts of the standard library by default")
    parser.add_argument("--tokens", type=int, default=1024, help="of calibration text")
    parser.add_argument("--held-out-tokens", type=int, default=4096, help="tokens to measure on")
    parser.add_argument("--ratio", type=float, default=0.25, help="share of the layers to remove")
    parser.add_argument("--scale", type=float, default=0.35, help="of the merges that are a row")
    parser.add_argument("--only", nargs="+", help="class names of warm starts; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of windows and draws")
    parser.add_argument("--device", default="cpu", help="where to run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
