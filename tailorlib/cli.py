"""The command line ``tailor``: verbs on LightningCLI, and :data:`LIGHT` ones that need no Lightning."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tailorlib.console import quieten, speaking
from tailorlib.endings import run_to_end
from tailorlib.exceptions import RecipeError
from tailorlib.export.command import export_command
from tailorlib.forks import staying
from tailorlib.light import LIGHT, VERBS, run_light
from tailorlib.memory import keep_freed_memory
from tailorlib.options import check_verb, missing_value, option_faults
from tailorlib.parser_messages import clean_message
from tailorlib.plugin_sources import load_plugins_of
from tailorlib.plugins import REGISTRIES
from tailorlib.recipe import REQUIRED, check_recipe, missing_sections, read_recipe
from tailorlib.registry import load_plugin
from tailorlib.version import __version__

RECIPE_NAME = "recipe.yaml"
_MAKE_TENSORS = ("search", "evaluate", "compensate", "plan", "export")
"""Verbs that make and drop large tensors all the time."""
_ACCEPT = "--accept_changes=true"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status, see :mod:`tailorlib.endings`.
    """
    with speaking(list(sys.argv[1:] if argv is None else argv)) as args:
        os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        warnings.filterwarnings("ignore", message=r".*Experiment logs directory .* exists and is not empty.*")
        if args == ["--version"]:
            Console(highlight=False).print(f"tailorlib {__version__}")
            return 0
        status = 1
        try:
            status = run_to_end(lambda: _run(args), lambda error: clean_message(str(error)))
        finally:
            _finish_tracking(failed=status != 0)
        return status


def _finish_tracking(*, failed: bool) -> None:
    """End the W&B run, if there is one: it prints where it is, and shows there how the command ended."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=int(failed))


@staying()
def _run(args: list[str]) -> int:
    check_verb(args, (*VERBS, *LIGHT))
    if args[:1] and args[0] in LIGHT:
        return run_light(args[0], args[1:])
    quieten()
    if args and args[0] in _MAKE_TENSORS:
        keep_freed_memory()
    if args[:1] == ["export"] and not {"--help", "-h"} & set(args) and export_command(args[1:]):
        return 0
    args = [_ACCEPT if a == "--accept-changes" else a for a in _expand_run(_expand_plugins(args))]
    _load_plugins(args)
    _check_files(args)
    from tailorlib.lightning_cli import TailorCLI  # Lightning takes seconds to import: an export needs none

    TailorCLI(args or ["--help"])
    return 0


def _expand_plugins(args: list[str]) -> list[str]:
    """Let ``--plugins FILE`` add one plugin, as often as it is given; the parser alone would want a list."""
    split = [part for a in args for part in (a.split("=", 1) if a.startswith("--plugins=") else [a])]
    return [
        f"--plugins+={part}" if i and split[i - 1] == "--plugins" else part
        for i, part in enumerate(split)
        if part != "--plugins"
    ]


def _expand_run(args: list[str]) -> list[str]:
    """Let a run folder stand for its recipe: ``export RUN`` and other verbs, ``search --resume RUN``."""
    if args[:1] == ["import"] and len(args) > 1 and not args[1].startswith("-"):
        return ["import", "--source", *args[1:]]
    if not args or args[0] not in ("search", "evaluate", "compensate", "export"):
        return args
    verb, rest = args[0], args[1:]
    if verb == "search":
        run = _value_of(rest, "--resume")
        rest = [*rest, "--study.directory", run] if run is not None else rest
    else:
        run = rest[0] if rest and not rest[0].startswith("-") else _value_of(rest, "--run")
        rest = ["--run", *rest] if rest and not rest[0].startswith("-") else rest
    if run is None or _value_of(rest, "--config", "-c") is not None:
        return [verb, *rest]
    recipe = Path(run) / RECIPE_NAME
    if not recipe.is_file():
        raise RecipeError(
            f"A run folder has a {RECIPE_NAME}; {run!r} has none. Name the folder that 'search' wrote."
        )
    return [verb, "--config", str(recipe), *rest]


def _load_plugins(args: Sequence[str]) -> None:
    """Import what the user named, then every installed plugin: short class names resolve only then."""
    for path in _values_of(args, "--config", "-c"):
        load_plugins_of(Path(path), originals=_ACCEPT in args)
    for spec in _values_of(args, "--plugins+"):
        load_plugin(spec)
    for registry in REGISTRIES:
        registry.load_all()


def _check_files(args: Sequence[str]) -> None:
    """Report all faults of the recipe files at once, before the parser stops at the first."""
    files = _values_of(args, "--config", "-c")
    if args:
        faults = [*option_faults(args[0], args[1:]), *missing_value(args, ("--config", "-c", "--resume"))]
        if faults:  # what else is missing may stand in what was misspelt
            raise RecipeError(faults)
    faults = [fault for path in files for fault in check_recipe(read_recipe(path))]
    needed = (
        REQUIRED
        if args and args[0] in ("search", "evaluate", "compensate", "plan")
        else REQUIRED[:1]
        if args[:1] == ["export"]
        else ()
    )
    if not {"--help", "-h", "--print_config"} & {a.split("=")[0] for a in args}:
        given = {key for path in files for key in read_recipe(path)}
        given |= {a.lstrip("-").split("=")[0].split(".")[0] for a in args if a.startswith("--")}
        faults += missing_sections(given, needed)
    if faults:
        raise RecipeError(faults)


def _value_of(args: Sequence[str], *names: str) -> str | None:
    values = _values_of(args, *names)
    return values[-1] if values else None


def _values_of(args: Sequence[str], *names: str) -> list[str]:
    """Return the values of an option, given as ``--name value`` or ``--name=value``."""
    found = [args[i + 1] for i, a in enumerate(args[:-1]) if a in names]
    return found + [a.partition("=")[2] for a in args if a.partition("=")[0] in names and "=" in a]


if __name__ == "__main__":
    sys.exit(main())
