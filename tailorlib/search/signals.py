"""SIGTERM with several processes: the batch in hand ends, then all of them do."""

from __future__ import annotations

from types import FrameType

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


class SignalConnector(_SignalConnector):
    """Lightning's handlers, without the message that a rank sends to the others from inside of the handler.

    A rank that waits for the others' results handles no signal before it has them, and one that waits in its
    handler sends none: they would wait for each other until a time limit ends both. Lightning asks all ranks for
    signals before each batch anyway.
    """

    def _sigterm_notifier_fn(self, signum: int, _: FrameType) -> None:
        launcher = self.trainer.strategy.launcher
        if not self.received_sigterm and launcher is not None:
            launcher.kill(signum)
        self.received_sigterm = True


def listen(trainer: Trainer) -> None:
    """Put these handlers into a trainer that runs nothing yet."""
    trainer._signal_connector = SignalConnector(trainer)
