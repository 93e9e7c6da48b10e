# ruff: noqa: T201
"""Time how long it takes to build a candidate by reference, and to find a merged layer; run it as a script.

The cost doesn't depend on the size of the layers, so a tiny model of 40 layers stands for a large one::

    python tests/benchmarks/stitching_speed.py
"""

from __future__ import annotations

import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tailorlib import LayerPlan, LayerSource, Tailoring
from tailorlib.models.family import ModelFamily
from tailorlib.seeding import numpy_generator
from tailorlib.testing.tiny import write_tiny_family

LAYERS, KEPT, TIMES = 40, 30, 200


def main() -> None:
    """Measure and print."""
    print(f"machine: {platform.processor() or platform.machine()}, torch {torch.__version__}")
    print(f"command: {shlex.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as folder:
        folders = write_tiny_family(Path(folder), candidates=3, num_layers=LAYERS)
        names = {name: str(path) for name, path in folders.items() if name != "base"}
        family = ModelFamily(str(folders["base"]), names, dtype="float32")
        family.load(torch.device("cpu"))
        for name in family.layout.models:  # every layer is read once
            family.stitch(Tailoring.whole(name, LAYERS))
        rng = numpy_generator("stitching")
        seconds = [_timed(family, _candidate(family, rng)) for _ in range(TIMES)]
        merge = LayerPlan((LayerSource("a", 0), LayerSource("b", 0)), "Linear")
        family.stitch(Tailoring((merge,)))
        start = time.perf_counter()
        for _ in range(TIMES):
            assert family.stitcher.merged.get((merge, 0)) is not None
        lookup = (time.perf_counter() - start) / TIMES
    print(
        f"removal and selection, {KEPT} of {LAYERS} layers: {1e3 * np.median(seconds):.2f} ms "
        f"(median), {1e3 * max(seconds):.2f} ms (slowest of {TIMES})"
    )
    print(f"a merged layer out of the cache: {1e6 * lookup:.1f} microseconds")


def _candidate(family: ModelFamily, rng: np.random.Generator) -> Tailoring:
    models = family.layout.models
    kept = sorted(int(i) for i in rng.choice(LAYERS, KEPT, replace=False))
    return Tailoring(tuple(LayerPlan((LayerSource(models[rng.integers(len(models))], i),)) for i in kept))


def _timed(family: ModelFamily, tailoring: Tailoring) -> float:
    start = time.perf_counter()
    family.stitch(tailoring)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
