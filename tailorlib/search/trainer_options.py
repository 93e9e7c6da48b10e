"""Options of Lightning's Trainer that a search has no use for: refused, with what does what was meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO, LayerSync, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy

from tailorlib.exceptions import shown
from tailorlib.search.strategy import CandidateParallelStrategy

_TRIALS = "would end a search before its last trial: set study.trials, or trainer.max_time for a limit of time"
_LOOPS = "concerns a loop that a search does not run: the section 'validation' scores the best on other data"
_GRADIENTS = "concerns gradients, and a search has none: leave it out"
_CHECKPOINT = "would write checkpoints without content: the journal in the run folder is what a study resumes from"
_EPOCHS = "concerns epochs, and a search is one epoch of study.trials candidates: leave it out"
_NEUTRAL: Mapping[str, tuple[Sequence[Any], str]] = {
    "fast_dev_run": ((False, 0), _TRIALS),
    "max_epochs": ((1,), _EPOCHS),
    "min_epochs": ((None, 0, 1), _EPOCHS),
    "max_steps": ((-1,), _TRIALS),
    "min_steps": ((None, 0), "would not let a search end when it is over: set study.trials"),
    "limit_train_batches": ((None, 1.0), _TRIALS),
    "overfit_batches": ((0, 0.0), _TRIALS),
    **dict.fromkeys(("limit_val_batches", "limit_test_batches", "limit_predict_batches"), ((None, 1.0), _LOOPS)),
    "val_check_interval": ((None, 1.0), _LOOPS),
    "check_val_every_n_epoch": ((None, 1), _LOOPS),
    "num_sanity_val_steps": ((None, 0), _LOOPS),
    "accumulate_grad_batches": ((1,), _GRADIENTS),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), ((None,), _GRADIENTS)),
    **dict.fromkeys(("detect_anomaly", "sync_batchnorm"), ((False,), _GRADIENTS)),
    "enable_checkpointing": ((False,), _CHECKPOINT),
    "model_registry": ((None,), _CHECKPOINT),
    "enable_model_summary": ((None, False), "would show an empty table: 'tailor plan' says what the models take"),
    "inference_mode": ((True,), "concerns a loop that a search does not run: leave it out"),
    "use_distributed_sampler": ((False,), "would shuffle the numbers of the trials: leave it out"),
    "reload_dataloaders_every_n_epochs": ((0,), _EPOCHS),
    "barebones": ((False,), "would switch off the loggers and the progress bar, and saves a search no time"),
    "precision": (
        (None, 32, "32", "32-true"),
        "would cast inside of Lightning's loop only: the models' data type is family.init_args.dtype",
    ),
}
"""The values of each option that change nothing, and what others would do."""
STRATEGIES = ("auto", "candidates", "single_device")
_BY_HAND = (
    "is not made for a search, which has no gradients to reduce and no weights to shard: use 'candidates' for "
    "several devices"
)


def option_faults(options: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each option of a trainer that would cut a search short, or that changes nothing.

    Args:
        options: Arguments of the Trainer, instances built; what is missing is passed over.
    """
    faults = [
        f"trainer.{name}: {shown(options[name])} {why}."
        for name, (allowed, why) in _NEUTRAL.items()
        if name in options and not any(_same(options[name], value) for value in allowed)
    ]
    strategy = options.get("strategy", "auto")
    ours = isinstance(strategy, SingleDeviceStrategy | CandidateParallelStrategy)
    if not ours and strategy not in STRATEGIES:
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        faults.append(f"trainer.strategy: {shown(name)} {_BY_HAND}.")
    plugins = options.get("plugins") or []
    faults += [
        f"trainer.plugins: {type(plugin).__name__} changes nothing in a search, or its numbers behind its back: "
        "leave it out. Plugins can be environments of a cluster."
        for plugin in (plugins if isinstance(plugins, list) else [plugins])
        if isinstance(plugin, CheckpointIO | LayerSync | Precision)
    ]
    return faults


def strategy_for(options: Mapping[str, Any]) -> Any:
    """Return the strategy that ``auto`` stands for: Lightning would take DDP for several processes."""
    strategy, devices = options.get("strategy", "auto"), options.get("devices", 1)
    if devices in ("auto", -1, "-1"):  # all of an accelerator's; on a CPU Lightning's "auto" is one process
        devices = torch.accelerator.device_count() if options.get("accelerator", "auto") != "cpu" else 1
    several = devices not in (0, 1, "1", None)
    if isinstance(devices, list):
        several = len(devices) > 1
    elif isinstance(devices, str) and "," in devices:
        several = len([part for part in devices.split(",") if part.strip()]) > 1
    return "candidates" if strategy == "auto" and (several or options.get("num_nodes", 1) > 1) else strategy


def _same(given: object, allowed: object) -> bool:
    """Compare, and tell 1 (one batch) from 1.0 (all of them), and both from true."""
    return type(given) is type(allowed) and given == allowed
