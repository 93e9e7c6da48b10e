"""LightningCLI for studies: sections of a recipe instead of one model and one data module."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.light import LIGHT, VERBS
from tailorlib.parser_messages import clean_message, placed
from tailorlib.plugins import class_names
from tailorlib.recipe import SECTIONS, identity_of
from tailorlib.registry import LOCAL
from tailorlib.search import strategy  # noqa: F401 (registers the strategies by name)
from tailorlib.search.module import SearchModule
from tailorlib.search.study import Study
from tailorlib.search.tracking import tracked_run
from tailorlib.search.trainer import TailorTrainer
from tailorlib.search.trainer_options import option_faults

STUDY_VERBS = ("search", "evaluate", "compensate", "plan")
"""Verbs that need a whole study."""
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
        about = (
            f"Cut and stitch language models. Beside the subcommands below there are {', '.join(LIGHT)}: see "
            "tailor VERB --help. With any verb: --quiet says nothing but errors; --json writes JSON lines to the "
            "standard output."
        )
        quiet = {"exit_on_error": False, "description": about}
        super().__init__(
            SearchModule,
            trainer_class=TailorTrainer,
            trainer_defaults=_TRAINER_DEFAULTS,
            save_config_callback=None,
            seed_everything_default=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={**quiet, **{verb: {"exit_on_error": False} for verb in VERBS}},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs, methods of :class:`TailorTrainer`, and their arguments that are no options."""
        return {verb: {"model"} for verb in VERBS}

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
        self._asked = self.config.clone()

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
            if settings is not None and logger["class_path"].endswith("WandbLogger"):
                _continue_run(settings, study, self.config["search"].get("resume"))

    def instantiate_classes(self) -> None:
        """Build the study's parts, collecting all their faults, then the trainer."""
        self.config_init = self.config.clone()
        settings = self.config_init[self.subcommand]
        faults: list[str] = []
        sections = {"export": ("family",), "import": (), "plugins": ()}.get(str(self.subcommand), tuple(SECTIONS))
        for key in (*sections, "trainer"):
            _build(self._parser(self.subcommand), settings, key, faults)
        faults += option_faults(settings["trainer"].as_dict())
        if faults:
            raise RecipeError(list(dict.fromkeys(faults)))
        self.datamodule = None
        if self.subcommand in STUDY_VERBS:
            self.model = self._module(settings)
        else:
            self.model = settings["family"] if sections else None
        self.trainer = self._trainer()

    def _trainer(self) -> TailorTrainer:
        """Make the trainer, and check it against a cluster's settings before anything is loaded."""
        try:
            trainer = self.instantiate_trainer()
            launcher = trainer.strategy.launcher
            environment = getattr(launcher, "cluster_environment", None)
            if environment is not None:
                environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
        except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
            raise RecipeError(f"The section 'trainer' can't be had here. Lightning says: {error}") from error
        return trainer  # type: ignore[return-value]  # of the trainer_class given above

    def _module(self, settings: Namespace) -> SearchModule:
        study = Study(
            family=settings["family"],
            space=settings["search_space"],
            optimizer=settings["optimizer"],
            fitness=settings["fitness"],
            warm_starts=settings["warm_starts"],
            benchmark=settings["benchmark"],
            scheduler=settings["scheduler"],
            objectives=settings["objectives"],
            compensation=settings["compensation"],
            validation=settings["validation"],
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
        """Return the recipe with every default filled in, as plain data that ``--config`` reads again.

        What is put into the run folder is left out: the folder may be moved before it is resumed.
        """
        parser = self._parser(self.subcommand)
        config = self._asked[self.subcommand]
        data = yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))
        recipe = {key: data[key] for key in (*SECTIONS, "plugins", "trainer") if key in data}
        return cast("dict[str, Any]", _short_names(recipe))


def _short_names(data: Any) -> Any:
    """Return plain data in which plugins of files have their short names: their modules are named by content."""
    if isinstance(data, dict):
        return {key: _short_names(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_short_names(value) for value in data]
    if isinstance(data, str) and data.startswith(LOCAL):
        short = data.rpartition(".")[2]
        return short if short in class_names() else data
    return data


def _continue_run(settings: Namespace, study: Namespace, resume: str | None) -> None:
    """Let a resumed study go on in its W&B run, unless the recipe names one; the run is called like the study."""
    folder = Path(study["directory"])
    if settings.get("name") is None:
        settings["name"] = folder.name
    if settings.get("project") is None:
        settings["project"] = "tailorlib"
    if (
        settings.get("id") is None
        and settings.get("version") is None
        and (resume or study["existing"] == "resume")
    ):
        settings["id"] = tracked_run(folder)[0]


def _build(parser: LightningArgumentParser, settings: Namespace, key: str, faults: list[str]) -> None:
    """Instantiate one section in place; what a user can mend goes into ``faults``."""
    found: list[str] = []

    def instantiator(cls: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return cls(*args, **kwargs)
        except TailorError as error:
            found.extend(error.faults)
            raise

    try:
        built = parser.instantiate(Namespace({key: settings[key]}), instantiators=[(instantiator, object, True)])
        settings[key] = built[key]
    except Exception as error:  # jsonargparse wraps what a constructor raised; the recorder has the original
        if not found and key != "trainer":
            raise
        faults.extend(placed(key, fault) for fault in found or [clean_message(str(error))])
