"""OuterChoice: what gives the parts outside the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from tailorlib import Distribution, Params, Tailoring
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError
from tailorlib.tailoring import BASE, Owner
from tailorlib_strategies.search_spaces.merge_choice import MergeChoice

OuterPart = Literal["embeddings", "norm", "head"]
OUTER: tuple[OuterPart, ...] = ("embeddings", "norm", "head")


class OuterChoice:
    """A merge choice for each listed part, under ``embeddings.``, ``norm.`` and ``head.``; the rest is the base's.

    Args:
        setting: What messages call the list, such as ``"PruningSpace.outer"``.
        parts: The parts that are searched.
        choice: What each can be made of.

    Raises:
        RecipeError: If a part is unknown or named twice.
    """

    def __init__(self, setting: str, parts: Sequence[OuterPart], choice: MergeChoice) -> None:
        if len(set(parts)) != len(parts) or not set(parts) <= set(OUTER):
            raise RecipeError(f"{setting} names some of {', '.join(OUTER)}, each once; got {', '.join(parts)}.")
        self.parts, self.choice = tuple(part for part in OUTER if part in parts), choice

    def parameters(self) -> Iterator[tuple[str, Distribution]]:
        """Yield every parameter, in a fixed order."""
        for part in self.parts:
            for name, distribution in self.choice.parameters():
                yield f"{part}.{name}", distribution

    def active(self, params: Params) -> dict[str, ParamValue]:
        """Return what matters of an assignment."""
        return {k: v for part in self.parts for k, v in self.choice.active(params, f"{part}.").items()}

    def decode(self, params: Params) -> dict[str, Owner]:
        """Return the parts that are not the base's by default, as arguments of a tailoring."""
        return {part: self.choice.decode(params, f"{part}.").part() for part in self.parts}

    def encode(self, tailoring: Tailoring) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters of a tailoring's parts, and what is wrong with them."""
        params: dict[str, ParamValue] = {}
        wrong = []
        for part, owner in tailoring.parts.items():
            if part in self.parts:
                named, faults = self.choice.encode_part(owner, f"{part}.")
                params |= named
                wrong += [f"{part}: {fault}" for fault in faults]
            elif owner != BASE:
                wrong.append(f"its {part} are {owner}'s, not the base's")
        return params, wrong

    def count(self) -> int:
        """Return the number of ways to make the parts."""
        return int(self.choice.count() ** len(self.parts))

    def continuous(self) -> int:
        """Return the largest number of continuous parameters that are active at once."""
        return self.choice.continuous() * len(self.parts)
