"""Tailoring: what a candidate model is, free of any search space.

A tailoring lists the kept layers from bottom to top: where each comes from and how its sources become one
layer. Stitching, export, reports and the journal need nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError

BASE = "base"
"""The name of the base model in every family."""
SELECT = "LayerSelection"
"""The operation of a layer taken as it is from its only source."""
FORMAT_VERSION = 1


@dataclass(frozen=True, order=True)
class LayerSource:
    """One decoder layer of one model of the family: ``model`` is a family name, ``layer`` counts from 0."""

    model: str
    layer: int

    def __str__(self) -> str:
        return f"{self.model}:{self.layer}"


@dataclass(frozen=True)
class LayerPlan:
    """How one layer of the tailored model is built.

    Args:
        sources: The layers it is made from. One source is taken as it is; more are merged.
        operation: Name of the operation that makes one layer of them.
        params: The operation's hyperparameters, complete: the result depends on nothing else.
        base: The layer against which task vectors are taken (paper: theta_base), if the operation needs one.
    """

    sources: tuple[LayerSource, ...]
    operation: str = SELECT
    params: tuple[tuple[str, ParamValue], ...] = ()
    base: LayerSource | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise RecipeError("A layer plan needs at least one source, got none.")
        if len(set(self.sources)) != len(self.sources):
            raise RecipeError(
                f"A layer plan takes each source once, got {', '.join(map(str, self.sources))}. Use a weight "
                "to let one source count more."
            )
        if self.operation == SELECT and len(self.sources) > 1:
            raise RecipeError(
                f"{SELECT} takes exactly one source, got {', '.join(map(str, self.sources))}. Name a merge "
                "operation, or keep one source."
            )
        object.__setattr__(self, "params", tuple(sorted(self.params)))

    @property
    def is_selection(self) -> bool:
        """Whether the layer is taken as it is, without computing anything."""
        return self.operation == SELECT

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for YAML and JSON; what is default is left out."""
        data: dict[str, Any] = {"sources": [str(s) for s in self.sources]}
        if self.operation != SELECT:
            data["operation"] = self.operation
        if self.params:
            data["params"] = {k: list(v) if isinstance(v, tuple) else v for k, v in self.params}
        if self.base is not None:
            data["base"] = str(self.base)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerPlan:
        """Rebuild a plan from :meth:`to_dict`.

        Raises:
            RecipeError: If a key is unknown or a value is malformed.
        """
        _check_keys(data, {"sources", "operation", "params", "base"}, "layer plan")
        sources, params = data.get("sources"), data.get("params", {})
        if not isinstance(sources, list) or not isinstance(params, Mapping):
            raise RecipeError(f"A layer plan has a list of sources and a mapping of params, got {dict(data)}.")
        return cls(
            sources=tuple(_parse_source(s) for s in sources),
            operation=str(data.get("operation", SELECT)),
            params=tuple((str(k), tuple(v) if isinstance(v, list) else v) for k, v in params.items()),
            base=_parse_source(data["base"]) if data.get("base") is not None else None,
        )

    @cached_property
    def digest(self) -> str:
        """A stable name of the plan's content (SHA-256, hexadecimal)."""
        return _digest(self.to_dict())


@dataclass(frozen=True)
class Tailoring:
    """A candidate model: its layers from bottom to top, and who owns the parts around them.

    Args:
        layers: One plan per kept layer.
        embeddings: Model that gives the token embeddings (and position embeddings, if any).
        norm: Model that gives the final norm.
        head: Model that gives the language-model head; with tied embeddings it follows ``embeddings``.
        seed: Seed of every random mask; a mask depends on (seed, model, tensor name) alone.
    """

    layers: tuple[LayerPlan, ...]
    embeddings: str = BASE
    norm: str = BASE
    head: str = BASE
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.layers:
            raise RecipeError("A tailoring keeps at least one layer, got none. Remove fewer layers.")

    @classmethod
    def whole(cls, model: str, num_layers: int, *, without: Iterable[int] = ()) -> Tailoring:
        """Return one model of the family as it is, less the layers in ``without``."""
        dropped = frozenset(without)
        kept = (i for i in range(num_layers) if i not in dropped)
        layers = tuple(LayerPlan((LayerSource(model, i),)) for i in kept)
        return cls(layers, embeddings=model, norm=model, head=model)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models that the tailoring draws on, sorted."""
        plans = {s.model for plan in self.layers for s in (*plan.sources, *filter(None, [plan.base]))}
        return tuple(sorted(plans | {self.embeddings, self.norm, self.head}))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for YAML and JSON."""
        return {
            "tailoring": FORMAT_VERSION,
            "embeddings": self.embeddings,
            "norm": self.norm,
            "head": self.head,
            "seed": self.seed,
            "layers": [plan.to_dict() for plan in self.layers],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tailoring:
        """Rebuild a tailoring from :meth:`to_dict`.

        Raises:
            RecipeError: If a key is unknown, a value is malformed, or the format is of another version.
        """
        _check_keys(data, {"tailoring", "embeddings", "norm", "head", "seed", "layers"}, "tailoring")
        if data.get("tailoring") != FORMAT_VERSION:
            raise RecipeError(
                f"A tailoring file says 'tailoring: {FORMAT_VERSION}', got {data.get('tailoring')!r}. It was "
                "written by another version of tailorlib, or is no tailoring."
            )
        layers, seed = data.get("layers"), data.get("seed", 0)
        if not isinstance(layers, list) or not all(isinstance(p, Mapping) for p in layers):
            raise RecipeError(f"A tailoring has a list of layer plans, got {type(layers).__name__}.")
        if not isinstance(seed, int):
            raise RecipeError(f"A tailoring's seed is a whole number, got {seed!r}.")
        return cls(
            layers=tuple(LayerPlan.from_dict(p) for p in layers),
            embeddings=str(data.get("embeddings", BASE)),
            norm=str(data.get("norm", BASE)),
            head=str(data.get("head", BASE)),
            seed=seed,
        )

    def to_yaml(self) -> str:
        """Return the YAML text of the tailoring."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=110)

    @classmethod
    def from_yaml(cls, text: str) -> Tailoring:
        """Read a tailoring from YAML text.

        Raises:
            RecipeError: If the text is not YAML, or not a tailoring.
        """
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"A tailoring file is YAML; it can't be read: {error}") from error
        if not isinstance(data, Mapping):
            raise RecipeError(f"A tailoring file holds a mapping, got {type(data).__name__}.")
        return cls.from_dict(data)

    @classmethod
    def load(cls, path: str | Path) -> Tailoring:
        """Read a tailoring from a YAML file.

        Raises:
            RecipeError: If the file can't be read, or is no tailoring.
        """
        try:
            return cls.from_yaml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"The tailoring file {str(path)!r} can't be read: {error}.") from error

    @cached_property
    def digest(self) -> str:
        """A stable name of the candidate (SHA-256, hexadecimal): equal digests are equal models."""
        return _digest(self.to_dict())


def _parse_source(text: object) -> LayerSource:
    model, _, layer = str(text).rpartition(":")
    if not model or not layer.isdecimal():
        raise RecipeError(f"A layer source is written 'model:layer', such as 'base:3', got {text!r}.")
    return LayerSource(model, int(layer))


def _check_keys(data: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(set(map(str, data)) - known)
    if unknown:
        raise RecipeError(f"A {what} has the keys {', '.join(sorted(known))}; got also {', '.join(unknown)}.")


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
