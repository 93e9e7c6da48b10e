"""A Lightning strategy for several devices that wraps nothing: a search has no gradients to reduce."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.nn import Module


class CandidateParallelStrategy(DDPStrategy):
    """Process groups and launching of DDP, without wrapping the module.

    Registered as ``candidates``: a process per device, launched by Lightning, torchrun or SLURM; each evaluates
    another candidate of a batch. DDP itself refuses to wrap a module without gradients.
    """

    def configure_ddp(self) -> None:
        """Leave the module as it is."""

    def _setup_model(self, model: Module) -> Any:
        return model

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """Make the strategy known to ``Trainer(strategy="candidates")``."""
        strategy_registry.register("candidates", cls, description="one candidate per device")


if "candidates" not in StrategyRegistry:
    CandidateParallelStrategy.register_strategies(StrategyRegistry)
