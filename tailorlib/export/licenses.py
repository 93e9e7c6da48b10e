"""Licences: what the sources of a model say of theirs, and where that does not go together.

This is a reading aid, not legal advice: it knows the identifiers in :data:`KINDS` and a handful of rules, and says
plainly what it doesn't know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tailorlib.bounded import load_yaml
from tailorlib.exceptions import RecipeError
from tailorlib.models.gguf_header import stated as gguf_statements


class Kind(StrEnum):
    """What a licence asks of a model that is made from the licensed one."""

    PERMISSIVE = "permissive"
    """Notices are kept; the result can be under other terms."""
    SHARE_ALIKE = "share-alike"
    """The result comes under the same licence."""
    NON_COMMERCIAL = "non-commercial"
    """The result can't be used commercially."""
    COMMUNITY = "community"
    """A model maker's own terms, with restrictions of use, bind the result."""
    NO_DERIVATIVES = "no-derivatives"
    """A changed version must not be passed on."""


KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(
        ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "unlicense"),
        Kind.PERMISSIVE,
    ),
    **dict.fromkeys(("gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "cc-by-sa-4.0"), Kind.SHARE_ALIKE),
    **dict.fromkeys(("cc-by-nc-4.0", "cc-by-nc-sa-4.0"), Kind.NON_COMMERCIAL),
    **dict.fromkeys(("cc-by-nd-4.0", "cc-by-nc-nd-4.0"), Kind.NO_DERIVATIVES),
    **dict.fromkeys(("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma"), Kind.COMMUNITY),
    **dict.fromkeys(("openrail", "bigscience-bloom-rail-1.0", "bigcode-openrail-m"), Kind.COMMUNITY),
}
"""The identifiers, as the Hugging Face Hub writes them, that the rules know."""

_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "COPYING.txt")
_TEXTS = (
    # what a licence file says in its first lines; the first pattern that matches counts
    (r"LLAMA 4 COMMUNITY LICENSE", "llama4"),
    (r"LLAMA 3\.3 COMMUNITY LICENSE", "llama3.3"),
    (r"LLAMA 3\.2 COMMUNITY LICENSE", "llama3.2"),
    (r"LLAMA 3\.1 COMMUNITY LICENSE", "llama3.1"),
    (r"LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"GEMMA TERMS OF USE", "gemma"),
    (r"ATTRIBUTION-NONCOMMERCIAL-NODERIV\w* 4\.0", "cc-by-nc-nd-4.0"),
    (r"ATTRIBUTION-NONCOMMERCIAL-SHAREALIKE 4\.0", "cc-by-nc-sa-4.0"),
    (r"ATTRIBUTION-NONCOMMERCIAL 4\.0", "cc-by-nc-4.0"),
    (r"ATTRIBUTION-NODERIV\w* 4\.0", "cc-by-nd-4.0"),
    (r"ATTRIBUTION-SHAREALIKE 4\.0", "cc-by-sa-4.0"),
    (r"ATTRIBUTION 4\.0", "cc-by-4.0"),
    (r"GNU AFFERO GENERAL PUBLIC LICENSE VERSION 3", "agpl-3.0"),
    (r"GNU LESSER GENERAL PUBLIC LICENSE VERSION 3", "lgpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE VERSION 3", "gpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE VERSION 2", "gpl-2.0"),
    (r"APACHE LICENSE VERSION 2\.0", "apache-2.0"),
    (r"MIT LICENSE|PERMISSION IS HEREBY GRANTED FREE OF CHARGE", "mit"),
)
_LONGEST, _LONGEST_NAME = 2**16, 200
_UNRECOGNISED = "unrecognised"
_COMPATIBLE = ({"gpl-3.0", "agpl-3.0"}, {"gpl-3.0", "lgpl-3.0"}, {"gpl-3.0", "agpl-3.0", "lgpl-3.0"})
"""Share-alike licences that say how they go together."""


@dataclass(frozen=True)
class License:
    """One statement about a model's licence.

    Args:
        identifier: The licence, as the Hugging Face Hub writes it, or whatever stands there.
        file: The file that says so.
    """

    identifier: str
    file: str

    def __str__(self) -> str:
        return f"{self.identifier} ({self.file})"


def licenses_of(folder: Path) -> tuple[License, ...]:
    """Return what a model's folder says of its licence.

    That is in the model card, in a licence file, in the config, and in the metadata of a GGUF file, if the folder
    was made from one.

    Statements that repeat an earlier one are left out; none at all is an empty tuple.
    """
    found = [License(name, "README.md") for name in _front_matter(_head(folder / "README.md"))]
    for name in _FILES:
        text = _head(folder / name)
        if text:
            found.append(License(_recognise(text), name))
            break
    config = _mapping(_head(folder / "config.json"))
    found += [License(name, "config.json") for name in _names(config.get("license"))]
    made = gguf_statements(folder)  # of a GGUF file
    names = _names(made.get("general.license"))
    own = _names(made.get("general.license.name"))
    found += [License(name, "GGUF metadata") for name in (own if own and names in ([], ["other"]) else names)]
    first = {license.identifier: license for license in reversed(found)}
    return tuple(license for license in found if first[license.identifier] is license)


def license_warnings(licenses: Mapping[str, Sequence[License]]) -> list[str]:
    """Return what to look at before a model made from these sources is used or passed on.

    Args:
        licenses: What each source says of its licence, by name.
    """
    models: dict[str, list[str]] = {}
    for name, stated in licenses.items():
        for license in stated:
            models.setdefault(license.identifier.lower(), []).append(name)
    warnings = [rule for rule in _conflicts(models) if rule]
    unknown = [identifier for identifier in models if identifier not in KINDS]
    if unknown:
        warnings.append(f"{_named(unknown, models)}: not among the licences that this check knows. Read the text.")
    silent = [name for name, stated in licenses.items() if not stated]
    if silent:
        warnings.append(f"No licence was found for {', '.join(silent)}. Find out before you pass the model on.")
    return warnings


def _conflicts(models: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield a sentence per rule that applies, given the models under each licence."""
    of = {kind: [name for name in models if KINDS.get(name) == kind] for kind in Kind}
    alike, others = of[Kind.SHARE_ALIKE], len(models) > 1
    if of[Kind.NO_DERIVATIVES]:
        yield f"{_named(of[Kind.NO_DERIVATIVES], models)}: a changed model must not be passed on."
    if of[Kind.NON_COMMERCIAL] and others:
        yield (
            f"{_named(of[Kind.NON_COMMERCIAL], models)}: rules out commercial use of the whole model, whatever "
            "the other licences allow."
        )
    if of[Kind.COMMUNITY] and others:
        yield f"{_named(of[Kind.COMMUNITY], models)}: its restrictions of use bind the whole model."
    if len(alike) > 1 and set(alike) not in _COMPATIBLE:
        yield f"{_named(alike, models)}: each demands the whole model for itself. They can't both be followed."
    restricting = of[Kind.NON_COMMERCIAL] + of[Kind.COMMUNITY]
    if alike and restricting:
        yield (
            f"{_named(alike, models)}: admits no further restrictions, and {_named(restricting, models)} has "
            "some. They can't both be followed."
        )
    elif alike and others:
        yield f"{_named(alike, models)}: the whole model comes under this licence."
    if {"gpl-2.0", "apache-2.0"} <= models.keys():
        yield f"{_named(('gpl-2.0', 'apache-2.0'), models)}: the Free Software Foundation calls them incompatible."


def _named(identifiers: Iterable[str], models: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(f"{i} (of {', '.join(models[i])})" for i in identifiers)


def _front_matter(text: str) -> list[str]:
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---", text, re.DOTALL)
    data = _mapping(match[1]) if match else {}
    names = _names(data.get("license"))
    own = _names(data.get("license_name"))
    return own if own and names in ([], ["other"]) else names


def _mapping(text: str) -> Mapping[str, object]:
    """Return a mapping in YAML or JSON; an empty one if the text is none."""
    try:
        data = load_yaml(text, "A model's description", any_keys=True)
    except RecipeError:
        return {}
    return data if isinstance(data, dict) else {}


def _names(data: object) -> list[str]:
    items = data if isinstance(data, list) else [data]
    texts = (_clean(item) for item in items if isinstance(item, str))
    return [text for text in texts if text]


def _clean(text: str) -> str:
    """Return a short text on one line that can be written and shown: no control characters, no half characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:_LONGEST_NAME]).split())


def _recognise(text: str) -> str:
    flat = re.sub(r"[\s,]+", " ", text[:4000]).upper()
    return next((name for pattern, name in _TEXTS if re.search(pattern, flat)), _UNRECOGNISED)


def _head(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(_LONGEST)
    except OSError:
        return ""
