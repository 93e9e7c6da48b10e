# ruff: noqa: T201
"""Does a quantised family rank candidates as the full-precision one does? Run it as a script.

Tailorings of a family are scored on text in full precision and quantised; what counts for a search is the rank
correlation of the two. Half of them are random. The others are closer to each other, as what a search looks at
later on: the layers that block influence would remove, a few of them exchanged, and some layers merged. Example::

    python tests/benchmarks/quantization_fidelity.py BASE --candidate math=FOLDER --candidate code=FOLDER \\
        --text FILE.jsonl:text --text FILE.jsonl:answer --tailorings 32
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.texts import JSONLines
from tailorlib_strategies.warm_starts import BlockInfluence

from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.text import text_loss, windows
from tailorlib.models.family import ModelFamily
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring
from tailorlib.warm_start import WarmStartContext


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--candidate", action="append", default=[], help="NAME=FOLDER")
    parser.add_argument("--text", action="append", required=True, help="FILE.jsonl:FIELD")
    parser.add_argument("--kinds", nargs="+", default=["nf4", "fp4", "int8"])
    parser.add_argument("--tailorings", type=int, default=32)
    parser.add_argument("--ratio", type=float, default=0.25, help="share of the layers to remove")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens to score per text")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def candidates(args: argparse.Namespace) -> list[Tailoring]:
    """Return random tailorings (removal, selection and task arithmetic), then as many near a good one."""
    family = ModelFamily(args.base, dict(pair.split("=", 1) for pair in args.candidate), dtype=args.dtype)
    device = torch.device(args.device)
    family.load(device)
    space = PruningSpace(LayerRemoval(ratio=args.ratio), merges=[TaskArithmetic()])
    space.setup(family.layout)
    rng = numpy_generator("quantization", args.seed)
    spread = [space.decode(space.sample(rng)) for _ in range(args.tailorings - args.tailorings // 2)]
    start = BlockInfluence(JSONLines(*args.text[0].rsplit(":", 1)))
    context = WarmStartContext(family, space, Engine(family.tokenizer, device, 1024), args.seed)
    (good, *_) = start.propose(context)
    kept = [plan.sources[0].layer for plan in good.layers]
    close = []
    for _ in range(args.tailorings // 2):
        removed = [i for i in range(family.layout.num_layers) if i not in kept]
        exchanged = set(rng.choice(removed, size=int(rng.integers(0, 3)), replace=False))
        gone = set(rng.choice(kept, size=len(exchanged), replace=False))
        now = sorted((set(kept) | exchanged) - gone)
        drawn = {plan.sources[0].layer: plan for plan in space.decode(space.sample(rng)).layers}
        own = {i: LayerPlan((LayerSource(BASE, i),)) for i in now}
        plans = [drawn[i] if i in drawn and rng.random() < 0.4 else own[i] for i in now]
        close.append(Tailoring(tuple(plans)))
    return spread + close


def losses(args: argparse.Namespace, kind: str, tailorings: Sequence[Tailoring]) -> tuple[np.ndarray, str]:
    """Return nats per token of each tailoring, mean over the texts, and what it took in words."""
    names = dict(pair.split("=", 1) for pair in args.candidate)
    family = ModelFamily(args.base, names, dtype=args.dtype, quantization=kind)
    family.load(torch.device(args.device))
    engine = Engine(family.tokenizer, torch.device(args.device), 1024)
    texts = [
        windows(family.tokenizer, JSONLines(*text.rsplit(":", 1)).documents(), 256, args.tokens)
        for text in args.text
    ]
    compiled = [engine.compile([w.request for w in text]) for text in texts]
    found, started = [], time.perf_counter()
    for tailoring in tailorings:
        model = family.stitch(tailoring)
        scores = [engine.score(model, c).log_likelihood.tolist() for c in compiled]
        found.append(np.mean([text_loss(t, s).nats_per_token for t, s in zip(texts, scores, strict=True)]))
    seconds = (time.perf_counter() - started) / len(tailorings)
    memory = {name: size / 1e6 for name, size in family.stitcher.memory().items() if name in ("base", *names)}
    held = ", ".join(f"{name} {size:.0f} MB" for name, size in memory.items())
    return np.array(found), f"{seconds:.2f} s per trial; held: {held}"


def main() -> None:
    """Measure and print."""
    args = arguments()
    print(
        f"machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    print(f"command: {shlex.join(sys.argv)}")
    tailorings = candidates(args)
    near = slice(len(tailorings) - len(tailorings) // 2, None)
    full, what = losses(args, "none", tailorings)
    few = len(full[near])
    ranked = f"the best one's rank in {args.dtype}"
    print(f"\n| | all {len(full)} | the {few} near the good one | {ranked} | nats per token, mean | took |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    print(f"| {args.dtype} | 1 | 1 | 1 | {full.mean():.3f} | {what} |", flush=True)
    for kind in args.kinds:
        rounded, what = losses(args, kind, tailorings)
        both = spearmanr(full, rounded).statistic, spearmanr(full[near], rounded[near]).statistic
        rank = int(np.argsort(np.argsort(full))[rounded.argmin()]) + 1
        print(f"| {kind} | {both[0]:.3f} | {both[1]:.3f} | {rank} | {rounded.mean():.3f} | {what} |", flush=True)


if __name__ == "__main__":
    main()
