"""RemovalChoice: which layers (or blocks of layers) go, as one Subset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tailorlib import Distribution, Params, Subset
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError
from tailorlib_strategies.operations.removal import LayerRemoval

REMOVED = "removed"


class RemovalChoice:
    """Layers are removed: one parameter ``removed``, positions among those that may go.

    Args:
        removal: How many go, and which may; ``None`` for none.
        number: How many there are.
        what: What messages call them.
        exactly: Refuse a range of numbers.

    Raises:
        RecipeError: If the settings don't fit the number.
    """

    def __init__(
        self, removal: LayerRemoval | None, number: int, what: str = "layers", *, exactly: bool = True
    ) -> None:
        if exactly:
            exact(removal)
        self.number, self.what = number, what
        self.removable = () if removal is None else removal.removable(number)
        self.subset = Subset(0, 0) if removal is None else removal.subset(number)
        self._searched = removal is not None

    def parameters(self) -> Iterator[tuple[str, Distribution]]:
        """Yield the parameter, if there is one."""
        if self._searched:
            yield REMOVED, self.subset

    def active(self, params: Params) -> dict[str, ParamValue]:
        """Return what matters of an assignment."""
        return {REMOVED: params[REMOVED]} if self._searched else {}

    def kept(self, params: Params) -> list[int]:
        """Return what stays, ascending."""
        removed = params[REMOVED] if self._searched else ()
        assert isinstance(removed, tuple)
        gone = {self.removable[int(position)] for position in removed}
        return [i for i in range(self.number) if i not in gone]

    def encode(self, kept: Sequence[int]) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameter of what stays, and what is wrong with it."""
        wrong = []
        if sorted(set(kept)) != list(kept) or not set(kept) <= set(range(self.number)):
            wrong.append(f"its {self.what} {list(kept)} are not ascending numbers below {self.number}")
        removed = tuple(p for p, i in enumerate(self.removable) if i not in kept)
        if not self.subset.contains(removed) or len(kept) + len(removed) != self.number:
            sizes = f"{self.subset.low} to {self.subset.k}" if self.subset.low < self.subset.k else self.subset.k
            rule = f"{sizes} of {list(self.removable)} are removed" if self._searched else "none is removed"
            wrong.append(f"it keeps {len(kept)} {self.what}, where {rule} of {self.number}")
        return ({REMOVED: removed} if self._searched else {}), wrong


def exact(removal: LayerRemoval | None) -> None:
    """Refuse a range of numbers of layers to remove, in a space that needs an exact one.

    Raises:
        RecipeError: If the number is a range.
    """
    if removal is not None and removal.varies:
        raise RecipeError(
            "This search space removes an exact number of layers, got the range "
            f"{removal.count if removal.ratio is None else removal.ratio}. Give one number, or take PruningSpace."
        )
