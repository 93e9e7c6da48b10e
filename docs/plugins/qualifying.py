"""A scheduler of one's own: a quarter of the samples for all, the whole for whoever leads there."""

from tailorlib import Promotion, Scheduler, Trial


class Qualifying(Scheduler):
    """A quarter of the samples for all, the whole for those who lead there."""

    def _setup(self, budget: float) -> None:
        self._quarter = max(self.least, self.samples // 4)
        self._best = float("inf")
        self._queue: list[Promotion] = []

    def _start(self) -> int:
        return self._quarter

    def _promote(self, count: int) -> list[Promotion]:
        chosen, self._queue = self._queue[:count], self._queue[count:]
        return chosen

    def _tell(self, trial: Trial) -> None:
        if trial.samples == self._quarter and trial.loss < self._best:
            self._best = trial.loss
            self._queue.append(Promotion(trial.tailoring.digest, self.samples))
