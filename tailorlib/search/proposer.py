"""Who is next: warm starts first, then the optimizer, no candidate twice."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from tailorlib.distributions import Params
from tailorlib.optimizer import Optimizer
from tailorlib.search_space import SearchSpace
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial

MAX_REPEATS = 200
"""How often an optimizer may propose known candidates before the study counts as exhausted."""


@dataclass(frozen=True)
class Proposal:
    """A candidate to evaluate: its active parameters, what they mean, and who proposed it."""

    params: Params
    tailoring: Tailoring
    origin: str


class Proposer:
    """Turns an optimizer's asks into new candidates.

    Two assignments that decode to one tailoring are one candidate: a repeated proposal is answered at once with
    the known result and costs no trial. Everything here depends on the seed and the told trials alone, so that
    replaying a journal, or running the same loop on several ranks, gives the same proposals.

    Args:
        space: The search space, set up.
        optimizer: The optimizer, set up.
        warm_starts: Pairs (origin, tailoring) to try first, all inside the space.
        seed: The study's seed, which every tailoring carries.
        complete: Gives a tailoring its compensation.
    """

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        warm_starts: Iterable[tuple[str, Tailoring]] = (),
        seed: int = 0,
        complete: Callable[[Tailoring], Tailoring] | None = None,
    ) -> None:
        self._space, self._optimizer, self._seed, self._complete = space, optimizer, seed, complete
        starts = ((origin, space.encode(tailoring.bare)) for origin, tailoring in warm_starts)
        self._queue = deque(self._proposal(params, origin) for origin, params in starts)
        self._known: dict[str, Trial] = {}
        self.repeats = 0
        """Number of proposals that were answered without a trial."""

    def propose(self, count: int, taken: Collection[str] = ()) -> list[Proposal]:
        """Return up to ``count`` candidates that were never told and differ from each other.

        Fewer (or none) are returned when the optimizer goes on proposing known ones: the space is exhausted,
        or the optimizer has converged.

        Args:
            count: How many are wanted.
            taken: Digests of candidates that wait to be told; they are not proposed either.
        """
        batch: dict[str, Proposal] = {}
        while self._queue and len(batch) < count:
            proposal = self._queue.popleft()
            if proposal.tailoring.digest not in self._known and proposal.tailoring.digest not in taken:
                batch.setdefault(proposal.tailoring.digest, proposal)
        repeats = 0
        while len(batch) < count and repeats < MAX_REPEATS:
            proposal = self._proposal(self._optimizer.ask(), "optimizer")
            digest = proposal.tailoring.digest
            if digest in self._known:
                self._optimizer.tell(replace(self._known[digest], params=proposal.params))
            if digest in self._known or digest in batch or digest in taken:
                repeats += 1
                self.repeats += 1
            else:
                batch[digest] = proposal
        return list(batch.values())

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell the optimizer the trials of a batch, in the order of their numbers."""
        for trial in trials:
            self._known[trial.tailoring.digest] = trial
            self._optimizer.tell(trial)

    def _proposal(self, params: Params, origin: str) -> Proposal:
        tailoring = self._space.decode(params, seed=self._seed)
        return Proposal(params, tailoring if self._complete is None else self._complete(tailoring), origin)


class Replay:
    """Recorded trials, handed out again to proposals that match them.

    Args:
        trials: The journal's trials; one that was lost is made again.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = {trial.number: trial for trial in trials}
        self._warned = False

    def lookup(self, number: int, proposal: Proposal | None) -> Trial | None:
        """Return the recorded trial of that number, if there is one.

        A record that differs from the proposal (a changed library can propose otherwise) still counts: what was
        measured is true. It is said once.
        """
        trial = self._trials.get(number)
        if trial is None:
            return None
        same = proposal is not None and proposal.tailoring.digest == trial.tailoring.digest
        if not same and not self._warned:
            self._warned = True
            warnings.warn(
                f"Replaying the journal, trial {number} differs from what the optimizer proposes now (another "
                "version of a library, perhaps). The recorded trials are kept and told; the study goes on, but "
                "not as it would have without the interruption.",
                stacklevel=2,
            )
        return trial
