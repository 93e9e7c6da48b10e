"""Which model of a configuration is the family's base, and what its other models are to the family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tailorlib.exceptions import ModelError
from tailorlib.interchange.configuration import Configuration
from tailorlib.interchange.settings import Faults
from tailorlib.models.source import path_of


@dataclass(frozen=True)
class Roles:
    """The models of a configuration, as a family takes them.

    Args:
        base: Reference of the base.
        candidates: References of the candidates, by what the configuration calls them.
        notes: What is read in another way than written.
    """

    base: str
    candidates: Mapping[str, str]
    notes: tuple[str, ...] = ()


def roles_of(configuration: Configuration, faults: Faults) -> Roles:
    """Return the roles of a configuration's models; their order has no part in it where there is another sign.

    A family's adapters lie on its base. So the base is the model that carries the adapters, where there are any;
    else the ``base_model``; else the model whose tokenizer is asked for; else the first one.

    Args:
        configuration: The configuration.
        faults: Takes what no family can be.
    """
    models = configuration.models
    for model in models:
        if not all(model.split("+")) or model.count("+") > 1:
            faults.add("models", f"a model is written MODEL or MODEL+ADAPTER, got {model!r}.")
    homes = list(dict.fromkeys(_home(model) for model in models if "+" in model))
    named = None if configuration.base is None else _home(configuration.base)
    base = _base(configuration, homes, named)
    elsewhere = [model for model in models if "+" in model and _home(model) != base]
    if elsewhere:
        faults.add(
            "models",
            f"a family has one base, and its adapters belong to it: {base!r} is the base, got {elsewhere[0]!r}. "
            "Merge that adapter into its model.",
        )
    notes = []
    if named is not None and base != named:
        notes.append(
            f"{base!r} is the family's base, since an adapter belongs to it, and {named!r} a candidate: tokenizer "
            "and config are those of the former."
        )
    _check_tokenizer(configuration, base, named, faults)
    others = {model: model.partition("+")[2] or model for model in models if model != base}
    return Roles(base, others, tuple(notes))


def _base(configuration: Configuration, homes: list[str], named: str | None) -> str:
    if homes:
        return named if named in homes else homes[0]
    if named is not None:
        return named
    first, *_ = models = configuration.models
    if configuration.tokenizer is None:
        return first
    return next((model for model in models if same_model(model, configuration.tokenizer[1])), first)


def _check_tokenizer(configuration: Configuration, base: str, named: str | None, faults: Faults) -> None:
    if configuration.tokenizer is None:
        return
    path, source = configuration.tokenizer
    if not any(same_model(_home(source), model) for model in (base, named) if model is not None):
        faults.add(path, f"the vocabulary stays the base's, and that is {base!r}; got {source!r}. Write base.")


def _home(reference: str) -> str:
    """Return the model that an adapter lies on; of another reference itself."""
    return reference.partition("+")[0]


def same_model(one: str, other: str) -> bool:
    """Say whether two references name one model, however its folder is written."""
    return one == other or _location(one) == _location(other)


def _location(reference: str) -> str:
    try:
        path = path_of(reference)
    except ModelError:
        return reference
    return str(path.resolve() if path.exists() else path)
