"""mergekit's configurations: slices with parameters, and the text that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from tailorlib.distributions import Scalar
from tailorlib.interchange.names import apply_filters, filters_for


@dataclass(frozen=True)
class Setting:
    """A parameter: a value, and others for tensors whose names contain a filter (the first one counts)."""

    default: Scalar
    filters: tuple[tuple[str, Scalar], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Scalar], hints: Iterable[str], inside: Mapping[str, str]) -> Setting:
        """Return the setting that gives each name its value."""
        return cls(*filters_for(values, hints, inside=inside))

    def at(self, name: str) -> Scalar:
        """Return the value for a tensor."""
        return apply_filters(name, self.default, self.filters)

    def to_data(self) -> Any:
        """Return plain data as mergekit reads it."""
        if not self.filters:
            return self.default
        return [*({"filter": f, "value": v} for f, v in self.filters), {"value": self.default}]


Parameters = tuple[tuple[str, Setting], ...]


@dataclass(frozen=True)
class Input:
    """A source of a slice: a model and its layers from ``start``."""

    model: str
    start: int
    parameters: Parameters = ()


@dataclass(frozen=True)
class Slice:
    """A run of layers that are made alike.

    Args:
        inputs: The sources.
        length: Number of layers; 0 for a slice that only gives the parts before or behind the layers.
        base: The slice's base model, if it is not the configuration's.
        parameters: What holds for all sources.
    """

    inputs: tuple[Input, ...]
    length: int = 1
    base: str | None = None
    parameters: Parameters = ()

    def continues(self, before: Slice) -> bool:
        """Say whether the two slices can be one: made alike, of neighbouring layers."""
        shifted = tuple(replace(i, start=i.start + before.length) for i in before.inputs)
        return before.length > 0 and replace(self, length=1) == replace(before, inputs=shifted, length=1)

    def to_data(self) -> dict[str, Any]:
        """Return plain data as mergekit reads it."""
        data: dict[str, Any] = {"sources": []}
        for i in self.inputs:
            source: dict[str, Any] = {"model": i.model, "layer_range": [i.start, i.start + self.length]}
            data["sources"].append(source | _parameters(i.parameters))
        if self.base is not None:
            data["base_model"] = self.base
        return data | _parameters(self.parameters)


@dataclass
class Document:
    """One configuration.

    Args:
        method: mergekit's merge method.
        base: The base model, from which mergekit also takes ``config.json``.
        name: What later configurations call its result, for ``mergekit-multi``.
        slices: The slices from bottom to top.
        parameters: What holds for all slices.
    """

    method: str
    base: str | None
    name: str | None = None
    slices: list[Slice] = field(default_factory=list)
    parameters: dict[str, Scalar] = field(default_factory=dict)

    def add(self, piece: Slice) -> None:
        """Append a slice, to the last one if they are made alike."""
        if self.base is not None and piece.base == self.base:
            piece = replace(piece, base=None)
        if self.slices and piece.length and piece.continues(self.slices[-1]):
            self.slices[-1] = replace(self.slices[-1], length=self.slices[-1].length + piece.length)
        else:
            self.slices.append(piece)

    def to_data(self, dtype: str) -> dict[str, Any]:
        """Return plain data as mergekit reads it.

        Args:
            dtype: Data type to write; merges are computed in float32.
        """
        data: dict[str, Any] = {} if self.name is None else {"name": self.name}
        data |= {"merge_method": self.method}
        if self.base is not None:
            data["base_model"] = self.base
        data["dtype"] = "float32"
        if dtype != "float32":
            data["out_dtype"] = dtype
        if self.parameters:
            data["parameters"] = dict(self.parameters)
        return {**data, "slices": [piece.to_data() for piece in self.slices]}


def to_text(documents: Sequence[Document], dtype: str) -> str:
    """Return the YAML text of configurations, each using only those before it."""
    return yaml.safe_dump_all(
        [document.to_data(dtype) for document in documents], sort_keys=False, default_flow_style=None, width=110
    )


def _parameters(parameters: Parameters) -> dict[str, Any]:
    return {"parameters": {name: setting.to_data() for name, setting in parameters}} if parameters else {}
