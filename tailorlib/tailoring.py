"""Tailoring: what a candidate model is, free of any search space.

A tailoring lists the kept layers from bottom to top: where each comes from and how its sources become one
layer. Stitching, export, reports and the journal need nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tailorlib.bounded import check_size, load_yaml, read_text
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError, shown

BASE = "base"
"""The name of the base model in every family."""
SELECT = "LayerSelection"
"""The operation of a layer taken as it is from its only source."""
FORMAT_VERSION = 1
_TERM = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}-[0-9a-f]{8,64}/[0-9A-Za-z]{1,64}(-[0-9A-Za-z]{1,64}){0,3}")
"""Names of terms: they are paths of files, too, so no more than this may stand in them."""


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
        attention_scale: Factor of what the attention adds to the residual stream; folded into weights.
        mlp_scale: Factor of what the MLP adds to the residual stream; folded into weights.
        parts: Plans for parts of the layer, by filter: a tensor whose name inside the layer contains a filter,
            such as ``self_attn``, is made by that plan instead. The first filter that matches counts.
        terms: What is added to single tensors after they are merged and scaled, such as a bridge over a gap: the
            name of a stored term, by the tensor's name inside the layer (``*`` stands for a number). The term's
            name says what it was computed from: equal names are equal terms.
    """

    sources: tuple[LayerSource, ...]
    operation: str = SELECT
    params: tuple[tuple[str, ParamValue], ...] = ()
    base: LayerSource | None = None
    attention_scale: float = 1.0
    mlp_scale: float = 1.0
    parts: tuple[tuple[str, LayerPlan], ...] = ()
    terms: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check_sources(self.sources, self.operation, "layer")
        _check_finite(self.params)
        for name in ("attention_scale", "mlp_scale"):
            if not math.isfinite(getattr(self, name)):
                raise RecipeError(f"A layer plan's {name} is a finite number, got {getattr(self, name)}.")
        for name, part in self.parts:
            if not name or part.parts or part.is_scaled or part.terms:
                raise RecipeError(
                    f"A part of a layer plan has a filter, sources and an operation, got {name!r}: "
                    f"{part.to_dict()}. Give parts, residual scales and terms to the layer's own plan."
                )
        if len({name for name, _ in self.parts}) != len(self.parts):
            raise RecipeError(f"A layer plan names each part once, got {[name for name, _ in self.parts]}.")
        for suffix, term in self.terms:
            if not suffix or not _TERM.fullmatch(term):
                raise RecipeError(
                    "A term of a layer plan is named by a tensor of the layer, and is written 'KIND-DIGEST/NAME', "
                    f"such as 'Bridge-0a1b2c3d4e5f6071/11-18'; got {shown(suffix)}: {shown(term)}."
                )
        if len({suffix for suffix, _ in self.terms}) != len(self.terms):
            raise RecipeError(f"A layer plan adds one term to a tensor, got {[name for name, _ in self.terms]}.")
        object.__setattr__(self, "params", tuple(sorted(self.params)))
        object.__setattr__(self, "terms", tuple(sorted(self.terms)))

    @property
    def is_selection(self) -> bool:
        """Whether the layer is taken as it is, without computing anything."""
        return self.operation == SELECT and not (self.parts or self.is_scaled or self.terms)

    @property
    def is_scaled(self) -> bool:
        """Whether a branch of the layer is scaled."""
        return self.attention_scale != 1 or self.mlp_scale != 1

    @property
    def plans(self) -> tuple[LayerPlan, ...]:
        """The plan itself and those of its parts."""
        return (self, *(part for _, part in self.parts))

    @property
    def drawn(self) -> tuple[LayerSource, ...]:
        """Every layer that the plan reads: sources and bases, its parts' too; each once."""
        read = (s for plan in self.plans for s in (*plan.sources, *([plan.base] if plan.base is not None else [])))
        return tuple(dict.fromkeys(read))

    def term_of(self, suffix: str) -> str | None:
        """Return the name of what is added to a tensor, given the tensor's name inside the layer."""
        if not self.terms:
            return None
        named = dict(self.terms)
        return named.get(suffix) or named.get(any_number(suffix))

    @property
    def term_texts(self) -> tuple[str, ...]:
        """What is added to its tensors, in words: kind and name of each term, such as ``"Bridge 11-18"``."""
        found = (f"{term.partition('-')[0]} {term.partition('/')[2]}" for _, term in self.terms)
        return tuple(dict.fromkeys(found))

    def plan_of(self, suffix: str) -> LayerPlan:
        """Return the plan that makes a tensor, given the tensor's name inside the layer."""
        return next((part for name, part in self.parts if name in suffix), self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for YAML and JSON; what is default is left out."""
        data: dict[str, Any] = {"sources": [str(s) for s in self.sources], **_operation_dict(self)}
        if self.base is not None:
            data["base"] = str(self.base)
        data |= {n: getattr(self, n) for n in ("attention_scale", "mlp_scale") if getattr(self, n) != 1}
        if self.parts:
            data["parts"] = {name: part.to_dict() for name, part in self.parts}
        if self.terms:
            data["terms"] = dict(self.terms)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerPlan:
        """Rebuild a plan from :meth:`to_dict`.

        Raises:
            RecipeError: If a key is unknown or a value is malformed.
        """
        return cls._from_dict(data, depth=0)

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any], depth: int) -> LayerPlan:
        known = {"sources", "operation", "params", "base", "attention_scale", "mlp_scale", "parts", "terms"}
        _check_keys(data, known, "layer plan")
        sources, parts, terms = data.get("sources"), data.get("parts", {}), data.get("terms", {})
        if not isinstance(sources, list):
            raise RecipeError(f"A layer plan has a list of sources, got {shown(data)}.")
        if not isinstance(parts, Mapping) or not all(
            isinstance(name, str) and isinstance(part, Mapping) for name, part in parts.items()
        ):
            raise RecipeError(f"The parts of a layer plan are plans by filter, got {shown(parts)}.")
        if parts and depth:  # also what ends a mapping that contains itself
            raise RecipeError("A part of a layer plan has no parts of its own. List all filters in one mapping.")
        if not isinstance(terms, Mapping) or not all(isinstance(t, str) for pair in terms.items() for t in pair):
            raise RecipeError(f"The terms of a layer plan are names by tensor, got {shown(terms)}.")
        operation, params = _parse_operation(data)
        return cls(
            sources=tuple(_parse_source(s) for s in sources),
            operation=operation,
            params=params,
            base=_parse_source(data["base"]) if data.get("base") is not None else None,
            attention_scale=_parse_number(data, "attention_scale"),
            mlp_scale=_parse_number(data, "mlp_scale"),
            parts=tuple((name, cls._from_dict(part, depth + 1)) for name, part in parts.items()),
            terms=tuple(terms.items()),
        )

    @cached_property
    def digest(self) -> str:
        """A stable name of the plan's content (SHA-256, hexadecimal)."""
        return _digest(self.to_dict())


@dataclass(frozen=True)
class PartPlan:
    """How embeddings, final norm or head are merged of several models.

    Args:
        models: The models it is made from; a part that is one model's own is written as that model's name.
        operation: Name of the operation that makes one part of them.
        params: The operation's hyperparameters, complete.
        base: The model against which task vectors are taken, if the operation needs one.
    """

    models: tuple[str, ...]
    operation: str
    params: tuple[tuple[str, ParamValue], ...] = ()
    base: str | None = None

    def __post_init__(self) -> None:
        if self.operation == SELECT:
            raise RecipeError(
                f"A merged part has an operation, got {list(self.models)} alone. Write the one model's name."
            )
        _check_sources(self.models, self.operation, "part")
        _check_finite(self.params)
        object.__setattr__(self, "params", tuple(sorted(self.params)))

    def __str__(self) -> str:
        return f"{self.operation} of {', '.join(self.models)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for YAML and JSON."""
        data = {"models": list(self.models), **_operation_dict(self)}
        return data if self.base is None else {**data, "base": self.base}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PartPlan:
        """Rebuild a plan from :meth:`to_dict`.

        Raises:
            RecipeError: If a key is unknown or a value is malformed.
        """
        _check_keys(data, {"models", "operation", "params", "base"}, "merged part")
        models = data.get("models")
        if not isinstance(models, list):
            raise RecipeError(f"A merged part has a list of models, got {shown(data)}.")
        operation, params = _parse_operation(data)
        base = None if data.get("base") is None else _parse_model(data["base"])
        return cls(tuple(map(_parse_model, models)), operation, params, base)


Owner = str | PartPlan
"""What gives a part outside the layers: one model of the family, or a merge of several."""


@dataclass(frozen=True)
class Tailoring:
    """A candidate model: its layers from bottom to top, and who owns the parts around them.

    Args:
        layers: One plan per kept layer.
        embeddings: What gives the token embeddings (and position embeddings, if any): a model, or a merge.
        norm: What gives the final norm.
        head: What gives the language-model head; with tied embeddings it follows ``embeddings``.
        seed: Seed of every random mask; a mask depends on (seed, model, tensor name) alone.
    """

    layers: tuple[LayerPlan, ...]
    embeddings: Owner = BASE
    norm: Owner = BASE
    head: Owner = BASE
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
        names = {source.model for plan in self.layers for source in plan.drawn}
        return tuple(sorted(names | {name for part in self.parts.values() for name in models_of(part)}))

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of all terms that are added to tensors of its layers, sorted."""
        return tuple(sorted({term for plan in self.layers for _, term in plan.terms}))

    @property
    def bare(self) -> Tailoring:
        """The same without terms: what a search space knows of it."""
        return replace(self, layers=tuple(replace(plan, terms=()) for plan in self.layers)) if self.terms else self

    @property
    def parts(self) -> dict[str, Owner]:
        """What gives the parts outside the layers: ``embeddings``, ``norm`` and ``head``."""
        return {"embeddings": self.embeddings, "norm": self.norm, "head": self.head}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for YAML and JSON."""
        return {
            "tailoring": FORMAT_VERSION,
            **{n: p.to_dict() if isinstance(p, PartPlan) else p for n, p in self.parts.items()},
            "seed": self.seed,
            "layers": [plan.to_dict() for plan in self.layers],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tailoring:
        """Rebuild a tailoring from :meth:`to_dict`.

        Raises:
            RecipeError: If a key is unknown, a value is malformed, or the format is of another version.
        """
        if isinstance(data, Mapping) and {"family", "search_space"} <= set(data):
            raise RecipeError(
                "A tailoring says what each layer is made of; this is a recipe, which asks for a search. Name the "
                "folder of its run."
            )
        _check_keys(data, {"tailoring", "embeddings", "norm", "head", "seed", "layers"}, "tailoring")
        check_size(data, "A tailoring")
        version = data.get("tailoring")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise RecipeError(
                f"A tailoring file says 'tailoring: {FORMAT_VERSION}', got {shown(version)}. It was "
                "written by another version of tailorlib, or is no tailoring."
            )
        layers, seed = data.get("layers"), data.get("seed", 0)
        if not isinstance(layers, list):
            raise RecipeError(f"A tailoring has a list of layer plans, got {type(layers).__name__}.")
        if not isinstance(seed, int) or not _is_number(seed):
            raise RecipeError(f"A tailoring's seed is a whole number of at most 63 bits, got {shown(seed)}.")
        return cls(
            layers=tuple(LayerPlan.from_dict(p) for p in layers),
            embeddings=_parse_owner(data.get("embeddings", BASE)),
            norm=_parse_owner(data.get("norm", BASE)),
            head=_parse_owner(data.get("head", BASE)),
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
        data = load_yaml(text, "A tailoring file")
        if not isinstance(data, Mapping):
            raise RecipeError(f"A tailoring file holds a mapping, got {type(data).__name__}.")
        return cls.from_dict(data)

    @classmethod
    def load(cls, path: str | Path) -> Tailoring:
        """Read a tailoring from a YAML file.

        Raises:
            RecipeError: If the file can't be read, or is no tailoring.
        """
        return cls.from_yaml(read_text(path, "tailoring file"))

    @cached_property
    def digest(self) -> str:
        """A stable name of the candidate (SHA-256, hexadecimal): equal digests are equal models."""
        return _digest(self.to_dict())

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """Stable names of the embeddings and the first 0, 1, ... layers: equal names give equal hidden states."""
        owner = self.embeddings
        first: dict[str, Any] = {"embeddings": owner, "seed": None}
        if isinstance(owner, PartPlan):
            first = {"embeddings": owner.to_dict(), "seed": self.seed}
        found = [_digest(first)]
        for plan in self.layers:
            seed = None if plan.is_selection else self.seed  # only what is computed depends on it
            found.append(_digest({"below": found[-1], "layer": plan.digest, "seed": seed}))
        return tuple(found)


def any_number(suffix: str) -> str:
    """Return a tensor's name inside its layer with ``*`` for each number, such as that of an expert."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", suffix)


def models_of(owner: Owner) -> tuple[str, ...]:
    """Return the names of the models that a part outside the layers is read from."""
    if isinstance(owner, str):
        return (owner,)
    return tuple(dict.fromkeys((*owner.models, *([owner.base] if owner.base is not None else []))))


def _check_sources(sources: Sequence[object], operation: str, what: str) -> None:
    listed = ", ".join(map(str, sources[:20]))
    if not sources:
        raise RecipeError(f"A {what} plan needs at least one source, got none.")
    if len(set(sources)) != len(sources):
        raise RecipeError(
            f"A {what} plan takes each source once, got {listed}. Use a weight to let one source count more."
        )
    if operation == SELECT and len(sources) > 1:
        raise RecipeError(
            f"{SELECT} takes exactly one source, got {listed}. Name a merge operation, or keep one source."
        )


def _operation_dict(plan: LayerPlan | PartPlan) -> dict[str, Any]:
    data: dict[str, Any] = {} if plan.operation == SELECT else {"operation": plan.operation}
    if plan.params:
        data["params"] = {k: list(v) if isinstance(v, tuple) else v for k, v in plan.params}
    return data


def _parse_operation(data: Mapping[str, Any]) -> tuple[str, tuple[tuple[str, ParamValue], ...]]:
    params, operation = data.get("params", {}), data.get("operation", SELECT)
    if not isinstance(operation, str) or not operation:
        raise RecipeError(f"An operation is given by its name, got {shown(operation)}.")
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise RecipeError(f"A plan has a mapping of params by name, got {shown(params)}.")
    for name, value in params.items():
        if not isinstance(value, bool | str) and not all(
            map(_is_number, value if isinstance(value, list) else [value])
        ):
            raise RecipeError(
                f"A hyperparameter is a number, a word or a list of numbers, got {shown(name)}: {shown(value)}."
            )
    return operation, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in params.items())


def _parse_number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name, 1.0)
    if not _is_number(value):
        raise RecipeError(f"A layer plan's {name} is a number, got {shown(value)}. Give a finite one.")
    return float(value)


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**63
    return isinstance(value, float) and math.isfinite(value)


def _parse_owner(data: object) -> Owner:
    return PartPlan.from_dict(data) if isinstance(data, Mapping) else _parse_model(data)


def _parse_model(data: object) -> str:
    if not isinstance(data, str) or not data:
        raise RecipeError(f"A model is given by its name in the family, got {shown(data)}.")
    return data


def _parse_source(text: object) -> LayerSource:
    model, _, layer = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not model or not re.fullmatch("[0-9]{1,9}", layer):
        raise RecipeError(f"A layer source is written 'model:layer', such as 'base:3', got {shown(text)}.")
    return LayerSource(model, int(layer))


def _check_finite(params: Iterable[tuple[str, ParamValue]]) -> None:
    for name, value in params:
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
            raise RecipeError(f"A plan's hyperparameters are finite, got {name}: {shown(value)}.")


def _check_keys(data: object, known: set[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise RecipeError(f"A {what} is a mapping, got {shown(data)}.")
    unknown = sorted(shown(key) for key in data if key not in known)
    if unknown:
        raise RecipeError(f"A {what} has the keys {', '.join(sorted(known))}; got also {', '.join(unknown[:5])}.")


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
