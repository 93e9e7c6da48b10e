"""A Lightning strategy for several devices that wraps nothing: a search has no gradients to reduce."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.nn import Module

from tailorlib.exceptions import EvaluationError
from tailorlib.search.ranks import gathered
from tailorlib.search.watch import Member, begin_watch, clone_of


class CandidateParallelStrategy(DDPStrategy):
    """Process groups and launching of DDP, without wrapping the module.

    Registered as ``candidates``: a process per device, launched by Lightning, torchrun or SLURM; each evaluates
    another candidate of a batch. DDP itself refuses to wrap a module without gradients.

    Raises:
        EvaluationError: If torchrun is to restart the processes, and couldn't.
    """

    def setup_environment(self) -> None:
        """Connect the processes."""
        _check_restarts()
        begin_watch([], self.local_rank)  # over the one that started this one, as long as they connect
        super().setup_environment()
        if dist.get_world_size() > 1:
            members = gathered(Member.here(self.global_rank))
            several = len({member.host for member in members}) > 1
            store = clone_of(dist.distributed_c10d._get_default_store()) if several else None
            begin_watch(members, self.global_rank, store)

    def configure_ddp(self) -> None:
        """Leave the module as it is."""

    def _setup_model(self, model: Module) -> Any:
        return model

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """Make the strategy known to ``Trainer(strategy="candidates")``."""
        strategy_registry.register("candidates", cls, description="one candidate per device")


def _check_restarts() -> None:
    """Refuse restarts that would wait for processes which are gone (https://github.com/pytorch/pytorch/issues/135712).

    With one store for all attempts, restarted processes find the addresses of the killed ones in it, and wait for
    them until the connection times out: half an hour.
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise EvaluationError(
            "torchrun restarts processes only if each attempt connects through a store of its own, got "
            f"--max-restarts={restarts} with one store for all. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every "
            "node, with --standalone or --rdzv-backend=c10d."
        )


if "candidates" not in StrategyRegistry:
    CandidateParallelStrategy.register_strategies(StrategyRegistry)
