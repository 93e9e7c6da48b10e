"""Validation of the best candidate on data that the search doesn't use."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape

from tailorlib.console import say
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import EvaluationError
from tailorlib.fitness import Measurement
from tailorlib.search.deaths import Deaths
from tailorlib.search.evaluator import Evaluator
from tailorlib.search.study import Study
from tailorlib.trial import Trial


class Validator:
    """Decides when to validate, does it, and says when to give up.

    Args:
        study: A prepared study.
        engine: Its engine.
        rank: Number of this process.
        ranks: Number of processes.
        deaths: Knows which candidates killed their process; by default there are none.
    """

    def __init__(
        self, study: Study, engine: Engine, *, rank: int = 0, ranks: int = 1, deaths: Deaths | None = None
    ) -> None:
        self.settings = study.validation
        self._evaluator: Evaluator | None = None
        self._next = 0
        self._validated: set[int] = set()
        if self.settings.fitness is not None:
            fitness = self.settings.fitness
            self._evaluator = Evaluator(study, engine, rank=rank, ranks=ranks, fitness=fitness, deaths=deaths)
            self.settings.fitness.set_reference(self._evaluator.measure(study.dense))

    def due(self, best: Trial | None, trials: int, *, last: bool) -> Trial | None:
        """Return the trial to validate now, if there is one.

        Args:
            best: The best trial so far.
            trials: Number of trials so far.
            last: Whether the search ends here.
        """
        if self._evaluator is None or best is None or best.number in self._validated:
            return None
        if best.fidelity < 1:  # it may only have been lucky, and must not become the result
            return None
        return best if last or trials >= self._next else None

    def __call__(self, trial: Trial, recorded: Measurement | None = None) -> Measurement | None:
        """Score a trial's candidate, on all ranks together, unless it was recorded; ``None`` if that fails."""
        assert self._evaluator is not None
        self._validated.add(trial.number)
        self._next = trial.number + 1 + self.settings.every
        if recorded is not None:
            return recorded
        try:
            return self._evaluator.measure(trial.tailoring)
        except EvaluationError as error:  # the search has its score; a study of hours needn't end for this one
            say(f"[yellow]![/] Validation of trial {trial.number} failed: {escape(str(error))}")
            return None

    def patience_lost(self, validations: Mapping[int, Measurement]) -> bool:
        """Say whether the last validations, as many as the recipe's patience, found no better score."""
        patience = self.settings.patience
        scores = [found.score for _, found in sorted(validations.items())]
        if patience is None or len(scores) <= patience:
            return False
        return max(scores[-patience:]) <= max(scores[:-patience])
