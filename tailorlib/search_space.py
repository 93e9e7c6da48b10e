"""SearchSpace: which tailorings can be reached, and how an optimizer names them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tailorlib.distributions import Distribution, Params
from tailorlib.exceptions import PluginError, RecipeError, did_you_mean, shown
from tailorlib.guards import Check, Guarded, gives, gives_all
from tailorlib.operation import MergeOperation
from tailorlib.registry import Registry
from tailorlib.tailoring import BASE, Tailoring


@dataclass(frozen=True)
class FamilyLayout:
    """What a search space needs to know of a model family; no weights.

    Args:
        candidates: Names of the candidate models, in recipe order; the base is called ``"base"``.
        num_layers: Number of decoder layers, the same in every model.
        layer_types: Type of each layer (such as ``"full_attention"``); layers of one type can replace each other.
        branches: Filters that the names of a layer's attention and MLP tensors contain, and no others.
    """

    candidates: tuple[str, ...]
    num_layers: int
    layer_types: tuple[str, ...]
    branches: tuple[str, str] = ("self_attn", "mlp")

    def __post_init__(self) -> None:
        if len(self.layer_types) != self.num_layers:
            raise ValueError(f"A layout of {self.num_layers} layers got {len(self.layer_types)} layer types.")
        if BASE in self.candidates:
            raise RecipeError("No candidate may be called 'base': it is the base model's name. Rename it.")

    @property
    def models(self) -> tuple[str, ...]:
        """The base and the candidates."""
        return (BASE, *self.candidates)


@dataclass(frozen=True)
class SpaceSize:
    """The size of a search space.

    Args:
        discrete: Number of distinct tailorings, each continuous hyperparameter counted as one value.
        continuous: The largest number of continuous hyperparameters that are active at once.
    """

    discrete: int
    continuous: int


def _parameters(space: SearchSpace, found: Any) -> Any:
    if found is not None and found is space._checked:  # the same mapping as before
        return found
    bad = not isinstance(found, Mapping) or [k for k, d in found.items() if not isinstance(d, Distribution)]
    if bad:
        raise PluginError(
            f"{type(space).__name__}.{{method}} gives a mapping of names to Float, Integer, Categorical or "
            f"Subset, got {shown(found if bad is True else {bad[0]: found[bad[0]]})}."
        )
    space._checked = found
    return found


class SearchSpace(Guarded, ABC):
    """A set of tailorings, described by named distributions.

    ``__init__`` takes recipe settings; :meth:`setup` gives the family's layout. Parameters can be conditional:
    those that :meth:`active` leaves out don't change the decoded tailoring, and two assignments with equal
    active parts are one candidate.
    """

    _layout: FamilyLayout | None = None
    _checked: object = None
    _guards: ClassVar[Mapping[str, Check]] = {
        "distributions": _parameters,
        "active": gives(Mapping, "a mapping of parameters"),
        "decode": gives(Tailoring, "a Tailoring"),
        "encode": gives(Mapping, "a mapping of parameters"),
        "size": gives(SpaceSize, "a SpaceSize"),
        "operations": gives_all(MergeOperation, "merge operations"),
    }

    @property
    def layout(self) -> FamilyLayout:
        """The family's layout, after :meth:`setup`."""
        if self._layout is None:
            raise PluginError(f"{type(self).__name__} is used before setup(layout).")
        return self._layout

    def setup(self, layout: FamilyLayout) -> None:
        """Tell the space which family it cuts from.

        Raises:
            RecipeError: If the settings don't fit the family.
        """
        self._layout = layout
        self._setup(layout)

    def _setup(self, layout: FamilyLayout) -> None:
        """Check the settings against the layout and precompute; nothing by default."""

    @abstractmethod
    def distributions(self) -> Mapping[str, Distribution]:
        """Return every parameter of the space, in a fixed order."""

    @abstractmethod
    def active(self, params: Params) -> Params:
        """Return the part of a complete assignment that matters: the canonical name of the candidate."""

    @abstractmethod
    def decode(self, params: Params, *, seed: int = 0) -> Tailoring:
        """Return the tailoring that an assignment means; inactive parameters may be missing."""

    @abstractmethod
    def encode(self, tailoring: Tailoring) -> Params:
        """Return the active parameters of a tailoring.

        Raises:
            RecipeError: If the tailoring lies outside the space.
        """

    @abstractmethod
    def size(self) -> SpaceSize:
        """Return how large the space is."""

    def operations(self) -> tuple[MergeOperation, ...]:
        """Return the merge operations that its tailorings can use, after :meth:`setup`; none by default.

        What a merge asks of its sources besides their weights (its ``statistic``) is gathered before the search.
        """
        return ()

    @property
    def most_removed(self) -> int:
        """The largest number of layers that lack in a row in a tailoring, after :meth:`setup`."""
        return self.layout.num_layers - 1

    def complete(self, params: Params) -> Params:
        """Fill in parameters that an assignment leaves open with their distributions' defaults."""
        return {name: params.get(name, d.default) for name, d in self.distributions().items()}

    def sample(self, rng: np.random.Generator) -> Params:
        """Draw an assignment at random and return its active part."""
        return self.active({name: d.sample(rng) for name, d in self.distributions().items()})

    def check(self, params: Params) -> None:
        """Check that an assignment names only parameters of the space, within their distributions.

        Raises:
            PluginError: Otherwise, naming every parameter that is off.
        """
        if faults := self.faults(params):
            raise PluginError(f"An assignment lies in its search space; got {'; '.join(faults[:5])}.")

    def faults(self, params: Params) -> list[str]:
        """Return what is wrong with an assignment: unknown parameters, and values outside of their ranges."""
        known = self.distributions()
        found = []
        for name, value in params.items():
            if name not in known:
                found.append(
                    f"{shown(name)} is no parameter of the space.{did_you_mean(str(name), known)}".rstrip(".")
                )
            elif not known[name].contains(value):
                found.append(f"{name}={shown(value)} is not {known[name].rule}")
        return found


SEARCH_SPACES: Registry[SearchSpace] = Registry(SearchSpace, "tailorlib.search_spaces")
