from __future__ import annotations

import pytest
from tailorlib_strategies.operations import LayerRemoval

from tailorlib import Subset
from tailorlib.exceptions import RecipeError


@pytest.mark.parametrize(
    ("ratio", "num_layers", "removed"),
    [(0.25, 32, 8), (0.271, 32, 9), (0.246, 40, 10), (0.07, 100, 7), (0.1, 30, 3), (0.0, 12, 0), (0.01, 12, 1)],
)
def test_the_ratio_is_rounded_up_but_not_by_a_float_error(ratio: float, num_layers: int, removed: int) -> None:
    assert LayerRemoval(ratio).subset(num_layers) == Subset(num_layers, removed)


def test_protected_layers_are_not_removable() -> None:
    removal = LayerRemoval(count=2, protect=[0, -1])
    assert removal.removable(5) == (1, 2, 3)
    assert removal.subset(5) == Subset(3, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerRemoval(), "either a ratio or a count"),
        (lambda: LayerRemoval(0.2, 3), "either a ratio or a count"),
        (lambda: LayerRemoval(25.0), "0.25"),
        (lambda: LayerRemoval(-0.1), r"\[0, 1\)"),
        (lambda: LayerRemoval(count=-1), "0 or more"),
        (lambda: LayerRemoval(count=4).subset(4), "at least one layer"),
        (lambda: LayerRemoval(0.99).subset(4), "at least one layer"),
        (lambda: LayerRemoval(count=1, protect=[4]).subset(4), r"\[4\]"),
        (lambda: LayerRemoval(count=3, protect=[0, 1]).subset(4), "got 2 for 3"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
