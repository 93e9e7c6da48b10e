"""Optimizer: who proposes the next candidate.

A new optimizer is one class with two methods::

    class Greedy(Optimizer):
        def _ask(self):
            return self.space.sample(self.rng)

        def _tell(self, trial):
            ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from tailorlib.distributions import Params
from tailorlib.exceptions import PluginError
from tailorlib.registry import Registry
from tailorlib.search_space import SearchSpace
from tailorlib.seeding import numpy_generator
from tailorlib.trial import Trial


class Optimizer(ABC):
    """Proposes assignments (ask) and learns from evaluated ones (tell).

    ``__init__`` takes recipe hyperparameters only; what is known at run time comes with :meth:`setup`. Given
    the same seed and the same sequence of asks and tells an optimizer proposes the same candidates: a study
    resumes by replaying them.
    """

    supports: ClassVar[frozenset[str]] = frozenset({"conditional", "subset"})
    """Declared capabilities, of ``conditional``, ``subset``, ``batch`` (several asks before a tell)."""

    space: SearchSpace
    """The search space, after :meth:`setup`."""
    rng: np.random.Generator
    """The optimizer's own random numbers, after :meth:`setup`."""

    def setup(self, space: SearchSpace, seed: int) -> None:
        """Start a study.

        Args:
            space: The search space, already set up with its family's layout.
            seed: The study's seed.
        """
        self.space = space
        self.rng = numpy_generator(seed, "optimizer", type(self).__name__)
        self._setup(space, seed)

    def ask(self) -> Params:
        """Return the active parameters of the next candidate.

        Raises:
            PluginError: If the subclass proposes something outside the search space.
        """
        if not hasattr(self, "space"):
            raise PluginError(f"{type(self).__name__}.ask is called before setup(space, seed).")
        params = self.space.active(self.space.complete(self._ask()))
        self.space.check(params)
        return params

    def tell(self, trial: Trial) -> None:
        """Learn from a trial; it may be replayed, proposed by someone else, or failed (infinite loss)."""
        self.space.check(trial.params)
        self._tell(trial)

    def _setup(self, space: SearchSpace, seed: int) -> None:
        """Prepare for the space; nothing by default."""

    @abstractmethod
    def _ask(self) -> Params:
        """Propose an assignment; parameters that are left out take their defaults."""

    def _tell(self, trial: Trial) -> None:
        """Learn from a trial; nothing by default."""


OPTIMIZERS: Registry[Optimizer] = Registry(Optimizer, "tailorlib.optimizers")
