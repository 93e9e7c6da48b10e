"""Signals while a search runs: SIGTERM and SIGHUP end it after the batch in hand, a Ctrl-C can't get lost."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from tailorlib import endings
from tailorlib.search.deaths import excuse_all


class SignalConnector(_SignalConnector):
    """Lightning's handlers, with three differences.

    SIGTERM: without the message that a rank sends to the others from inside of the handler. A rank that waits for
    the others' results handles no signal before it has them, and one that waits in its handler sends none: they
    would wait for each other until a time limit ends both. Lightning asks all ranks for signals before each batch
    anyway.

    SIGHUP ends a search as SIGTERM does: the terminal is closed, the batch in hand is finished.

    SIGINT stays with :mod:`tailorlib.endings`, which remembers it.
    """

    def register_signal_handlers(self) -> None:
        """Register Lightning's handlers, and the one for SIGHUP where the process would end."""
        hangup = getattr(signal, "SIGHUP", None)
        ours = hangup is not None and endings.is_ours(hangup)
        super().register_signal_handlers()
        if ours and hangup is not None:
            self._register_signal(hangup, self._sigterm_notifier_fn)

    def _sigterm_notifier_fn(self, signum: int, _: FrameType | None) -> None:
        endings.note(signum)
        excuse_all()  # whoever asks may not wait for the candidate in hand
        launcher = self.trainer.strategy.launcher
        if not self.received_sigterm and launcher is not None:
            launcher.kill(signal.SIGTERM)
        self.received_sigterm = True

    @staticmethod
    def _has_already_handler(signum: Any) -> bool:
        return not endings.is_ours(signum) and _SignalConnector._has_already_handler(signum)


class Interrupts(Callback):
    """Ends the search before its next batch if a Ctrl-C was swallowed in the last one.

    Python raises its exception wherever it is, and that can be a destructor or the callback of a library, where
    every exception is printed and forgotten.
    """

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Raise the exception again."""
        if endings.received() == signal.SIGINT:
            raise endings.Stopped(signal.SIGINT)


def listen(trainer: Trainer) -> None:
    """Put these handlers into a trainer that runs nothing yet."""
    trainer._signal_connector = SignalConnector(trainer)
    trainer.callbacks.append(Interrupts())  # type: ignore[attr-defined]  # set by a connector
