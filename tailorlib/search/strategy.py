"""A Lightning strategy for several devices that wraps nothing: a search has no gradients to reduce."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.nn import Module


class CandidateParallelStrategy(DDPStrategy):
    """Process groups and launching of DDP, without wrapping the module.

    Registered as ``candidates`` (a process per device, launched by Lightning, torchrun or SLURM) and
    ``candidates_spawn`` (processes started from this one). Each device evaluates another candidate of a batch.
    DDP itself refuses to wrap a module without gradients.
    """

    def configure_ddp(self) -> None:
        """Leave the module as it is."""

    def _setup_model(self, model: Module) -> Any:
        return model

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """Make the strategy known to ``Trainer(strategy=...)`` under its names."""
        for name, method in (("candidates", "popen"), ("candidates_spawn", "spawn")):
            strategy_registry.register(
                name, cls, description=f"one candidate per device, started by {method}", start_method=method
            )


if "candidates" not in StrategyRegistry:
    CandidateParallelStrategy.register_strategies(StrategyRegistry)
