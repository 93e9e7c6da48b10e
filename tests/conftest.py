"""What every test is held to: no network, and no trace in the global random generators."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import random
import socket
from collections.abc import Iterator
from typing import Any

import nevergrad  # noqa: F401  (its import draws from the global generators: let it be before any test)
import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in {"localhost", "127.0.0.1", "::1", socket.gethostname()}:
            raise RuntimeError(f"Tests run offline; this one connects to {address}.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def global_randomness_untouched() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = _states()
    yield
    changed = [name for name, state in _states().items() if state != before[name]]
    assert not changed, f"The test drew from the global random generator of {', '.join(changed)}."


def _states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": repr(np.random.get_state(legacy=False)),  # noqa: NPY002
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
