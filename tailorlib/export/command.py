"""``tailor export`` by itself: writing a model needs no Trainer, whose import alone takes seconds and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from rich.markup import escape

from tailorlib.console import say, step
from tailorlib.contents import Contents, used_models
from tailorlib.exceptions import JournalError, RecipeError
from tailorlib.export.card import CardInfo
from tailorlib.export.export import export_model
from tailorlib.export.verify import verify_export
from tailorlib.files import write_text
from tailorlib.interchange import to_mergekit
from tailorlib.journal import FILE_NAME, Journal
from tailorlib.models.digests import model_contents
from tailorlib.models.family import ModelFamily
from tailorlib.models.terms import keep_terms
from tailorlib.operation import OPERATIONS
from tailorlib.pareto import study_result
from tailorlib.plugin_sources import load_plugins_of, source_of
from tailorlib.recipe import check_recipe, missing_sections, read_recipe
from tailorlib.registry import load_plugin, named_modules
from tailorlib.tailoring import Tailoring

RECIPE_NAME = "recipe.yaml"
_OPTIONS = (
    *("config", "c", "plugins", "family"),
    *("run", "trial", "tailoring", "output", "overwrite", "verify", "format", "max_shard_gb", "chat_from"),
)


def export_command(args: Sequence[str]) -> bool:
    """Run ``tailor export ARGS``, unless the arguments or the recipe ask something of the Trainer.

    Args:
        args: The command line behind ``export``.

    Returns:
        Whether it was done. If not, nothing was: it is the Trainer's command line's turn.

    Raises:
        TailorError: For a mistake of the user.
        ArgumentError: If an option has a value that it can't have.
    """
    given = [a.lstrip("-").partition("=")[0].partition(".")[0].rstrip("+") for a in args if a.startswith("-")]
    if not set(given) <= set(_OPTIONS):
        return False
    args = ["--run", *args] if args and not args[0].startswith("-") else list(args)
    files = _values(args, "--config", "-c") or [_recipe_of(run) for run in _values(args, "--run")[-1:]]
    recipe: dict[str, Any] = {}
    for file in files:
        recipe |= read_recipe(file)
    device = _device(recipe.get("trainer") or {})
    if device is None:
        return False
    for file in files:
        load_plugins_of(Path(file))
    for spec in _values(args, "--plugins"):
        load_plugin(spec)
    family = {"family": recipe["family"]} if "family" in recipe else {}
    faults = check_recipe(family) + missing_sections([*family, *given], ("family",))
    if faults:
        raise RecipeError(faults)
    settings = _parser(family).parse_args(_without(args, "--config", "-c", "--plugins"))
    export_verb(
        _parser(family).instantiate(settings).family,
        device,
        **{k: v for k, v in settings.as_dict().items() if k != "family"},
    )
    return True


def export_verb(
    family: ModelFamily,
    device: torch.device,
    *,
    run: str | None = None,
    trial: int | None = None,
    tailoring: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
    verify: bool = False,
    format: Literal["hf", "mergekit"] = "hf",
    max_shard_gb: float = 5.0,
    chat_from: str | None = None,
) -> None:
    """Write a tailoring as a Hugging Face model: `tailor export RUN --output DIR`.

    Args:
        family: The family; it is prepared here.
        device: Where merges are computed, and the model is verified.
        run: The run folder; its best trial is written.
        trial: Number of another trial of the run.
        tailoring: A tailoring file, instead of a run.
        output: Folder to write, RUN/model by default; a file for mergekit, RUN/mergekit.yaml by default.
        overwrite: Replace what is there.
        verify: Load the written model with transformers and compare it with the live one.
        format: A Hugging Face model, or the configuration with which mergekit makes the same.
        max_shard_gb: Largest size of a weights file, in 10^9 bytes.
        chat_from: Name of the model whose chat template, special tokens and generation settings the export gets,
            instead of what the recipe says.

    Raises:
        TailorError: For a mistake of the user.
    """
    if output is None and run is None:
        raise RecipeError("An export needs a place to write to: give --output.")
    chosen = choose(run, trial, tailoring)
    default = "model" if format == "hf" else "mergekit.yaml"
    target = Path(output) if output is not None else Path(str(run)) / default
    family.chat_from = chat_from or family.chat_from
    family.prepare()
    keep_terms(family, Path(run) if run is not None else Path(str(tailoring)).parent)
    if run is not None:
        used = used_models(chosen) & family.sources.keys()
        models = {name: model_contents(family.sources[name]) for name in used}
        plugins = dict(filter(None, map(source_of, sorted(foreign_modules(chosen)))))
        require_scored(Path(run), Contents(models, plugins=plugins), export=True)
    if format == "mergekit":
        _write_configuration(family, chosen, target, overwrite)
        return
    with step(f"Model written to {target}"):
        export_model(
            family,
            chosen,
            target,
            card=_card(run, trial),
            device=device,
            max_shard_bytes=max_shard_gb * 1e9,
            overwrite=overwrite,
        )
    if verify:
        say(verify_export(family, chosen, target, device=device).table())


def _write_configuration(family: ModelFamily, tailoring: Tailoring, target: Path, overwrite: bool) -> None:
    configuration = to_mergekit(tailoring, family)
    write_text(target, configuration.text, overwrite=overwrite)
    for note in configuration.notes:
        say(f"[yellow]![/] {escape(note)}")
    say(f"[green]✓[/] mergekit configuration written to {escape(str(target))}; run it with:")
    say(f"  {escape(configuration.command(target, 'OUTPUT'))}")


def _card(run: str | None, trial: int | None) -> CardInfo:
    """Return what a run's folder says for the model card: its recipe, and the scores of its best trial."""
    found = {}
    for name in (RECIPE_NAME, "benchmark.md"):
        file = Path(run or "") / name
        found[name] = file.read_text(encoding="utf-8") if run is not None and file.is_file() else ""
    return CardInfo(recipe=found[RECIPE_NAME], scores=found["benchmark.md"] if trial is None else "")


def choose(run: str | None, trial: int | None, tailoring: str | None) -> Tailoring:
    """Return the tailoring that the arguments name.

    Raises:
        RecipeError: If they name none, or both a run and a file.
        JournalError: If the run has no complete trial.
    """
    if (run is None) == (tailoring is None):
        raise RecipeError("Name one model: a run folder (tailor export RUN), or --tailoring FILE with --config.")
    if tailoring is not None:
        return Tailoring.load(tailoring)
    written = Path(str(run)) / "tailoring.yaml"
    if trial is None and written.is_file() and not (Path(str(run)) / FILE_NAME).exists():  # an import's folder
        return Tailoring.load(written)
    journal = Journal.read(Path(str(run)))
    trials = journal.trials
    if trial is None:
        best = study_result(trials, {n: found.score for n, found in journal.validations.items()})
        if best is None:
            raise JournalError(f"The study in {run!r} has no complete trial yet; there is nothing to take.")
        return best.tailoring
    found = next((t for t in trials if t.number == trial), None)
    if found is None:
        raise RecipeError(
            f"The study in {run!r} has the trials 0 to {journal.next_number - 1}, got --trial {trial}."
            + (
                " Its record was lost to damage: resume the study to make it again."
                if trial in journal.lost
                else ""
            )
        )
    return found.tailoring


def require_scored(run: Path, now: Contents, *, export: bool = False) -> None:
    """Check that what a run scored is what is there now.

    Args:
        run: The run folder; a folder without a record, such as an import's, has nothing to compare.
        now: What is there now. Of models only those count that it has.
        export: Compare no data, as no export reads any, and of plugins only those that there are.

    Raises:
        JournalError: If something differs, with all differences.
    """
    if not (run / FILE_NAME).exists():
        return
    recorded = Journal.read(run).header.contents
    if recorded is None:
        say("[yellow]![/] The run did not record what its models were; whether they changed since is not known.")
        return
    models = {name: parts for name, parts in recorded.models.items() if name in now.models}
    before = replace(recorded, models=models)
    if export:
        there = {name: digest for name, digest in recorded.plugins.items() if name in now.plugins}
        before = replace(before, data={}, plugins=there)
    changes = before.changes(now)
    if changes:
        raise JournalError(
            f"A run's scores belong to the content that was scored; since then {changes} changed. Undo the "
            f"change; or score anew what it touches: tailor search --resume {run} --accept-changes; or take the "
            f"tailoring without its score: --tailoring {run / 'tailoring.yaml'} --config {run / RECIPE_NAME}."
        )


def foreign_modules(tailoring: Tailoring) -> set[str]:
    """Return the modules of plugins that the user named, and of the operations of a tailoring, less our own."""
    plans = [each for plan in tailoring.layers for each in (plan, *(part for _, part in plan.parts))]
    operations = {plan.operation for plan in plans} & set(OPERATIONS.names())
    modules = named_modules() | {OPERATIONS.get(name).__module__ for name in operations}
    return {module for module in modules if module.partition(".")[0] not in ("tailorlib", "tailorlib_strategies")}


def _parser(defaults: Mapping[str, Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(export_verb, skip={"family", "device"}, as_group=False)
    parser.add_subclass_arguments(ModelFamily, "family", required=False)
    parser.set_defaults(dict(defaults))
    return parser


def _recipe_of(run: str) -> str:
    recipe = Path(run) / RECIPE_NAME
    if not recipe.is_file():
        raise RecipeError(
            f"A run folder has a {RECIPE_NAME}; {run!r} has none. Name the folder that 'search' wrote."
        )
    return str(recipe)


def _device(trainer: Mapping[str, Any]) -> torch.device | None:
    """Return the device that a recipe's trainer would choose, or ``None`` if only the Trainer can say."""
    accelerator = trainer.get("accelerator") or "auto"
    if accelerator == "auto" and not torch.accelerator.is_available():
        accelerator = "cpu"
    return torch.device("cpu") if accelerator == "cpu" else None


def _values(args: Sequence[str], *names: str) -> list[str]:
    """Return the values of an option, given as ``--name value`` or ``--name=value``."""
    found = [args[i + 1] for i, a in enumerate(args[:-1]) if a in names]
    return found + [a.partition("=")[2] for a in args if a.partition("=")[0] in names and "=" in a]


def _without(args: Sequence[str], *names: str) -> list[str]:
    """Return the arguments less some options and their values."""
    taken = {i for i, a in enumerate(args) if a in names}
    taken |= {i + 1 for i in taken} | {i for i, a in enumerate(args) if a.partition("=")[0] in names}
    return [a for i, a in enumerate(args) if i not in taken]
