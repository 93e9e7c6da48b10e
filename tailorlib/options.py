"""Verbs and options of a command line: which there are, and what a misspelt one was meant to be."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from jsonargparse import ArgumentParser

from tailorlib.console import FLAGS
from tailorlib.exceptions import RecipeError, did_you_mean, listed, shown

_GENERAL = ("config", "plugins", "seed_everything", "print_config", "help", "trainer")
"""Options that every verb on LightningCLI has, beside the sections of a recipe."""
_NO_VERB = ("--help", "-h", "--version", "--config", "--print_completion", "--print_shtab")


def check_verb(args: Sequence[str], verbs: Collection[str]) -> None:
    """Refuse a command line whose first word is no verb.

    Args:
        args: The command line, without the flags that any verb takes.
        verbs: The verbs that there are.

    Raises:
        RecipeError: If it is none; with the verb or flag of a close name.
    """
    first = args[0] if args else "--help"
    if first in verbs or first.partition("=")[0] in _NO_VERB:
        return
    if first.startswith("-"):
        hint = did_you_mean(first, FLAGS)
        raise RecipeError(f"tailor takes a verb first, or one of {listed(FLAGS)}; got {shown(first)}.{hint}")
    raise RecipeError(f"tailor has no verb {shown(first)}.{did_you_mean(first, verbs)} See tailor --help.")


def option_faults(verb: str, args: Sequence[str]) -> list[str]:
    """Return what is wrong with the names of the options of a verb on LightningCLI.

    Args:
        verb: The verb.
        args: What follows it.
    """
    from tailorlib.recipe import FIXED_CLASSES, SECTIONS

    own = _own_options(verb)
    known = {*_GENERAL, *SECTIONS, *own}
    found = []
    for option in _options(args):
        root, _, rest = option.lstrip("-").rstrip("+").partition(".")
        setting = rest.partition(".")[0]
        if option.startswith("--") and root not in known:
            close = did_you_mean(root, known)
            every = listed(f"--{name}" for name in sorted(own))
            hint = close if close.startswith(" Did") else f" Its own are {every}."
            found.append(f"tailor {verb} has no option {shown(option)}.{_with_dashes(hint)}")
        elif setting and root in FIXED_CLASSES:
            settings = inspect.signature(FIXED_CLASSES[root]).parameters
            if setting not in settings and setting != "help":
                found.append(f"{root} has no setting {shown(setting)}.{did_you_mean(setting, settings)}")
    return found


def missing_value(args: Sequence[str], options: Iterable[str]) -> list[str]:
    """Return a fault for each option that stands at the end, or before another option, without its value."""
    wanted = set(options)
    return [
        f"{arg} takes a value, got none."
        for i, arg in enumerate(args)
        if arg in wanted and (i + 1 == len(args) or args[i + 1].startswith("--"))
    ]


def argument_message(message: str, parser: ArgumentParser, verb: str) -> str:
    """Return what a parser says of arguments in a user's words.

    Args:
        message: The parser's.
        parser: The parser, for the names that it knows.
        verb: The verb.
    """
    actions = [action for action in parser._actions if action.dest not in ("help", "==SUPPRESS==")]
    every = {name for action in actions for name in action.option_strings if name.startswith("--")}
    options = sorted({*every, *FLAGS, "--help"} - {"--print_shtab", "--print_completion"})
    if unknown := re.search(r"unrecognized arguments: (.+)", message):
        words = unknown[1].split()
        named = [word.partition("=")[0] for word in words if word.startswith("-")]
        if not named:
            return f"tailor {verb} takes no further argument, got {shown(words[0])}. See tailor {verb} --help."
        return " ".join(f"tailor {verb} has no option {shown(n)}.{did_you_mean(n, options)}" for n in named)
    if several := re.search(r"ambiguous option: (\S+) could match (.+)", message):
        return f"tailor {verb} has no option {shown(several[1])}. It has {several[2]}."
    if needed := re.search(r"the following arguments are required: (.+)", message):
        helps = {action.dest: f" ({action.help.rstrip('.')})" for action in actions if action.help}
        names = [name.strip() for name in needed[1].split(",")]
        listed_names = ", ".join(f"{name.upper()}{helps.get(name, '')}" for name in names)
        return f"tailor {verb} needs {listed_names}. See tailor {verb} --help."
    return message


def _own_options(verb: str) -> list[str]:
    """Return the options that are a verb's alone."""
    from tailorlib.export.command import export_verb
    from tailorlib.search.trainer import TailorTrainer

    function = export_verb if verb == "export" else getattr(TailorTrainer, verb)
    return [
        name
        for name in inspect.signature(function).parameters
        if name not in ("self", "model", "family", "device")
    ]


def _options(args: Sequence[str]) -> Iterator[str]:
    """Yield the names of options as they were given."""
    for arg in args:
        if re.match(r"--?[A-Za-z_]", arg):
            yield arg.partition("=")[0]


def _with_dashes(hint: str) -> str:
    return re.sub(r"Did you mean '(\w+)'", r"Did you mean '--\1'", hint)
