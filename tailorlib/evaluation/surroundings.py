"""What surrounds a call of lm-eval: silence, and its seeds."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import numpy as np
import torch

from tailorlib.evaluation.tasks import TaskSettings


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval's notes, progress bars and those of datasets off the screen; errors still pass."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):  # tqdm has no other switch that every version honours
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def lm_eval_seeds(settings: TaskSettings, device: torch.device) -> Iterator[None]:
    """Seed the global generators as ``simple_evaluate`` does, and leave them as they were.

    A task that shuffles gives the same documents here and there, and a model that samples the same text.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - tasks draw from the global one
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        random.seed(settings.random_seed)
        np.random.seed(settings.numpy_random_seed)  # noqa: NPY002
        torch.manual_seed(settings.torch_random_seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
