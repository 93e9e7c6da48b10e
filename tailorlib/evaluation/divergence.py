"""KL divergence of live models from the dense one, whose outputs are computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tailorlib.evaluation.engine import CompiledRequests
from tailorlib.evaluation.faults import where_it_breaks
from tailorlib.evaluation.forward import hidden_states
from tailorlib.evaluation.packing import Batch
from tailorlib.evaluation.samples import SampledRequests
from tailorlib.evaluation.scoring import Chunk, log_distribution, logit_chunks
from tailorlib.evaluation.workspace import Workspace
from tailorlib.exceptions import EvaluationError

_BESIDE = 4
"""A few tensors of the size of the logits are needed at once."""


def reference_bytes(positions: int, vocabulary: int, top_k: int | None, itemsize: int) -> int:
    """Return the size of a :class:`Reference`.

    Args:
        positions: Number of scored positions.
        vocabulary: Number of tokens.
        top_k: Number of tokens that are kept; all if ``None``.
        itemsize: Bytes of an element of the model's data type.
    """
    kept = vocabulary * itemsize if top_k is None else min(top_k, vocabulary) * (4 + 4) + 4
    return positions * (kept + 8)


class Reference:
    """What the dense model says at every scored position of some texts; lives on the engine's device.

    The full distribution is kept as the logits in the model's own data type, which loses nothing. Of the ``top_k``
    most probable tokens the log-probabilities are kept in float32, and the mass of all others together.

    Args:
        model: The live dense model.
        texts: One request for each sample.
        top_k: Number of tokens that are kept at a position; all if ``None``.

    Raises:
        EvaluationError: If the model gives NaN, or memory runs out.
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, texts: SampledRequests, top_k: int | None) -> None:
        self._texts = texts
        lengths = torch.tensor([len(own[0].continuation) for own in texts.requests])
        self._starts = lengths.cumsum(0) - lengths
        vocabulary = model.config.vocab_size
        self.top_k = None if top_k is None else min(top_k, vocabulary)
        compiled = texts.compiled(range(len(texts)))
        texts.engine.run(model, compiled, lambda chunk: self._record(model, compiled, chunk))
        bad = (self._logits if self.top_k is None else self._values).isnan().any(dim=-1)
        if bad.any():
            ends = torch.tensor([len(batch.scored) for batch in compiled.plan.batches]).cumsum(0)
            _tell_nan(model, compiled.plan.batches[int((ends <= int(bad.nonzero()[0])).sum())])

    def _record(self, model: PreTrainedModel, compiled: CompiledRequests, logits_per_chunk: int) -> None:
        positions, vocabulary = compiled.plan.scored_rows, model.config.vocab_size
        device = self._texts.engine.device
        self._first = torch.empty(positions, dtype=torch.long, device=device)
        if self.top_k is None:
            self._logits = torch.empty(positions, vocabulary, dtype=model.dtype, device=device)
        else:
            self._values = torch.empty(positions, self.top_k, dtype=torch.float32, device=device)
            self._tokens = torch.empty(positions, self.top_k, dtype=torch.int32, device=device)
            self._rest = torch.empty(positions, dtype=torch.float32, device=device)
        places = self._places(compiled, range(len(self._texts))).to(device)
        self._row_of_place = torch.empty(len(places), dtype=torch.long, device=device)
        row = pair = 0
        for chunk in logit_chunks(model, compiled.plan.batches, self._workspace, logits_per_chunk // _BESIDE):
            stop = row + len(chunk.logits)
            self._row_of_place[places[pair : pair + len(chunk.rows)]] = chunk.rows + row
            self._keep(slice(row, stop), chunk.logits)
            row, pair = stop, pair + len(chunk.rows)

    @torch.inference_mode()
    def compare(self, model: PreTrainedModel, samples: Sequence[int]) -> list[tuple[float, int, float, float]]:
        """Compare a live model with the dense one.

        Args:
            model: The model, with the same vocabulary.
            samples: Numbers of the samples, each once.

        Returns:
            For each sample, as sums over its positions: KL(dense || model) in nats, number of positions with the
            same first choice, log-likelihood of the text in nats, and acceptance ``sum_t min(p_t, q_t)``: the
            probability that the dense model keeps a token that the model drew. Where few tokens are kept, all
            others count as one, which bounds the acceptance from above.

        Raises:
            EvaluationError: If the model gives NaN, with the layer where it begins, or if memory runs out.
        """
        if not samples:
            return []
        compiled, ascending = self._texts.compiled(samples), sorted(samples)
        found = self._texts.engine.run(
            model, compiled, lambda chunk: self._compare_all(model, compiled, ascending, chunk)
        )
        of_pair = found.to("cpu", torch.float64)  # [pairs, 4]; one synchronisation per scoring
        requests = torch.cat([batch.pair_request for batch in compiled.plan.batches])
        sums = torch.zeros(len(ascending), 4, dtype=torch.float64).index_add_(0, requests, of_pair)
        bad = sums[:, 2].isnan()
        if bad.any():
            first = bad.nonzero()[0]
            _tell_nan(model, next(b for b in compiled.plan.batches if (b.pair_request == first).any()))
        of_sample = {
            i: (kl, round(same), text, accepted)
            for i, (kl, same, text, accepted) in zip(ascending, sums.tolist(), strict=True)
        }
        return [of_sample[i] for i in samples]

    @property
    def _workspace(self) -> Workspace:
        return self._texts.engine.workspace

    def _keep(self, where: slice, logits: Tensor) -> None:
        self._first[where] = logits.argmax(dim=-1)
        if self.top_k is None:
            self._logits[where] = logits
            return
        log_p = log_distribution(logits, self._workspace)
        self._values[where], tokens = log_p.topk(self.top_k, dim=-1)
        self._tokens[where] = tokens.to(torch.int32)
        self._rest[where] = _log_rest(log_p, tokens, self._workspace)

    def _compare_all(
        self, model: PreTrainedModel, compiled: CompiledRequests, ascending: Sequence[int], logits_per_chunk: int
    ) -> Tensor:
        rows = self._row_of_place[self._places(compiled, ascending).to(self._row_of_place.device)]
        found, pair = [], 0
        for chunk in logit_chunks(model, compiled.plan.batches, self._workspace, logits_per_chunk // _BESIDE):
            found.append(self._compare(chunk, rows[pair : pair + len(chunk.rows)]))
            pair += len(chunk.rows)
        return torch.cat(found)

    def _compare(self, chunk: Chunk, rows: Tensor) -> Tensor:
        """Return what :meth:`compare` sums up, of each pair, float32 [pairs, 4]."""
        of_position = torch.empty(len(chunk.logits), dtype=torch.long, device=rows.device)
        of_position[chunk.rows] = rows
        same = chunk.logits.argmax(dim=-1) == self._first[of_position]
        log_q = log_distribution(chunk.logits, self._workspace)
        kl, accepted = self._divergence(log_q, of_position)
        kl = kl.clamp(min=0)  # it is never negative; rounding may be
        columns = (
            kl[chunk.rows],
            same[chunk.rows],
            log_q[chunk.rows, chunk.targets],
            accepted.clamp(0, 1)[chunk.rows],
        )
        return torch.stack([column.float() for column in columns], dim=-1)

    def _divergence(self, log_q: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(dense || model) and the acceptance at each position, given [positions, vocabulary]."""
        workspace = self._workspace
        if self.top_k is None:
            logits = workspace.empty("reference", log_q.shape, self._logits.dtype, log_q.device)
            torch.index_select(self._logits, 0, rows, out=logits)
            log_p = log_distribution(logits, workspace, "reference distribution")
            accepted = _accepted(log_p, log_q, workspace)
            return _terms(log_p, log_q, workspace).sum(dim=-1), accepted
        tokens = self._tokens[rows].long()
        log_p, own = self._values[rows], log_q.gather(-1, tokens)
        accepted = _accepted(log_p, own, workspace)
        kept = _terms(log_p, own, workspace).sum(dim=-1)
        # one bucket for all other tokens: by the log-sum inequality no more than the sum of their own terms
        rest, own_rest = self._rest[rows], _log_rest(log_q, tokens, workspace)
        accepted += torch.minimum(rest, own_rest).exp()
        return kept + _terms(rest, own_rest, workspace), accepted

    def _places(self, compiled: CompiledRequests, ascending: Sequence[int]) -> Tensor:
        """Return the place in all texts of each pair, in the order of the batches, [pairs], on the CPU."""
        requests = torch.cat([batch.pair_request for batch in compiled.plan.batches])
        # a text's pairs are in the order of its tokens, whatever stands between them
        order = requests.argsort(stable=True)
        counts = requests.bincount(minlength=len(ascending))
        within = torch.arange(len(requests)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        places = torch.empty_like(requests)
        places[order] = self._starts[torch.tensor(ascending)][requests[order]] + within
        return places


def _accepted(log_p: Tensor, log_q: Tensor, workspace: Workspace) -> Tensor:
    """Return ``sum min(p, q)`` over the last dimension."""
    least = workspace.empty("probabilities", log_p.shape, log_p.dtype, log_p.device)
    return torch.minimum(log_p, log_q, out=least).exp_().sum(dim=-1)


def _terms(log_p: Tensor, log_q: Tensor, workspace: Workspace) -> Tensor:
    """Return ``p (log p - log q)``, which is 0 where p is; it is written over ``log_p``."""
    p = torch.exp(log_p, out=workspace.empty("probabilities", log_p.shape, log_p.dtype, log_p.device))
    nothing = torch.gt(p, 0, out=workspace.empty("nothing", p.shape, torch.bool, p.device)).logical_not_()
    return log_p.sub_(log_q).mul_(p).masked_fill_(nothing, 0.0)


def _log_rest(log_p: Tensor, tokens: Tensor, workspace: Workspace) -> Tensor:
    """Return the logarithm of the mass of all tokens but some, [positions]; ``-inf`` if there are no others."""
    rest = workspace.empty("rest", log_p.shape, log_p.dtype, log_p.device).copy_(log_p)
    rest.scatter_(-1, tokens, -torch.inf)
    # logsumexp would make a copy of its own
    largest = rest.amax(dim=-1, keepdim=True)
    largest.masked_fill_(largest.abs() == torch.inf, 0.0)
    return rest.sub_(largest).exp_().sum(dim=-1).log_().add_(largest[:, 0])


def _tell_nan(model: PreTrainedModel, batch: Batch) -> None:
    raise EvaluationError(where_it_breaks(model, lambda: hidden_states(model, batch)))
