"""Names for the models of a recipe: short, each its own, and nothing that YAML reads as another thing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tailorlib.tailoring import BASE

LONGEST = 40
"""Most characters of a name that is made."""
_GIVEN = re.compile(r"[\w.-]{1,100}")
_POWER = re.compile(r"[-+.\d]+e[-+]?\d+", re.IGNORECASE)
"""A number to jsonargparse, whatever quotes it has in the recipe."""
_QUANTISED = re.compile(r"[.-](I?Q\d\w*|BF16|F16|F32|fp16|fp32)$", re.IGNORECASE)
_RESERVED = frozenset({BASE, "y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf"})


def split_spec(spec: str) -> tuple[str, str]:
    """Return the name and the reference of ``NAME=MODEL`` or ``MODEL``; without a name, an empty one."""
    name, given, reference = spec.partition("=")
    if not given or re.search(r"[/\\#]", name) or Path(spec).exists():
        return "", spec
    return name, reference


def named_models(base: str, specs: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the candidates by name, and what is wrong with what was given.

    Args:
        base: The base's reference.
        specs: What the command line says: ``NAME=MODEL`` or ``MODEL``.
    """
    pairs = [(name, tidied(reference)) for name, reference in map(split_spec, specs)]
    faults = [*_name_faults([name for name, _ in pairs if name]), *_reference_faults(tidied(base), pairs)]
    taken = {name for name, _ in pairs}
    found: dict[str, str] = {}
    for given, reference in pairs:
        name = given or next(n for n in _proposals(reference, base) if n not in taken)
        taken.add(name)
        found[name] = reference
    return found, faults


def tidied(reference: str) -> str:
    """Return a reference without slashes at its end, which a hub id can't have."""
    return reference.strip().rstrip("/\\") or reference


def _name_faults(names: Sequence[str]) -> Iterator[str]:
    for name in dict.fromkeys(names):
        if name == BASE:
            yield f"Candidates have names of their own, got {name!r}, which is the base's. Write NAME=MODEL."
        elif not _GIVEN.fullmatch(name):
            yield f"A name has letters, digits, '-', '_' and '.', at most 100 of them, got {name!r}."
        elif _POWER.fullmatch(name):
            yield f"A name is no number, got {name!r}. Write NAME=MODEL with a letter in front."
        elif names.count(name) > 1:
            yield f"Candidates have names of their own, got {name!r}, which is given twice. Write NAME=MODEL."


def _reference_faults(base: str, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    references = [reference for _, reference in pairs]
    for reference in dict.fromkeys(references):
        if not reference:
            yield "A candidate is given as MODEL or NAME=MODEL, got no model. Name one."
        elif reference == base:
            yield f"A candidate is another model than the base, got {reference!r} for both. Leave it out."
        elif references.count(reference) > 1:
            yield f"A candidate is given once, got {reference!r} twice. Leave one out."


def _proposals(reference: str, base: str) -> Iterator[str]:
    """Yield names for a model, the best first, without end."""
    parent, last, revision = _parts(reference)
    short = _distinct(last, _parts(base)[1])
    yield _valid(short)
    if revision:
        yield _valid(f"{short}-{revision}")
    if parent:
        yield _valid(f"{parent}-{short}")
    number = 2
    while True:
        yield f"{_valid(short)}-{number}"
        number += 1


def _parts(reference: str) -> tuple[str, str, str]:
    """Return the organisation or folder, the name and the revision of a reference."""
    location, _, revision = reference.partition("#")[0].partition("@")
    path = location.removeprefix("package:").replace("\\", "/")
    if Path(path).is_dir():
        path = str(Path(path).resolve())
    *parents, last = [part for part in path.split("/") if part not in ("", ".", "..")] or [""]
    if len(parents) > 1 and parents[-1] == "snapshots":  # of the hub's cache: models--ORGANISATION--NAME
        *parents, last = parents[-2].removeprefix("models--").split("--")
    if last.endswith(".gguf"):
        last = _QUANTISED.sub("", last.removesuffix(".gguf"))
    return parents[-1] if parents else "", last, revision


def _distinct(last: str, base: str) -> str:
    """Return the words of a name that the base's name doesn't have: of Qwen2.5-Math-7B beside Qwen2.5-7B, Math."""
    known = {word.lower() for word in re.split(r"[-_ ]", base)}
    words = [word for word in re.split(r"[-_ ]", last) if word]
    return "-".join(word for word in words if word.lower() not in known) or last


def _valid(text: str) -> str:
    name = re.sub(r"[\W_]+", "-", text.lower())[:LONGEST].strip("-")
    plain = name[:1].isalpha() and name not in _RESERVED
    return name if plain else f"model-{name}".rstrip("-")
