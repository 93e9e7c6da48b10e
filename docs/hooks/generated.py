"""Reference pages that are made of the code: what the command line takes, and every plugin with its settings.

mkdocs runs :func:`on_page_markdown` as a hook at each build, so the pages can't be out of date. A page says with
``<!-- generated: NAME -->`` what is to stand there; NAME is a key of :data:`PARTS`.
"""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser

from tailorlib.light import LIGHT, VERBS, light_parser
from tailorlib.lightning_cli import TailorCLI
from tailorlib.models.family import FAMILIES, ModelFamily
from tailorlib.plugins import REGISTRIES
from tailorlib.recipe import SECTIONS
from tailorlib.search.study import Benchmark, StudySettings, Validation

TITLES = {
    "tailorlib.operations": "Operations",
    "tailorlib.optimizers": "Optimizers",
    "tailorlib.schedulers": "Schedulers",
    "tailorlib.objectives": "Objectives",
    "tailorlib.search_spaces": "Search spaces",
    "tailorlib.warm_starts": "Warm starts and baselines",
    "tailorlib.compensations": "Compensations",
    "tailorlib.fitness": "Fitnesses",
    "tailorlib.texts": "Texts",
    "tailorlib.families": "Model families",
}
FIXED = {"validation": Validation, "benchmark": Benchmark, "study": StudySettings}
POSITIONAL = {"evaluate": "run", "compensate": "run", "export": "run", "import": "source"}
"""Verbs on LightningCLI whose first argument may stand without its option."""
_ROLE = re.compile(r":(?:meth|class|func|attr|data|mod|exc):`~?([^`]+)`")


class _Parsed(Exception):  # noqa: N818  (no error: it carries the parser out of LightningCLI)
    pass


class _Parser(TailorCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Parsed(parser)


@cache
def command_line() -> ArgumentParser:
    """Return the parser of the verbs on LightningCLI, as the command line makes it."""
    for registry in REGISTRIES:
        registry.load_all()
    try:
        _Parser(["plugins"])
    except _Parsed as parsed:
        return parsed.args[0]  # type: ignore[no-any-return]
    raise AssertionError("LightningCLI parses its arguments.")


@cache
def parsers() -> Mapping[str, ArgumentParser]:
    """Return the parser of each verb."""
    verbs = command_line()._subcommands_action
    assert verbs is not None
    found = {verb: verbs._name_parser_map[verb] for verb in VERBS}
    return {**found, **{verb: light_parser(verb)[0] for verb in LIGHT}}


def plain(text: str) -> str:
    """Return a docstring's text as Markdown for a cell of a table: one line, no roles of Sphinx."""
    text = _ROLE.sub(lambda m: f"`{m[1].rpartition('.')[2]}`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", "\\|")


def table(rows: Iterable[tuple[str, ...]], *header: str) -> str:
    """Return a Markdown table, or nothing without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", *lines]) if lines else ""


def settings(cls: type) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and meaning of each setting of a class, as recipes are held to them."""
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "it")
    actions = {action.dest.removeprefix("it."): action for action in parser._actions}
    described = {p.arg_name: p.description or "" for base in cls.__mro__ for p in _documented(base)}
    rows = []
    for name, parameter in inspect.signature(cls).parameters.items():
        hint = getattr(actions.get(name), "_typehint", None)
        kind = _type(parameter.annotation if hint is None else hint)
        needed = parameter.default is parameter.empty
        default = "needed" if needed else f"`{_value(parameter.default)}`"
        rows.append((f"`{name}`", kind.replace("|", "\\|"), default, plain(described.get(name, ""))))
    return rows


def plugin(cls: type, level: int) -> str:
    """Return a heading, the first sentence and the settings of a class."""
    return f"{'#' * level} `{cls.__name__}` {{#{cls.__name__}}}\n\n{summary(cls)}"


def summary(cls: type) -> str:
    """Return the first sentence and the settings of a class."""
    said = parse_docstring(inspect.getdoc(cls) or "").short_description or ""
    parts = (plain(said), table(settings(cls), "setting", "type", "default", "what it is"))
    return "\n\n".join(part for part in parts if part)


def plugins() -> str:
    """Return all installed plugins of all kinds."""
    lines = []
    for registry in REGISTRIES:
        lines.append(f"## {TITLES[registry.group]} {{#{registry.group.rpartition('.')[2]}}}")
        classes: list[type] = [registry.get(name) for name in registry.names() if _is_own(registry.get(name))]
        own: list[type] = [ModelFamily] if registry is FAMILIES else []
        lines += [plugin(cls, 3) for cls in own + classes]
    return "\n\n".join(lines)


def sections() -> str:
    """Return the settings of those sections of a recipe that are no plugins."""
    return "\n\n".join(f"## `{key}` {{#{key}}}\n\n{summary(cls)}" for key, cls in FIXED.items())


def options(verb: str) -> Iterator[tuple[str, str, str]]:
    """Yield the arguments of a verb that are its own: as they are written, default and meaning."""
    shared = {*SECTIONS, "trainer", "plugins", "seed_everything", "config", "print_config", "help"}
    for action in sorted(
        parsers()[verb]._actions, key=lambda a: bool(a.option_strings)
    ):  # those by position first
        if action.dest.partition(".")[0] in shared or action.dest == SUPPRESS or action.dest.endswith(".help"):
            continue
        name = action.dest.upper() if not action.option_strings else f"`{action.option_strings[0]}`"
        first = POSITIONAL.get(verb) == action.dest
        written = f"`{action.dest.upper()}`" if not action.option_strings or first else name
        unset = action.default in (None, SUPPRESS, "") or not action.option_strings
        yield written, "" if unset else f"`{_value(action.default)}`", plain(action.help or "")


def usage(verb: str) -> str:
    """Return how a verb is called."""
    if verb in TOLD:
        return TOLD[verb]
    words = []
    for action in parsers()[verb]._actions:
        if not action.option_strings:
            name = action.dest.upper()
            one = name.removesuffix("S")
            words.append(f"{one} [{one} ...]" if action.nargs == "+" else name)
    return " ".join(["tailor", verb, *words, "[OPTIONS]"])


def commands() -> str:
    """Return all verbs with their own options."""
    lines = []
    for verb in sorted(parsers(), key=lambda verb: (ORDER.index(verb) if verb in ORDER else len(ORDER), verb)):
        said = plain(parsers()[verb].description or "")
        lines += [f"## tailor {verb} {{#{verb}}}", said, f"```sh\n{usage(verb)}\n```"]
        lines += [table(options(verb), "argument", "default", "what it is")]
    return "\n\n".join(line for line in lines if line)


ORDER = (
    "init",
    "plan",
    "search",
    "list",
    "show",
    "diff",
    "report",
    "check",
    "evaluate",
    "compensate",
    "export",
    "import",
    "plugins",
)
"""Verbs in the order in which a study needs them."""
TOLD = {
    "plan": "tailor plan --config RECIPE [OPTIONS]",
    "search": "tailor search --config RECIPE [OPTIONS]\ntailor search --resume RUN [OPTIONS]",
    "evaluate": "tailor evaluate RUN [OPTIONS]",
    "compensate": "tailor compensate RUN [OPTIONS]",
    "export": "tailor export RUN --output FOLDER [OPTIONS]",
    "import": "tailor import FILE --output FOLDER [OPTIONS]",
    "plugins": "tailor plugins [OPTIONS]",
}
"""How the verbs on LightningCLI are called: their first argument may stand without its option."""

PARTS: Mapping[str, Callable[[], str]] = {"commands": commands, "plugins": plugins, "sections": sections}
_MARK = re.compile(r"<!-- generated: (\w+) -->")


def filled(markdown: str) -> str:
    """Return a page with its generated parts in place."""
    return _MARK.sub(lambda mark: PARTS[mark[1]](), markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts of a page, before mkdocs renders it."""
    return filled(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles of Sphinx off docstrings, after mkdocstrings rendered them."""
    return re.sub(
        r":(?:meth|class|func|attr|data|mod|exc):<code>~?([^<]+)</code>",
        lambda m: f"<code>{m[1].rpartition('.')[2]}</code>",
        html,
    )


def _documented(cls: type) -> Iterator[Any]:
    yield from parse_docstring(inspect.getdoc(cls) or "").params


def _is_own(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("tailorlib", "tailorlib_strategies")


def _type(hint: Any) -> str:
    """Return a type as a reader of recipes would write it."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{_value(value)}`" for value in get_args(hint))
    if hint == float | tuple[float, float]:
        return "number or pair"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_type(kind) for kind in get_args(hint) if kind is not type(None))
    text = hint.removesuffix(" | None") if isinstance(hint, str) else inspect.formatannotation(hint)
    return f"`{re.sub(r'[a-z_]+[.](?=[A-Za-z])', '', text)}`"


def _value(value: Any) -> str:
    """Return a default as YAML has it; an object by its class's name."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return value or '""'
    return repr(value) if isinstance(value, int | float) else type(value).__name__
