"""Scheduler: on how many samples each candidate is scored.

A candidate is first scored on few samples, and goes on to more if it is promoted. The samples of a fitness have a
fixed order, so all candidates on a rung (a number of first samples) were scored on the same ones and compare.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import numpy as np

from tailorlib.exceptions import PluginError, RecipeError, shown
from tailorlib.registry import Registry
from tailorlib.trial import Trial


@dataclass(frozen=True)
class Promotion:
    """A known candidate to score on more samples.

    Args:
        digest: The candidate's.
        samples: Number of first samples to score it on.
    """

    digest: str
    samples: int


class Scheduler(ABC):
    """Decides who is scored on how many samples; plugins of this kind work with any optimizer.

    ``__init__`` takes recipe settings; :meth:`setup` gives the number of samples. Given the same sequence of calls
    a scheduler decides the same: a study resumes by replaying them.
    """

    samples: int
    """Number of all samples, after :meth:`setup`."""
    least: int
    """The least number of samples that a measurement can be made of, after :meth:`setup`."""

    def setup(self, samples: int, least: int, budget: float) -> None:
        """Start a study.

        Args:
            samples: Number of samples of the fitness.
            least: The least number of them that a measurement can be made of.
            budget: What the study may spend, in evaluations on all samples.

        Raises:
            RecipeError: If the settings don't fit the samples, or the budget is smaller than one round.
        """
        if samples < 2 * least:
            raise RecipeError(
                f"{type(self).__name__} scores candidates on parts of the samples; the fitness has {samples}, of "
                f"which {least} are needed at least. Take more samples, or no scheduler."
            )
        self.samples, self.least = samples, least
        self._setup(budget)

    def start(self) -> int:
        """Return the number of samples that the next new candidate is scored on.

        Raises:
            PluginError: If the subclass wants more samples than there are, or less than a measurement needs.
        """
        return self._samples("_start", self._start())

    def promote(self, count: int) -> list[Promotion]:
        """Return up to ``count`` known candidates to score on more samples now; none twice.

        Raises:
            PluginError: If the subclass gives something else.
        """
        found = self._promote(count)
        name = f"{type(self).__name__}._promote"
        if not isinstance(found, list | tuple) or not all(isinstance(p, Promotion) for p in found):
            raise PluginError(f"{name} gives a list of Promotion(digest, samples), got {shown(found)}.")
        if twice := [p.digest for i, p in enumerate(found) if p.digest in {q.digest for q in found[:i]}]:
            raise PluginError(f"{name} promotes each candidate once, got {twice[0]!r} twice.")
        return [Promotion(p.digest, self._samples("_promote", p.samples)) for p in found[:count]]

    def _samples(self, method: str, number: object) -> int:
        """Return a number of samples, if it is one."""
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not whole or not self.least <= int(cast(int, number)) <= self.samples:
            raise PluginError(
                f"{type(self).__name__}.{method} scores candidates on {self.least} to {self.samples} samples, a "
                f"whole number; got {shown(number)}."
            )
        return int(cast(int, number))

    def tell(self, trial: Trial) -> None:
        """Learn what came of a candidate; it may be replayed, and is told once for each of its rungs."""
        self._tell(trial)

    def exhausted(self) -> None:
        """Learn that no new candidate will come: who waits for others needn't any more; nothing by default."""

    def _setup(self, budget: float) -> None:
        """Check the settings and prepare; nothing by default."""

    @abstractmethod
    def _start(self) -> int:
        """Return the number of samples that the next new candidate is scored on."""

    @abstractmethod
    def _promote(self, count: int) -> list[Promotion]:
        """Return up to ``count`` candidates to promote, each once."""

    @abstractmethod
    def _tell(self, trial: Trial) -> None:
        """Learn from a trial; a failed one has an infinite loss."""


SCHEDULERS: Registry[Scheduler] = Registry(Scheduler, "tailorlib.schedulers")
