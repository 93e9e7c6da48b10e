"""What the built-in search spaces share: parameters declared once, and what lies outside named in full."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping

from tailorlib import Distribution, FamilyLayout, Params, SearchSpace, Tailoring
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError

SHOWN_FAULTS = 12
"""A tailoring of another space has one fault per layer: so many kinds are spelt out, the others counted."""


class Faults:
    """The ways in which a tailoring lies outside a space; the same one at many places is said once."""

    def __init__(self) -> None:
        self._where: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._where)

    def add(self, faults: Iterable[str], where: str = "") -> None:
        """Note faults, at one place or of the whole tailoring."""
        for fault in faults:
            self._where.setdefault(fault, []).extend([where] if where else [])

    def __str__(self) -> str:
        lines = [f"{', '.join(where)}: {fault}" if where else fault for fault, where in self._where.items()]
        more = len(lines) - SHOWN_FAULTS
        return "; ".join([*lines[:SHOWN_FAULTS], *([f"and {more} more"] if more > 0 else [])])


class DeclaredSpace(SearchSpace):
    """A search space that lists its parameters in :meth:`_parameters` and reads tailorings in :meth:`_read`."""

    def _setup(self, layout: FamilyLayout) -> None:
        self._arrange(layout)
        distributions: dict[str, Distribution] = {}
        for name, distribution in self._parameters():
            if name in distributions:
                raise RecipeError(
                    f"{type(self).__name__} needs distinct parameter names, got {name!r} twice. Rename the "
                    "candidate or group that is called like another part of such a name (an operation, "
                    "'operation', 'source')."
                )
            distributions[name] = distribution
        if not distributions:
            raise RecipeError(
                f"{type(self).__name__} needs something to search, got one single tailoring. Give it removal, or "
                "candidates with selection or merges."
            )
        self._distributions = distributions

    @abstractmethod
    def _arrange(self, layout: FamilyLayout) -> None:
        """Check the settings against the layout and precompute what the other methods need."""

    @abstractmethod
    def _parameters(self) -> Iterator[tuple[str, Distribution]]:
        """Yield every parameter, in a fixed order."""

    @abstractmethod
    def _read(self, tailoring: Tailoring, faults: Faults) -> dict[str, ParamValue]:
        """Return the parameters of a tailoring, and note in which ways it lies outside."""

    def distributions(self) -> Mapping[str, Distribution]:
        """Return every parameter of the space, in a fixed order."""
        self.layout  # noqa: B018  (raises before setup)
        return self._distributions

    def encode(self, tailoring: Tailoring) -> Params:
        """Return the active parameters of a tailoring.

        Raises:
            RecipeError: If the tailoring lies outside the space, naming every way in which it does.
        """
        faults = Faults()
        params = self._read(tailoring, faults)
        if faults:
            raise RecipeError(
                f"A tailoring given to a search lies in its space; got one outside: {faults}. Widen the search "
                "space, or mend the tailoring."
            )
        return self.active(params)
