"""The header of a journal: what a study's trials depend on, and how two studies differ in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tailorlib.contents import Changes, Contents
from tailorlib.plain_data import plain
from tailorlib.records import encode
from tailorlib.search_space import FamilyLayout

FORMAT_VERSION = 2
_WITHOUT_EFFECT = ("family.init_args.merge_cache_mib", "family.init_args.layer_cache_mib")
"""Settings of the identity that change no digit of a score."""
_PLACES = ("family.init_args.base", "family.init_args.candidates.")
"""Settings that say where models lie."""


@dataclass(frozen=True)
class JournalHeader:
    """What the trials of a journal depend on.

    Args:
        identity: The recipe's sections that decide the trials.
        environment: Versions of the libraries that wrote it, for information.
        layout: The family's layout, for reports; ``None`` where it isn't known.
        parameters: Number of parameters of the dense base model.
        layer_parameters: Number of parameters of each of its layers.
        contents: What models, data and plugins were when the study began; ``None`` where it isn't known.
        continues: The record in the same folder whose candidates this study starts over from, or ``None``.
        format: Version of the file format.
        study: A name of the study, which all of its lines bear; chosen when the journal is created.
    """

    identity: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    layout: FamilyLayout | None = None
    parameters: int | None = None
    layer_parameters: tuple[int, ...] | None = None
    contents: Contents | None = None
    continues: str | None = None
    format: int = FORMAT_VERSION
    study: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the first line of the journal."""
        return {
            "format": self.format,
            "study": self.study,
            "environment": dict(self.environment),
            "layout": None if self.layout is None else asdict(self.layout),
            "parameters": self.parameters,
            "layer_parameters": self.layer_parameters,
            "identity": dict(self.identity),
            "contents": None if self.contents is None else self.contents.to_dict(),
            "continues": self.continues,
        }

    def line(self) -> bytes:
        """Return the first line of the journal, without its newline.

        Raises:
            RecordError: If it can't be written.
        """
        return encode({"kind": "header", **plain(self.to_dict(), "The journal's header")}, 1)

    def differences(self, identity: Mapping[str, Any], contents: Contents) -> list[str]:
        """Return what a study with another recipe or other contents would do otherwise, in words.

        Args:
            identity: The recipe's sections that decide the trials.
            contents: What models, data and plugins are now.
        """
        known = self.contents
        found = identity_differences(self.identity, identity, contents_known=known is not None)
        named = [f"{where}: was {json.dumps(old)}, is {json.dumps(new)}" for where, (old, new) in found.items()]
        changes = Changes() if known is None else known.changes(contents)
        return [*named, *([f"{changes} changed"] if changes else [])]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JournalHeader:
        """Rebuild a header from :meth:`to_dict`; what describes the family may be missing.

        Raises:
            KeyError: If something else is.
            TypeError: If something is of the wrong type.
            ValueError: If something has a value that it can't have.
        """
        layout, layers, contents = data.get("layout"), data.get("layer_parameters"), data.get("contents")
        if layout is not None:
            lists = {key: tuple(map(str, layout[key])) for key in ("candidates", "layer_types", "branches")}
            layout = FamilyLayout(num_layers=int(layout["num_layers"]), **lists)  # type: ignore[arg-type]
        return cls(
            identity=dict(data["identity"]),
            environment={str(k): str(v) for k, v in data["environment"].items()},
            layout=layout,
            parameters=None if data.get("parameters") is None else int(data["parameters"]),
            layer_parameters=None if layers is None else tuple(map(int, layers)),
            contents=None if contents is None else Contents.from_dict(contents),
            continues=None if data.get("continues") is None else str(data["continues"]),
            format=int(data["format"]),
            study=str(data.get("study", "")),
        )


def identity_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, contents_known: bool
) -> dict[str, tuple[Any, Any]]:
    """Return where two recipes would make other trials, and what stands there: (before, now).

    Args:
        old: The sections that decide the trials.
        new: The same of another recipe.
        contents_known: Whether the models' contents are compared, too: then it doesn't matter where they lie.
    """
    found = dict(_differences(old, json.loads(json.dumps(new))))
    known = [w for w, pair in found.items() if contents_known and w.startswith(_PLACES) and None not in pair]
    return {where: pair for where, pair in found.items() if where not in (*_WITHOUT_EFFECT, *known)}


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif old != new:
        yield where, (old, new)
