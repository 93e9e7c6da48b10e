"""Signals that end a search: SIGTERM with several processes, and a Ctrl-C that can't get lost."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


class SignalConnector(_SignalConnector):
    """Lightning's handlers, with two differences.

    SIGTERM: without the message that a rank sends to the others from inside of the handler. A rank that waits for
    the others' results handles no signal before it has them, and one that waits in its handler sends none: they
    would wait for each other until a time limit ends both. Lightning asks all ranks for signals before each batch
    anyway.

    SIGINT: is remembered. Python raises ``KeyboardInterrupt`` wherever it is, and that can be a destructor or the
    callback of a library, where every exception is printed and forgotten.
    """

    received_sigint = False

    def register_signal_handlers(self) -> None:
        """Register Lightning's handlers, and one for Ctrl-C where Python's own is in force."""
        super().register_signal_handlers()
        self.received_sigint = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._register_signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, signum: int, _: FrameType | None) -> NoReturn:
        self.received_sigint = True
        raise KeyboardInterrupt

    def _sigterm_notifier_fn(self, signum: int, _: FrameType) -> None:
        launcher = self.trainer.strategy.launcher
        if not self.received_sigterm and launcher is not None:
            launcher.kill(signum)
        self.received_sigterm = True


class Interrupts(Callback):
    """Ends the search before its next batch if a Ctrl-C was swallowed in the last one."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Raise ``KeyboardInterrupt`` again."""
        if trainer._signal_connector.received_sigint:  # type: ignore[attr-defined]  # ours, by listen()
            raise KeyboardInterrupt


def listen(trainer: Trainer) -> None:
    """Put these handlers into a trainer that runs nothing yet."""
    trainer._signal_connector = SignalConnector(trainer)
    trainer.callbacks.append(Interrupts())  # type: ignore[attr-defined]  # set by a connector
