"""Model card: the README of an exported model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from tailorlib.models.architecture import FULL_ATTENTION
from tailorlib.tailoring import BASE, LayerPlan, Tailoring
from tailorlib.version import __version__

_HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?$")


@dataclass(frozen=True)
class CardInfo:
    """What the family and the tailoring don't say, for the model card.

    Args:
        title: Heading of the card; the folder's name if empty.
        scores: Table of results: a row's name to its figures by column name. Or a text in Markdown.
        license: Identifier of the licence, such as ``"apache-2.0"``; if empty, the card points to the sources'.
        references: Where the models come from, by family name, if the family's own references should not show.
        notes: A text in Markdown, taken as it is.
    """

    title: str = ""
    scores: Mapping[str, Mapping[str, float]] | str = field(default_factory=dict)
    license: str = ""
    references: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""


def render_card(
    info: CardInfo,
    tailoring: Tailoring,
    *,
    title: str,
    references: Mapping[str, str],
    layer_types: Sequence[str],
    num_parameters: int,
) -> str:
    """Return the Markdown text of a model card.

    Args:
        info: What the caller adds.
        tailoring: How the model is made.
        title: Heading, if ``info`` has none.
        references: Where the models come from, by family name.
        layer_types: The types of the source models' layers.
        num_parameters: Parameters of the model.
    """
    references = {**references, **info.references}
    names = [n for n in references if n == BASE or n in tailoring.models]
    front: dict[str, object] = {"library_name": "transformers", "tags": ["tailorlib", "layer-pruning", "merge"]}
    hub = [references[n].partition("@")[0] for n in names if _HUB_ID.match(references[n])]
    if hub:
        front["base_model"] = hub
    if info.license:
        front["license"] = info.license
    kept = len(tailoring.layers)
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {escape(info.title or title)}",
        f"{kept} of {len(layer_types)} layers, {num_parameters:,} parameters. Made by tailorlib {__version__}: "
        "layers of a base model and of its fine-tunes, removed, chosen and merged as `tailoring.yaml` lists.",
        "## Models\n\n" + _table(("name", "from"), [(n, escape(display_name(references[n]))) for n in names]),
        _layer_section(tailoring, len(layer_types)),
    ]
    scores = info.scores if isinstance(info.scores, str) else _score_table(info.scores)
    if scores:
        sections.append(f"## Scores\n\n{scores}")
    note = pattern_note(layer_types, [layer_types[p.sources[0].layer] for p in tailoring.layers])
    sections += [text for text in (note, info.notes) if text]
    sections.append(
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```'
    )
    sections.append(
        "## Licence\n\n"
        + (escape(info.license) + ", and" if info.license else "This model is subject to")
        + " the terms of every model in the table above."
    )
    return "\n\n".join(sections) + "\n"


def escape(text: object) -> str:
    """Return text that Markdown shows as it is, also inside a table."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", flat)


def display_name(reference: str) -> str:
    """Return a reference without the folders of this machine: a hub id or package as given, else the last part."""
    location = reference.partition("#")[0]
    if location.startswith("package:") or _HUB_ID.match(location):
        return location
    return location.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or location


def pattern_note(before: Sequence[str], after: Sequence[str]) -> str:
    """Return a warning if the source's layer types repeat with a period and the kept ones don't, else nothing."""
    if len(set(before)) < 2:
        return ""
    period = next(p for p in range(1, len(before) + 1) if all(t == before[i % p] for i, t in enumerate(before)))
    if period == len(before) or all(t == before[i % period] for i, t in enumerate(after)):
        return ""
    full = [i for i, t in enumerate(after) if t == FULL_ATTENTION]
    return (
        f"The full-attention layers are {full}. The source's pattern, which repeats after {period} layers, "
        "is lost: `config.json` lists the types, but a program that assumes the pattern, as llama.cpp does for "
        "some architectures, would compute something else."
    )


def _layer_section(tailoring: Tailoring, number: int) -> str:
    rows = [(str(i), *_describe(plan)) for i, plan in enumerate(tailoring.layers)]
    used = {s.layer for plan in tailoring.layers for s in plan.sources}
    removed = [str(i) for i in range(number) if i not in used]
    owners = f"Embeddings: {tailoring.embeddings}; final norm: {tailoring.norm}; head: {tailoring.head}."
    table = _table(("layer", "sources", "operation", "hyperparameters"), rows)
    return f"## Layers\n\nRemoved: {', '.join(removed) or 'none'}. {escape(owners)}\n\n{table}"


def _describe(plan: LayerPlan) -> tuple[str, str, str]:
    params = ", ".join(f"{k}={_figure(v)}" for k, v in plan.params)
    return escape(", ".join(map(str, plan.sources))), escape(plan.operation), escape(params)


def _score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in scores.values() for column in row))
    rows = [
        (escape(name), *(_figure(row[c]) if c in row else "" for c in columns)) for name, row in scores.items()
    ]
    return _table(("model", *map(escape, columns)), rows) if rows else ""


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
