"""Contents: what a study's scores depend on beside its recipe, known by digests of what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tailorlib.tailoring import BASE, Tailoring, models_of

DIGITS = 32
"""Hexadecimal digits of a digest: 128 bits of SHA-256."""


@dataclass(frozen=True)
class Contents:
    """Digests of everything that trials are made of and that a recipe only names.

    Args:
        models: For each model of the family, by name: what it is read from (``weights``, ``config``,
            ``tokenizer``, ``adapter``, ``code``, ...), and a digest of it.
        data: Texts, tasks and files that a study reads, by where they stand in it, such as ``fitness.text``.
        plugins: Python sources that no installed copy of tailorlib has, by the name of their module.
    """

    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        models = {name: dict(parts) for name, parts in self.models.items()}
        return {"models": models, "data": dict(self.data), "plugins": dict(self.plugins)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Contents:
        """Rebuild contents from :meth:`to_dict`.

        Raises:
            KeyError: If a key is missing.
            TypeError: If a value is of the wrong type.
            AttributeError: The same.
        """
        models = {str(name): _texts(parts) for name, parts in data["models"].items()}
        return cls(models, _texts(data["data"]), _texts(data["plugins"]))

    def changes(self, now: Contents) -> Changes:
        """Compare with what is there now; what only ``now`` has of data and plugins is used by no trial."""
        names = {*self.models, *now.models}
        models = {n: _different(self.models.get(n, {}), now.models.get(n, {})) for n in sorted(names)}
        return Changes(
            {name: parts for name, parts in models.items() if parts},
            tuple(name for name, digest in self.data.items() if now.data.get(name) != digest),
            tuple(name for name, digest in self.plugins.items() if now.plugins.get(name) != digest),
        )


@dataclass(frozen=True)
class Changes:
    """What differs between two :class:`Contents`.

    Args:
        models: What differs of each model that differs.
        data: Which data differs.
        plugins: Which plugins differ.
    """

    models: Mapping[str, Collection[str]] = field(default_factory=dict)
    data: Collection[str] = ()
    plugins: Collection[str] = ()

    def __bool__(self) -> bool:
        return bool(self.models or self.data or self.plugins)

    def __str__(self) -> str:
        """Name every difference, for messages."""
        found = [f"the {part} of {_model(name)}" for name, parts in self.models.items() for part in parts]
        found += [f"the data of {name}" for name in self.data]
        found += [f"the plugin {name}" for name in self.plugins]
        return "; ".join(found)

    def touches(self, tailoring: Tailoring) -> bool:
        """Say whether a score of this tailoring could be another one now."""
        everything = bool(self.data or self.plugins or BASE in self.models)
        return everything or not used_models(tailoring).isdisjoint(self.models)


def used_models(tailoring: Tailoring) -> set[str]:
    """Return the names of the models that a tailoring is made of; the base gives config and tokenizer to all."""
    drawn = {source.model for plan in tailoring.layers for source in plan.drawn}
    return {BASE, *drawn, *(model for owner in tailoring.parts.values() for model in models_of(owner))}


def digest_of(parts: Iterable[str | bytes]) -> str:
    """Return a digest of texts in their order; no two lists of texts have the same one.

    Args:
        parts: The texts. Half a surrogate pair counts as what it is.
    """
    found = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", errors="surrogatepass") if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "big"))
        found.update(content)
    return found.hexdigest()[:DIGITS]


def _texts(data: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in data.items()}


def _different(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name in sorted({*old, *new}) if old.get(name) != new.get(name))


def _model(name: str) -> str:
    return "the base" if name == BASE else f"the variant {name!r}"
