"""What the engine is held against: each request on its own, through the model's own forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tailorlib.evaluation.engine import Request, Scores

FULL, SLIDING = "full_attention", "sliding_attention"


def one_by_one(model: Any, requests: Sequence[Request], max_length: int = 256) -> Scores:
    """Score each request alone, as a whole, in one row."""
    sums, greedy = [], []
    for request in requests:
        ids = torch.tensor([(request.context + request.continuation)[-(max_length + 1) :]])
        target = ids[0, -len(request.continuation) :]
        with torch.no_grad():
            log_probs = model(ids[:, :-1]).logits[0, -len(target) :].log_softmax(-1)
        sums.append(log_probs.gather(1, target[:, None]).double().sum())
        greedy.append(bool((log_probs.argmax(-1) == target).all()))
    return Scores(torch.stack(sums), torch.tensor(greedy))


def choices_of(scores: Scores, choices: int = 4) -> list[int]:
    """Return the best choice of each question, given the scores of ``choices`` requests a question."""
    best: list[int] = scores.log_likelihood.view(-1, choices).argmax(1).tolist()
    return best
