"""What an import gives: a tailoring, and the models that its names stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from tailorlib.tailoring import BASE, Tailoring


@dataclass(frozen=True)
class Imported:
    """A tailoring made elsewhere.

    Args:
        tailoring: The tailoring.
        base: Reference of the model that is called ``base`` in it.
        candidates: References of the other models, by the names that they got.
        notes: What was read in another way than written, or left out; one sentence each.
    """

    tailoring: Tailoring
    base: str
    candidates: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def recipe(self) -> str:
        """Return the YAML text of a recipe's ``family`` section with these models."""
        settings = {"base": self.base, "candidates": dict(self.candidates)}
        data = {"family": {"class_path": "ModelFamily", "init_args": settings}}
        return yaml.safe_dump(data, sort_keys=False, width=110, allow_unicode=True)


def family_names(base: str, others: Sequence[str]) -> dict[str, str]:
    """Return a family name for each reference: ``base``, and the last part of the other references.

    Args:
        base: The base's reference.
        others: The other references, each once.
    """
    names = {base: BASE}
    for reference in others:
        own = reference.partition("+")[2] or reference  # of an adapter, its own name
        location = re.split(r"[#@]", own)[0].rstrip("/\\")
        last = re.sub(r"[^\w.-]+", "-", re.split(r"[/\\]", location)[-1]).strip("-.") or "model"
        name, number = last, 1
        while name in names.values():
            number += 1
            name = f"{last}-{number}"
        names[reference] = name
    return names
