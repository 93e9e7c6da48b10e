"""Verbs of ``tailor`` that are plain functions: they look at studies, or begin one, and need no Lightning."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser

from tailorlib.console import lost_output, speaking, tell_error
from tailorlib.endings import run_to_end
from tailorlib.exceptions import RecipeError
from tailorlib.options import argument_message
from tailorlib.switches import spelled_out

LIGHT = {
    "init": "tailorlib.init:init",
    "list": "tailorlib.report.commands:list_runs",
    "show": "tailorlib.report.commands:show",
    "diff": "tailorlib.report.commands:diff",
    "report": "tailorlib.report.commands:report",
    "check": "tailorlib.report.check:check",
}
"""Where each verb's function is. Its parameters are the arguments, those without a default by position."""
VERBS = ("search", "evaluate", "compensate", "plan", "export", "import", "plugins")
"""Verbs on LightningCLI."""


def main(argv: Sequence[str]) -> int:
    """Run ``tailor VERB ...``.

    Returns:
        The exit status, see :mod:`tailorlib.endings`.
    """
    with speaking(argv) as args:
        status = run_to_end(lambda: run_light(args[0], args[1:]))
        lost = lost_output()
        if status or lost is None:
            return status
        tell_error(lost, f"A part of the output is lost: {lost.strerror or lost}.")  # it is all that was asked for
        return 1


def run_light(verb: str, args: Sequence[str]) -> int:
    """Run a verb.

    Returns:
        What it returns; 0 if it returns nothing.

    Raises:
        TailorError: For a mistake of the user, such as an argument that is missing, unknown or of the wrong type.
    """
    parser, function = light_parser(verb)
    try:
        settings = parser.parse_args(spelled_out(args)).as_dict()
    except ArgumentError as error:
        from tailorlib.parser_messages import clean_message  # brings torch, which takes its time

        raise RecipeError(argument_message(clean_message(str(error)), parser, verb)) from error
    return function(**settings) or 0


def light_parser(verb: str) -> tuple[ArgumentParser, Callable[..., int | None]]:
    """Return the parser of a verb, and its function."""
    module, _, name = LIGHT[verb].partition(":")
    function: Callable[..., int | None] = getattr(import_module(module), name)
    told = parse_docstring(inspect.getdoc(function) or "")
    parser = ArgumentParser(exit_on_error=False, prog=f"tailor {verb}", description=told.short_description)
    helps = {parameter.arg_name: parameter.description for parameter in told.params}
    lists = [
        name
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
        if parameter.default is parameter.empty and parameter.annotation == list[str]
    ]
    parameters = inspect.signature(function, eval_str=True).parameters
    several = list(lists)
    if all(p.default is not p.empty for p in parameters.values()):  # the first may be given, by position
        name, first = next(iter(parameters.items()))
        parser.add_argument(name, nargs="?", type=first.annotation, default=first.default, help=helps.get(name))
        several.append(name)
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(several))
    for name in lists:  # jsonargparse wants a list in brackets; a shell gives names
        parser.add_argument(name, nargs="+", type=str, help=helps.get(name))
    return parser, function
