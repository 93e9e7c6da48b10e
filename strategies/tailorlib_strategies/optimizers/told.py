"""What adapters of Bayesian optimisation libraries share: a memory of trials, first steps, optional packages."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tailorlib import Params, SearchSpace, Trial
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError
from tailorlib_strategies.optimizers.variation import Variation

Key = frozenset[tuple[str, ParamValue]]
Losses = tuple[float, ...]
FRESH_TRIES = 200
"""How many steps are taken away from known candidates before the space counts as exhausted."""


class OptionalPackage:
    """A package that an extra of tailorlib installs, imported when it is first used.

    Args:
        plugin: Who needs it.
        name: Its name.
        extra: The extra.

    Raises:
        RecipeError: If it is not installed, with the command that installs it.
    """

    def __init__(self, plugin: str, name: str, extra: str) -> None:
        self._message = (
            f"{plugin} needs the package {name}, which is not there. Run: pip install 'tailorlib[{extra}]'"
        )
        if sys.modules.get(name, importlib) is None or importlib.util.find_spec(name) is None:
            raise RecipeError(self._message)

    def module(self, name: str) -> Any:
        """Import a module of it, or of what comes with it.

        Raises:
            RecipeError: If that fails.
        """
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise RecipeError(f"{self._message} ({error})") from error


def number_checked(name: str, value: int, least: int) -> int:
    """Return a setting that is a whole number of at least ``least``.

    Raises:
        RecipeError: Otherwise.
    """
    if value < least:
        raise RecipeError(f"{name} is at least {least}, got {value}.")
    return value


class Told:
    """The latest losses of every candidate that was told, by its active parameters, in the order of first tells.

    A failed candidate counts as the worst loss that was told, for each objective: a model learns to stay away,
    and no outlier bends its scale. While nothing has worked, failed ones have no losses yet.
    """

    def __init__(self) -> None:
        self._latest: dict[Key, Losses | None] = {}
        self.params: dict[Key, Params] = {}
        """The active parameters of each candidate."""

    def __contains__(self, key: Key) -> bool:
        return key in self._latest

    def note(self, trial: Trial, number: int) -> Key:
        """Keep a trial's losses, in place of earlier ones of the same candidate.

        Args:
            trial: The trial.
            number: How many objectives there are.
        """
        losses = trial.losses if number > 1 else (trial.loss,)
        worked = trial.fitness is not None and all(map(math.isfinite, losses))
        key = frozenset(trial.params.items())
        self._latest[key] = losses if worked else None
        self.params[key] = dict(trial.params)
        return key

    def losses(self) -> dict[Key, Losses]:
        """Return every candidate's losses; none at all while nothing has worked."""
        finite = [losses for losses in self._latest.values() if losses is not None]
        if not finite:
            return {}
        worst = tuple(max(column) for column in zip(*finite, strict=True))
        return {key: worst if losses is None else losses for key, losses in self._latest.items()}

    def worked(self) -> dict[Key, Losses]:
        """Return the losses of the candidates that have not failed."""
        return {key: losses for key, losses in self._latest.items() if losses is not None}

    def front(self) -> list[Key]:
        """Return the candidates that no other is better than in every objective; the best where there is one."""
        worked = self.worked()
        keys, table = list(worked), np.array(list(worked.values()))
        if not keys:
            return []
        if table.shape[1] == 1:
            return [keys[int(np.argmin(table[:, 0]))]]
        at_most, less = table[:, None, :] <= table[None, :, :], table[:, None, :] < table[None, :, :]
        dominated: list[bool] = np.any(at_most.all(2) & less.any(2), axis=0).tolist()
        return [key for key, off in zip(keys, dominated, strict=True) if not off]


class Steps:
    """Steps from good candidates to near ones, for the trials before a model is worth asking.

    Args:
        space: The search space, set up.
        told: What was told.
        rng: Draws the steps.
        most: Largest number of steps to a first candidate.
    """

    def __init__(self, space: SearchSpace, told: Told, rng: np.random.Generator, most: int = 4) -> None:
        self._told, self._rng, self._most, self._space = told, rng, most, space
        self.variation = Variation(space, swap=0.35, nudge=0.25)

    def near_best(self) -> Params:
        """Return a few steps from one of the best candidates; a random draw while nothing has worked."""
        front = self._told.front()
        if not front:
            return self._space.sample(self._rng)
        start = self._told.params[front[int(self._rng.integers(len(front)))]]
        return self.away(start, 1 + int(self._rng.integers(self._most)))

    def away(self, params: Params, steps: int) -> Params:
        """Return active parameters some steps away."""
        genome = self.variation.genome(params)
        for _ in range(steps):
            self.variation.step(genome, self._rng)
        return self._space.active(genome)

    def fresh(self, params: Params, known: Callable[[Key], bool]) -> Params:
        """Return the parameters, or near ones if they are known; known ones where the space seems exhausted."""
        for attempt in range(FRESH_TRIES):
            if not known(frozenset(params.items())):
                break
            params = self.away(params, 1 + attempt // 20)
        return params
