"""What processes tell each other; nothing happens where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

from tailorlib.models.family import ModelFamily
from tailorlib.models.shared import SharedFolder
from tailorlib.search.watch import stop_watch

T = TypeVar("T")


def gathered(own: T) -> list[T]:
    """Return what every rank gives, in the order of the ranks."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [own]
    everyone: list[T] = [own] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


@contextmanager
def leaving_together() -> Iterator[None]:
    """Let every rank wait at the end of the block until all are there, for a week if need be; all ranks enter it.

    What one rank does alone at the end (a table, a model to write) can take longer than the half hour in which
    other messages have to arrive.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    group = dist.new_group(timeout=timedelta(days=7))
    dist.barrier(group=group)  # connects them now, and not when one of them is late
    if dist.get_rank() > 0:
        yield
        dist.barrier(group=group)
    else:
        stop_watch()  # it needs nobody for what it does alone
        yield
        with suppress(RuntimeError):  # one that waited is gone, and nothing with it
            dist.barrier(group=group)
    stop_watch()


def share_weights(family: ModelFamily, trainer: Trainer, device: torch.device) -> SharedFolder | None:
    """Let the processes of each node hold computed weights once; all ranks call it.

    Args:
        family: A prepared family.
        trainer: Knows the processes.
        device: Where candidates run: on CPUs there is something to share.

    Returns:
        The node's folder, in the process that made it; it goes when that is closed, or the process ends.
    """
    if device.type != "cpu" or trainer.world_size == 1:
        return None
    several = trainer.num_devices > 1  # devices are counted per node
    folder = SharedFolder() if several and trainer.local_rank == 0 else None
    made: dict[int, Path] = {}
    for node, path in gathered((trainer.node_rank, None if folder is None else folder.path)):
        if path is not None:
            made[node] = path
    if several:
        family.share_weights(made[trainer.node_rank])
    return folder
