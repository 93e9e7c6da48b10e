"""Scores: the head at the positions that are asked about, and what its logits say of each target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tailorlib.evaluation.forward import hidden_states, logits_of
from tailorlib.evaluation.packing import Batch
from tailorlib.evaluation.workspace import Workspace

LOGITS_PER_CHUNK = 2**25
"""Largest number of float32 logits held at once: 128 MB."""


@dataclass(frozen=True)
class Chunk:
    """Logits at some scored positions. Chunks follow each other as positions and pairs do in the batches.

    Args:
        logits: [positions, vocabulary], in the model's data type; the reader's own to overwrite, until the next
            chunk is asked for.
        rows: Position of each pair, counted from the chunk's first, [pairs].
        targets: Target token of each pair, [pairs].
    """

    logits: Tensor
    rows: Tensor
    targets: Tensor


@dataclass(frozen=True)
class _Piece:
    """Some of a batch's scored positions.

    Args:
        hidden: Their hidden states, [positions, hidden].
        rows: Position of each pair, counted from the piece's first, [pairs].
        targets: Target token of each pair, [pairs].
    """

    hidden: Tensor
    rows: Tensor
    targets: Tensor


def logit_chunks(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    workspace: Workspace,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> Iterator[Chunk]:
    """Run batches and apply the head to their scored positions, in order.

    The head runs over as many positions at once as fit, whichever batches they are of.

    Args:
        model: A live causal language model.
        batches: What runs.
        workspace: Where the logits are written.
        logits_per_chunk: Largest number of logits held at once.

    Yields:
        The logits, on the batches' device.
    """
    chunk = max(1, logits_per_chunk // model.config.vocab_size)
    held: list[_Piece] = []
    free = chunk
    for batch in batches:
        hidden = hidden_states(model, batch)[batch.scored]  # [scored, hidden]
        start = 0
        while start < len(hidden):
            stop = min(start + free, len(hidden))
            held.append(_piece(batch, hidden, start, stop))
            free -= stop - start
            start = stop
            if free == 0:
                yield _chunk(model, held, workspace)
                held, free = [], chunk
    if held:
        yield _chunk(model, held, workspace)


def score_pairs(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    workspace: Workspace,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run batches and score their pairs of a position and a target, in order.

    Args:
        model: A live causal language model.
        batches: What runs.
        workspace: Where logits and log-probabilities are written.
        logits_per_chunk: Largest number of logits held at once.

    Yields:
        Log-probability (float32) and greedy flag (bool) of some pairs, on the batches' device.
    """
    for chunk in logit_chunks(model, batches, workspace, logits_per_chunk):
        yield _pick(chunk.logits, chunk.rows, chunk.targets, workspace)


def log_distribution(logits: Tensor, workspace: Workspace, use: str = "distribution") -> Tensor:
    """Return log-probabilities, float32 [positions, vocabulary]; float32 logits on a CPU are overwritten.

    Args:
        logits: [positions, vocabulary].
        workspace: Where they are written otherwise.
        use: What the workspace calls them.
    """
    if logits.device.type != "cpu":
        return torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    wide = logits
    if logits.dtype != torch.float32:
        wide = workspace.empty(use, logits.shape, torch.float32, logits.device).copy_(logits)
    # several times as fast as logsumexp on a CPU; written in place, it touches no further memory
    return torch.log_softmax(wide, dim=-1, out=wide)


def _piece(batch: Batch, hidden: Tensor, start: int, stop: int) -> _Piece:
    first, end = batch.first_pair[start].item(), batch.first_pair[stop].item()
    return _Piece(hidden[start:stop], batch.pair_row[first:end] - start, batch.pair_target[first:end])


def _chunk(model: PreTrainedModel, pieces: list[_Piece], workspace: Workspace) -> Chunk:
    logits = logits_of(model, torch.cat([piece.hidden for piece in pieces]), workspace)
    rows, start = [], 0
    for piece in pieces:
        rows.append(piece.rows + start)
        start += len(piece.hidden)
    return Chunk(logits, torch.cat(rows), torch.cat([piece.targets for piece in pieces]))


def _pick(logits: Tensor, rows: Tensor, targets: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Return log-probability and greedy flag of each target, [pairs], given logits [rows, vocabulary]."""
    distribution = log_distribution(logits, workspace)
    picked = distribution[rows, targets]
    if logits.device.type != "cpu":
        return picked, distribution.argmax(dim=-1)[rows] == targets
    # the greatest value is found faster than its place, which decides only between equal values
    greedy = picked == distribution.amax(dim=-1)[rows]
    (candidates,) = torch.where(greedy)
    greedy[candidates] = distribution[rows[candidates]].argmax(dim=-1) == targets[candidates]
    return picked, greedy
