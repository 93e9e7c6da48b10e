"""Model card: the README of an exported model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from tailorlib.escaping import markdown, visible
from tailorlib.export.licenses import License, license_warnings
from tailorlib.tailoring import BASE, LayerPlan, Owner, PartPlan, Tailoring
from tailorlib.version import __version__

_COLUMNS = (
    *("layer", "sources", "operation", "hyperparameters", "task vectors against"),
    *("scale of attention", "scale of MLP", "added"),
)
"""Of a layer's row; the last four are left out where no layer has them."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)

_FOLDERS = re.compile(r"""(?<![\w.:/\\])(?:~|[A-Za-z]:)?[\\/](?:[^\s'",\]}\\/]+[\\/])+""")
"""What an absolute path has before its last part."""


@dataclass(frozen=True)
class CardInfo:
    """What the family and the tailoring don't say, for the model card.

    Args:
        title: Heading of the card; the folder's name if empty.
        scores: Table of results: a row's name to its figures by column name. Or a text in Markdown.
        license: Identifier of the licence, such as ``"apache-2.0"``; if empty, the sources' if they have one.
        references: Where the models come from, by family name, if the family's own references should not show.
        recipe: The recipe of the search that found the model, as text; of absolute paths only the last part shows.
        notes: A text in Markdown, taken as it is.
    """

    title: str = ""
    scores: Mapping[str, Mapping[str, float]] | str = field(default_factory=dict)
    license: str = ""
    references: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    notes: str = ""


def render_card(
    info: CardInfo,
    tailoring: Tailoring,
    *,
    title: str,
    references: Mapping[str, str],
    layer_kinds: Sequence[str],
    num_parameters: int,
    licenses: Mapping[str, Sequence[License]] | None = None,
    tied: bool = False,
    code: Sequence[str] = (),
    remarks: Sequence[str] = (),
    origins: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return the Markdown text of a model card.

    Args:
        info: What the caller adds.
        tailoring: How the model is made.
        title: Heading, if ``info`` has none.
        references: Where the models come from, by family name.
        layer_kinds: The kinds of the source models' layers.
        num_parameters: Parameters of the model.
        licenses: What each model says of its licence, by family name.
        tied: Whether the head is the embeddings.
        code: Names of the files of the base's own code that the folder has.
        remarks: What else to say of the model, a paragraph each.
        origins: Hub ids that a model's own file names as what it was made from, by family name.
    """
    references = {**references, **info.references}
    names = [n for n in references if n == BASE or n in tailoring.models]
    known = {n: tuple((origins or {}).get(n, ())) for n in names}
    stated = {n: tuple((licenses or {}).get(n, ())) for n in names}
    kept = len(tailoring.layers)
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(info, references, stated, known), sort_keys=False)}---",
        f"# {markdown(info.title or title)}",
        f"{kept} of {len(layer_kinds)} layers, {num_parameters:,} parameters. Made by tailorlib {__version__}: "
        "layers of a base model and of its fine-tunes, removed, chosen and merged as listed below.",
        _model_section(names, references, stated, known),
        _layer_section(tailoring, len(layer_kinds), tied),
    ]
    scores = info.scores if isinstance(info.scores, str) else _score_table(info.scores)
    if scores:
        sections.append(f"## Scores\n\n{scores}")
    note = pattern_note(layer_kinds, [layer_kinds[p.sources[0].layer] for p in tailoring.layers])
    sections += [text for text in (markdown(note), *map(markdown, remarks), info.notes) if text]
    sections.append(_use_section(code))
    sections += [_recipe_section(info, tailoring), _license_section(info, stated)]
    text = "\n\n".join(sections) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # what the caller adds may hold half a character


def _front_matter(
    info: CardInfo,
    references: Mapping[str, str],
    stated: Mapping[str, Sequence[License]],
    origins: Mapping[str, Sequence[str]],
) -> dict[str, object]:
    front: dict[str, object] = {"library_name": "transformers", "tags": ["tailorlib", "layer-pruning", "merge"]}
    named = ([references[n].partition("@")[0]] if _HUB_ID.fullmatch(references[n]) else origins[n] for n in stated)
    hub = list(dict.fromkeys(name for names in named for name in names))
    if hub:
        front["base_model"] = hub
    identifiers = {license.identifier for found in stated.values() for license in found}
    if info.license or (len(identifiers) == 1 and all(stated.values())):
        front["license"] = info.license or identifiers.pop()
    return front


def _model_section(
    names: Sequence[str],
    references: Mapping[str, str],
    stated: Mapping[str, Sequence[License]],
    origins: Mapping[str, Sequence[str]],
) -> str:
    places = {
        n: display_name(references[n]) + (f" (of {', '.join(origins[n])})" if origins[n] else "") for n in names
    }
    rows = [(n, places[n], ", ".join(map(str, stated[n])) or "not stated") for n in names]
    return "## Models\n\n" + _table(("name", "from", "licence"), [[*map(markdown, row)] for row in rows])


def _use_section(code: Sequence[str]) -> str:
    trusted = ", trust_remote_code=True" if code else ""
    text = (
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="auto"{trusted})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder"{trusted})\n```'
    )
    if code:
        text += (
            "\n\nThe model needs `trust_remote_code=True`: its classes are in Python files of the base model "
            f"that lie beside it and are run when it is loaded. Read them first: {markdown(', '.join(code))}."
        )
    return text


def _recipe_section(info: CardInfo, tailoring: Tailoring) -> str:
    recipe = _FOLDERS.sub("", visible(info.recipe))  # this machine's concern nobody
    blocks = [_folded("Tailoring", visible(tailoring.to_yaml()))]
    blocks += [_folded("Recipe of the search", recipe)] if recipe.strip() else []
    return "\n\n".join(["## How it was made", *blocks])


def _folded(summary: str, text: str) -> str:
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"<details>\n<summary>{summary}</summary>\n\n{fence}yaml\n{text.strip()}\n{fence}\n\n</details>"


def _license_section(info: CardInfo, stated: Mapping[str, Sequence[License]]) -> str:
    text = (
        markdown(info.license) + ", and" if info.license else "This model is subject to"
    ) + " the terms of every model in the table above."
    warnings = "\n".join(f"- {markdown(warning)}" for warning in license_warnings(stated))
    if warnings:
        text += f" Look into this first:\n\n{warnings}\n\nThis list is a reading aid and not legal advice."
    return f"## Licence\n\n{text}"


def display_name(reference: str) -> str:
    """Return a reference without the folders of this machine: a hub id or package as given, else the last part."""
    location = reference.partition("#")[0]
    if location.startswith("package:") or _HUB_ID.fullmatch(location):
        return location
    return location.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or location


def pattern_note(before: Sequence[str], after: Sequence[str]) -> str:
    """Return a warning if the source's layer kinds repeat with a period and the kept ones don't, else nothing."""
    if len(set(before)) < 2:
        return ""
    period = next(p for p in range(1, len(before) + 1) if all(t == before[i % p] for i, t in enumerate(before)))
    if period == len(before) or all(t == before[i % period] for i, t in enumerate(after)):
        return ""
    places = "; ".join(f"{kind}: {[i for i, k in enumerate(after) if k == kind]}" for kind in sorted(set(after)))
    return (
        f"The source's pattern of layers, which repeats after {period} layers, is lost. Now there are {places}. "
        "config.json lists them, but a program that assumes the pattern, as llama.cpp does for some "
        "architectures, computes something else."
    )


def _layer_section(tailoring: Tailoring, number: int, tied: bool) -> str:
    rows = [row for i, plan in enumerate(tailoring.layers) for row in _rows(str(i), plan)]
    used = {s.layer for plan in tailoring.layers for p in plan.plans for s in p.sources}
    removed = [str(i) for i in range(number) if i not in used]
    head = "the embeddings" if tied else _owner(tailoring.head)
    owners = (
        f"Embeddings: {_owner(tailoring.embeddings)}; final norm: {_owner(tailoring.norm)}; head: {head}. "
        f"Seed of random masks: {tailoring.seed}."
    )
    shown = [i for i in range(len(_COLUMNS)) if i < 4 or any(row[i] for row in rows)]
    table = _table([_COLUMNS[i] for i in shown], [[row[i] for i in shown] for row in rows])
    return f"## Layers\n\nRemoved: {', '.join(removed) or 'none'}. {markdown(owners)}\n\n{table}"


def _rows(place: str, plan: LayerPlan) -> Iterator[tuple[str, ...]]:
    """Yield a layer's row, then one for each of its parts that has a plan of its own."""
    params = ", ".join(f"{k}={_figure(v)}" for k, v in plan.params)
    scales = [f"{s:.4g}" if s != 1 else "" for s in (plan.attention_scale, plan.mlp_scale)]
    sources, base = ", ".join(map(str, plan.sources)), "" if plan.base is None else str(plan.base)
    terms = ", ".join(plan.term_texts)
    yield tuple(map(markdown, (place, sources, plan.operation, params, base, *scales, terms)))
    for name, part in plan.parts:
        yield from _rows(f"{place}, its {name}", part)


def _owner(owner: Owner) -> str:
    if not isinstance(owner, PartPlan):
        return owner
    params = [f"{k}={_figure(v)}" for k, v in owner.params]
    against = [] if owner.base is None else [f"against {owner.base}"]
    details = ", ".join(params + against)
    return f"{owner} ({details})" if details else str(owner)


def _score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in scores.values() for column in row))
    rows = [
        (markdown(name), *(_figure(row[c]) if c in row else "" for c in columns)) for name, row in scores.items()
    ]
    return _table(("model", *map(markdown, columns)), rows) if rows else ""


def _figure(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_figure, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
