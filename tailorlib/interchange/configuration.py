"""mergekit's configuration as data: its models, slices and parameters, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tailorlib.exceptions import RecipeError, shown
from tailorlib.interchange.settings import Faults, Scope, check_setting

MAX_LAYERS = 1000
"""Most layers of a model that is read."""
MAX_SOURCES = 20_000
"""Most sources of all layers together."""
LayerCount = int | Callable[[str], int]
"""The number of layers of each model, or a function that finds it, given a model's reference."""

_KNOWN = frozenset(
    {"merge_method", "base_model", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template"}
    | {"parameters", "modules", "slices", "models", "name"}
)
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class SourceData:
    """A source of a slice.

    Args:
        path: Where it stands.
        model: The model's reference.
        start: Its first layer.
        stop: The layer behind its last.
        parameters: Its parameters.
    """

    path: str
    model: str
    start: int
    stop: int
    parameters: Scope


@dataclass(frozen=True)
class SliceData:
    """A slice.

    Args:
        path: Where it stands.
        sources: The sources, all of as many layers.
        base: Reference of its base model, if it or the configuration names one.
        parameters: Its parameters.
    """

    path: str
    sources: tuple[SourceData, ...]
    base: str | None
    parameters: Scope

    @property
    def length(self) -> int:
        """Number of layers."""
        return self.sources[0].stop - self.sources[0].start


@dataclass(frozen=True)
class Configuration:
    """A configuration.

    Args:
        method: The merge method.
        base: Reference of the base model, if it names one.
        slices: The slices from bottom to top.
        parameters: The parameters of all slices.
        notes: What is read in another way than written.
        tokenizer: Where the tokenizer's model is named, and its reference; ``None`` if it is the base's.
    """

    method: str
    base: str | None
    slices: tuple[SliceData, ...]
    parameters: Scope
    notes: tuple[str, ...]
    tokenizer: tuple[str, str] | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """References of all models, the base model first, else in order of appearance."""
        bases = [piece.base for piece in self.slices]
        sources = [source.model for piece in self.slices for source in piece.sources]
        return tuple(dict.fromkeys(m for m in (self.base, *sources, *bases) if m is not None))


def read_configuration(data: object, num_layers: LayerCount | None) -> Configuration:
    """Check a configuration and bring its two forms, of models and of slices, into one.

    Args:
        data: The configuration as plain data.
        num_layers: What the form of models needs to know.

    Raises:
        RecipeError: With every fault, by its place.
        ModelError: If ``num_layers`` raises it.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(f"A mergekit configuration is a mapping, got {shown(data)}.")
    faults = Faults()
    reader = _Reader(data, faults, num_layers)
    found = reader.read()
    if faults.found or found is None:
        raise RecipeError(list(faults.found))
    return found


class _Reader:
    def __init__(self, data: Mapping[str, Any], faults: Faults, num_layers: LayerCount | None) -> None:
        self.data, self.faults, self.num_layers = data, faults, num_layers
        self.notes: list[str] = []
        self.tokenizer: tuple[str, str] | None = None

    def read(self) -> Configuration | None:
        data = self.data
        unknown = [shown(key) for key in data if key not in _KNOWN]
        if unknown:
            self.notes.append(f"mergekit reads no {', '.join(unknown[:5])}; neither did this import.")
        method = data.get("merge_method")
        if not isinstance(method, str):
            self.faults.add("merge_method", f"names the method, got {shown(method)}.")
        base = None if data.get("base_model") is None else self._model(data["base_model"], "base_model")
        self._check_outputs()
        parameters = self._parameters(data.get("parameters"), "parameters")
        given = [key for key in ("models", "slices", "modules") if data.get(key)]
        if len(given) != 1:
            listed = " and ".join(given) or "neither"
            self.faults.add(listed, "a configuration has either slices or models. Give one of them.")
            return None
        if given == ["modules"]:
            self.faults.add("modules", "models of several modules have no counterpart. Write the slices alone.")
            return None
        slices = self._of_models(base) if given == ["models"] else self._slices(base)
        if self.faults.found:
            return None
        if not any(piece.length for piece in slices):
            self.faults.add("slices", "a model keeps at least one layer, got none.")
            return None
        return Configuration(str(method), base, tuple(slices), parameters, tuple(self.notes), self.tokenizer)

    def _check_outputs(self) -> None:
        data = self.data
        for key in ("dtype", "out_dtype"):
            value = data.get(key)
            if value is not None and str(value).removeprefix("torch.") not in _DTYPES:
                self.faults.add(key, f"is one of {', '.join(_DTYPES)}, got {shown(value)}.")
        if data.get("dtype") is not None and data["dtype"] != "float32":
            self.notes.append(
                f"dtype {shown(data['dtype'])}: mergekit would merge in it. tailorlib merges in float32 and "
                "rounds once, to the data type that the base is stored in."
            )
        if data.get("chat_template") is not None:
            self.notes.append(
                "chat_template is left out: the tailored model has the base's, or that of the model which "
                "family.init_args.chat_from names."
            )
        source, tokenizer = data.get("tokenizer_source"), data.get("tokenizer")
        if source is not None and tokenizer is not None:
            self.faults.add("tokenizer", "a configuration has tokenizer or tokenizer_source, not both.")
        self._read_tokenizer(source, "tokenizer_source")
        if isinstance(tokenizer, Mapping):
            self._read_tokenizer(tokenizer.get("source", "union"), "tokenizer.source")
            for key in ("tokens", "pad_to_multiple_of"):
                if tokenizer.get(key):
                    self.faults.add(f"tokenizer.{key}", "has no counterpart: the vocabulary stays the base's.")
        elif tokenizer is not None:
            self.faults.add("tokenizer", f"is a mapping, got {shown(tokenizer)}.")

    def _read_tokenizer(self, source: object, path: str) -> None:
        if source == "union":
            self.faults.add(path, f"the vocabulary stays the base's, got {shown(source)}. Write base.")
        elif source is not None and source != "base":
            self.tokenizer = path, self._model(source, path)

    def _model(self, data: object, path: str) -> str:
        """Return a model's reference as one text, given as mergekit takes it."""
        if isinstance(data, str) and data.strip():
            return data.strip()
        if isinstance(data, Mapping) and data.get("override_architecture") is None:
            lora = data.get("lora")
            parts = [_path(data.get("model")), *([_path(lora)] if lora is not None else [])]
            if all(parts):
                return "+".join(map(str, parts))
        self.faults.add(path, f"names a model, got {shown(data)}.")
        return ""

    def _parameters(self, data: object, path: str) -> Scope:
        if data is None:
            return Scope(path, {})
        if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
            self.faults.add(path, f"is a mapping of parameters by name, got {shown(data)}.")
            return Scope(path, {})
        for name, value in data.items():
            check_setting(value, f"{path}.{name}", self.faults)
        return Scope(path, data)

    def _of_models(self, base: str | None) -> list[SliceData]:
        """Return the one slice that a list of models stands for; a base that is not listed comes last."""
        entries = self._list(self.data["models"], "models")
        named = [(f"models[{i}]", entry) for i, entry in enumerate(entries)]
        models = [(path, self._model(entry.get("model"), f"{path}.model"), entry) for path, entry in named]
        if base is not None and base not in [model for _, model, _ in models]:
            models.append(("base_model", base, {}))
        if self.faults.found:
            return []
        sources = tuple(
            SourceData(
                path, model, 0, self._count(model), self._parameters(entry.get("parameters"), f"{path}.parameters")
            )
            for path, model, entry in models
        )
        counts = {source.model: source.stop for source in sources}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{model} {count}" for model, count in counts.items())
            self.faults.add("models", f"all models have as many layers, got {listed}.")
        self._check_amount(sources[0].stop, len(sources))
        return [SliceData("models", sources, base, Scope("models", {}))]

    def _count(self, model: str) -> int:
        if self.num_layers is None:
            self.faults.add("models", "the number of layers is not in the configuration. Give it.")
            return 1
        number = self.num_layers if isinstance(self.num_layers, int) else self.num_layers(model)
        if number < 1:
            self.faults.add("models", f"models have 1 layer or more, got {number}.")
        return number

    def _slices(self, base: str | None) -> list[SliceData]:
        entries = self._list(self.data["slices"], "slices")
        slices, layers, number = [], 0, 0
        for i, entry in enumerate(entries):
            path = f"slices[{i}]"
            own = entry.get("base_model")
            sources = [
                self._source(source, f"{path}.sources[{k}]")
                for k, source in enumerate(self._list(entry.get("sources"), f"{path}.sources"))
            ]
            lengths = {source.stop - source.start for source in sources}
            if len(lengths) > 1:
                self.faults.add(f"{path}.sources", f"have as many layers, got {', '.join(map(str, lengths))}.")
            if entry.get("residual_weight") is not None:
                self.notes.append(f"{path}.residual_weight is left out: mergekit reads it and makes no use of it.")
            parameters = self._parameters(entry.get("parameters"), f"{path}.parameters")
            chosen = base if own is None else self._model(own, f"{path}.base_model")
            if sources:
                slices.append(SliceData(path, tuple(sources), chosen, parameters))
                layers += max(lengths)
                number += max(lengths) * len(sources)
        self._check_amount(layers, number // max(layers, 1))
        return slices

    def _source(self, data: Mapping[str, Any], path: str) -> SourceData:
        model = self._model(data.get("model"), f"{path}.model")
        parameters = self._parameters(data.get("parameters"), f"{path}.parameters")
        bounds = data.get("layer_range")
        whole = isinstance(bounds, list) and len(bounds) == 2 and all(type(bound) is int for bound in bounds)
        start, stop = bounds if isinstance(bounds, list) and whole else (0, 0)
        most = self.num_layers if isinstance(self.num_layers, int) else None
        if not whole or not 0 <= start <= stop:
            self.faults.add(f"{path}.layer_range", f"is [first, behind the last], got {shown(bounds)}.")
        elif most is not None and stop > most:
            self.faults.add(f"{path}.layer_range", f"ends at {most} at most, got {shown(bounds)}.")
        elif stop - start > MAX_LAYERS:
            self.faults.add(f"{path}.layer_range", f"spans at most {MAX_LAYERS:,} layers, got {shown(bounds)}.")
        else:
            return SourceData(path, model, start, stop, parameters)
        return SourceData(path, model, 0, 0, parameters)

    def _check_amount(self, layers: int, sources: int) -> None:
        if layers > MAX_LAYERS:
            self.faults.add("slices", f"make at most {MAX_LAYERS:,} layers, got {layers:,}.")
        elif layers * sources > MAX_SOURCES:
            self.faults.add("slices", f"have at most {MAX_SOURCES:,} sources of layers, got {layers * sources:,}.")

    def _list(self, data: object, path: str) -> list[Mapping[str, Any]]:
        if isinstance(data, list) and data and all(isinstance(entry, Mapping) for entry in data):
            return data
        self.faults.add(path, f"is a list of mappings, got {shown(data)}.")
        return []


def _path(data: object) -> str | None:
    """Return a model's path, and revision, from the long form that mergekit also takes."""
    if isinstance(data, Mapping) and isinstance(data.get("path"), str):
        revision = data.get("revision")
        return data["path"] if revision is None else f"{data['path']}@{revision}"
    return data if isinstance(data, str) and data else None


def renamed(configuration: Configuration, names: Mapping[str, str]) -> Configuration:
    """Return a configuration with other names of the models."""
    slices = tuple(
        replace(
            piece,
            sources=tuple(replace(source, model=names[source.model]) for source in piece.sources),
            base=None if piece.base is None else names[piece.base],
        )
        for piece in configuration.slices
    )
    base = None if configuration.base is None else names[configuration.base]
    return replace(configuration, slices=slices, base=base)
