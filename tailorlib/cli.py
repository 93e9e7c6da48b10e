"""The command line: ``tailor search | evaluate | export | import | plan | plugins``, on LightningCLI."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console

from tailorlib.console import quieten
from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.export.command import export_command
from tailorlib.plugins import REGISTRIES
from tailorlib.recipe import (
    REQUIRED,
    SECTIONS,
    check_recipe,
    clean_message,
    identity_of,
    missing_sections,
    read_recipe,
)
from tailorlib.registry import load_plugin
from tailorlib.search import strategy  # noqa: F401 (registers the strategies by name)
from tailorlib.search.module import SearchModule
from tailorlib.search.study import Study
from tailorlib.search.trainer import TailorTrainer
from tailorlib.version import __version__

RECIPE_NAME = "recipe.yaml"
_STUDY_VERBS = ("search", "evaluate", "plan")
_VERBS = (*_STUDY_VERBS, "export", "import", "plugins")
_TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 1,
    "accelerator": "auto",
    "devices": 1,
    "enable_checkpointing": False,  # the journal is the truth; a checkpoint would hold nothing
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # it would shuffle the trial numbers
}


class TailorCLI(LightningCLI):
    """LightningCLI whose sections are a study's parts instead of one model and one data module."""

    def __init__(self, args: list[str]) -> None:
        quiet = {"exit_on_error": False, "description": "Cut and stitch language models."}
        super().__init__(
            SearchModule,
            trainer_class=TailorTrainer,
            trainer_defaults=_TRAINER_DEFAULTS,
            save_config_callback=None,
            seed_everything_default=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={**quiet, **{verb: {"exit_on_error": False} for verb in _VERBS}},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs, methods of :class:`TailorTrainer`, and their arguments that are no options."""
        return {verb: {"model"} for verb in _VERBS}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the recipe's sections and the trainer."""
        for key, add in SECTIONS.items():
            add(parser, key)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})
        parser.add_argument(
            "--plugins", type=list[str], default=[], help="Files or modules with plugins of your own."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's warning about ``args`` beside ``sys.argv``."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Put what the loggers write into the run folder."""
        trainer, study = self._get(self.config, "trainer"), self._get(self.config, "study")
        if self.subcommand != "search":
            trainer["logger"] = False
            return
        trainer["default_root_dir"] = trainer["default_root_dir"] or study["directory"]
        if trainer["logger"] in (None, True):
            folder = {"save_dir": study["directory"], "name": "", "version": "metrics"}
            trainer["logger"] = Namespace(
                class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace(**folder)
            )
        loggers = trainer["logger"] if isinstance(trainer["logger"], list) else [trainer["logger"]]
        for logger in loggers:
            settings = logger.get("init_args") if isinstance(logger, Namespace) else None
            if settings is not None and settings.get("save_dir", 0) in (None, ".", "lightning_logs"):
                settings["save_dir"] = study["directory"]

    def instantiate_classes(self) -> None:
        """Build the study's parts, collecting all their faults, then the trainer."""
        self.config_init = self.config.clone()
        settings = self.config_init[self.subcommand]
        faults: list[str] = []
        sections = {"export": ("family",), "import": (), "plugins": ()}.get(str(self.subcommand), tuple(SECTIONS))
        for key in (*sections, "trainer"):
            _build(self._parser(self.subcommand), settings, key, faults)
        if faults:
            raise RecipeError(list(dict.fromkeys(faults)))
        self.datamodule = None
        if self.subcommand in _STUDY_VERBS:
            self.model = self._module(settings)
        else:
            self.model = settings["family"] if sections else None
        self.trainer = self.instantiate_trainer()

    def _module(self, settings: Namespace) -> SearchModule:
        study = Study(
            family=settings["family"],
            space=settings["search_space"],
            optimizer=settings["optimizer"],
            fitness=settings["fitness"],
            warm_starts=settings["warm_starts"],
            benchmark=settings["benchmark"],
            settings=settings["study"],
        )
        resolved = self._resolved()
        return SearchModule(
            study,
            identity_of(resolved),
            recipe=yaml.safe_dump(resolved, sort_keys=False, width=115),
            resume=bool(settings.get("resume")),
        )

    def _resolved(self) -> dict[str, Any]:
        """Return the recipe with every default filled in, as plain data that ``--config`` reads again."""
        parser = self._parser(self.subcommand)
        config = self.config[self.subcommand]
        data = yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))
        return {key: data[key] for key in (*SECTIONS, "plugins", "trainer") if key in data}


def _build(parser: LightningArgumentParser, settings: Namespace, key: str, faults: list[str]) -> None:
    """Instantiate one section in place; what a user can mend goes into ``faults``."""
    found: list[str] = []

    def instantiator(cls: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return cls(*args, **kwargs)
        except RecipeError as error:
            found.extend(error.faults)
            raise
        except TailorError as error:
            found.append(str(error))
            raise

    try:
        built = parser.instantiate(Namespace({key: settings[key]}), instantiators=[(instantiator, object, True)])
        settings[key] = built[key]
    except Exception as error:  # jsonargparse wraps what a constructor raised; the recorder has the original
        if not found and key != "trainer":
            raise
        faults.extend(f"{key}: {fault}" for fault in found or [clean_message(str(error))])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 for a mistake of the user, said in one message.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=r".*Experiment logs directory .* exists and is not empty.*")
    if args == ["--version"]:
        Console(highlight=False).print(f"tailorlib {__version__}")
        return 0
    try:
        quieten()
        if args[:1] == ["export"] and not {"--help", "-h"} & set(args) and export_command(args[1:]):
            return 0
        args = _expand_run(_expand_plugins(args))
        _load_plugins(args)
        _check_files(args)
        TailorCLI(args or ["--help"])
    except (TailorError, ArgumentError) as error:
        message = clean_message(str(error)) if isinstance(error, ArgumentError) else str(error)
        Console(stderr=True, highlight=False, soft_wrap=True).print("[red]tailor: error:[/] ", end="")
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message)
        return 2
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
    """Let a run folder stand for its recipe: ``export RUN``, ``evaluate RUN``, ``search --resume RUN``."""
    if args[:1] == ["import"] and len(args) > 1 and not args[1].startswith("-"):
        return ["import", "--source", *args[1:]]
    if not args or args[0] not in ("search", "evaluate", "export"):
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
    for spec in _named_plugins(args):
        load_plugin(spec)
    for registry in REGISTRIES:
        registry.load_all()


def _named_plugins(args: Sequence[str]) -> Iterator[str]:
    for path in _values_of(args, "--config", "-c"):
        specs = read_recipe(path).get("plugins") or []
        yield from map(str, specs if isinstance(specs, list) else [specs])
    yield from _values_of(args, "--plugins+")


def _check_files(args: Sequence[str]) -> None:
    """Report all faults of the recipe files at once, before the parser stops at the first."""
    files = _values_of(args, "--config", "-c")
    faults = [fault for path in files for fault in check_recipe(read_recipe(path))]
    needed = REQUIRED if args and args[0] in _STUDY_VERBS else REQUIRED[:1] if args[:1] == ["export"] else ()
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
