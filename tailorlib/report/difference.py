"""Two tailorings, or two recipes, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailorlib.report.names import clean, owner_text, plan_text
from tailorlib.tailoring import Tailoring

REMOVED = "removed"


@dataclass(frozen=True)
class Line:
    """One line of a comparison.

    Args:
        what: What is compared.
        first: What the first has.
        second: What the second has.
    """

    what: str
    first: str
    second: str

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return self.first == self.second


def tailoring_difference(first: Tailoring, second: Tailoring, num_layers: int | None = None) -> list[Line]:
    """Return what two tailorings make of each layer of the base, then the parts around the layers and the seed.

    A layer stands where its first source stands in the base: layers that one of them removes don't shift the rest.
    The seed is compared only where something is computed: otherwise it decides nothing.

    Args:
        first: A tailoring.
        second: Another one of the same family.
        num_layers: Number of the base's layers; as far as one of them reaches by default.
    """
    made = [_by_layer(t) for t in (first, second)]
    layers = max([num_layers or 0, *(1 + max(m) for m in made)])
    lines = [Line(f"layer {i}", *(" | ".join(m.get(i, [REMOVED])) for m in made)) for i in range(layers)]
    order = [[plan.sources[0].layer for plan in t.layers] for t in (first, second)]
    if any(o != sorted(o) for o in order):
        lines.append(Line("order", *(", ".join(map(str, o)) for o in order)))
    for name in first.parts:
        lines.append(Line(name, owner_text(first.parts[name]), owner_text(second.parts[name])))
    if not all(plan.is_selection for t in (first, second) for plan in t.layers):
        lines.append(Line("seed", str(first.seed), str(second.seed)))
    return lines


def recipe_difference(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return each setting in which recipes differ, with its value in each of them."""
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = sorted({key for settings in flat for key in settings})
    found = [(clean(key), [clean(settings.get(key, "–"), 200) for settings in flat]) for key in keys]
    return [(key, values) for key, values in found if len(set(values)) > 1]


def _by_layer(tailoring: Tailoring) -> dict[int, list[str]]:
    made: dict[int, list[str]] = {}
    for plan in tailoring.layers:
        made.setdefault(plan.sources[0].layer, []).append(plan_text(plan))
    return made


def _flat(data: Any, where: str = "") -> list[tuple[str, Any]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(data, Mapping):
        items = list(data.items())
    elif isinstance(data, list) and any(isinstance(item, Mapping | list) for item in data):
        items = list(enumerate(data))
    if not items:
        return [(where, data)]
    return [pair for key, item in items for pair in _flat(item, f"{where}.{key}" if where else str(key))]
