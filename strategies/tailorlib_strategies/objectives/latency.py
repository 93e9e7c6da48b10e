"""LatencyReduced: how much faster a candidate is than the dense base, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from tailorlib import Tailoring
from tailorlib.exceptions import RecipeError
from tailorlib.objective import Candidate, Objective
from tailorlib.tailoring import BASE


class LatencyReduced(Objective):
    """The share of the dense base's forward time that a candidate saves, measured side by side.

    A forward pass of ``batch_size`` sequences of ``length`` tokens without a cache is timed on the study's device,
    candidate and dense base in turns, and the medians are compared: a machine that slows down slows both down.
    The figure is a measurement, so it is not the same to the last digit from run to run; a resumed study keeps
    what was recorded.

    Args:
        batch_size: Number of sequences.
        length: Their length in tokens.
        repeats: Number of passes of each, after one to warm up.

    Raises:
        RecipeError: If a number is not positive.
    """

    def __init__(self, batch_size: int = 1, length: int = 128, repeats: int = 5) -> None:
        given = {"batch_size": batch_size, "length": length, "repeats": repeats}
        faults = [f"LatencyReduced.{k} is at least 1, got {v}." for k, v in given.items() if v < 1]
        if faults:
            raise RecipeError(faults)
        self.batch_size, self.length, self.repeats = batch_size, length, repeats

    @property
    def name(self) -> str:
        """What tables call it."""
        return "latency_reduced"

    def score(self, candidate: Candidate) -> float:
        """Return 1 - time / time of the dense base."""
        family, device = candidate.family, candidate.engine.device
        length = min(self.length, candidate.engine.max_length)
        tokens = torch.zeros(self.batch_size, length, dtype=torch.long, device=device)
        taken: dict[bool, list[float]] = {True: [], False: []}
        whole = Tailoring.whole(BASE, family.layout.num_layers)
        for repeat in range(self.repeats + 1):
            for dense, tailoring in ((True, whole), (False, candidate.tailoring)):
                model = family.stitch(tailoring)
                seconds = _timed(lambda model=model: _forward(model, tokens), device)  # type: ignore[misc]
                if repeat:
                    taken[dense].append(seconds)
        return 1.0 - statistics.median(taken[False]) / statistics.median(taken[True])


def _forward(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)


def _timed(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
