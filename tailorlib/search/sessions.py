"""Where, when and with what a process works on a study."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

import torch

from tailorlib.journal import Journal
from tailorlib.models.precision import DtypeName


def recorded_dtype(journal: Journal) -> DtypeName | None:
    """Return the data type that a study computed in."""
    return cast("DtypeName | None", journal.header.environment.get("compute_dtype"))


def environment() -> dict[str, str]:
    """Return the versions that can change a study's numbers."""
    packages = ("tailorlib", "torch", "transformers", "lightning", "lm-eval", "nevergrad", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def changed_versions(journal: Journal, device: torch.device) -> list[str]:
    """Return what differs from what a study last ran with: ``"torch 2.12 -> 2.13"``, ``"device cpu -> cuda"``."""
    last = dict(journal.header.environment)
    if journal.sessions:
        session = journal.sessions[-1]
        last = {**session.get("versions", {}), **({"device": session["device"]} if "device" in session else {})}
    now = {**environment(), "device": device.type}
    return [f"{name} {last[name]} -> {now[name]}" for name in now if name in last and last[name] != now[name]]


def session_facts(ranks: int, device: torch.device) -> dict[str, Any]:
    """Return where and when a process begins to work on a study, and with what."""
    return {
        "time": moment(),
        "host": platform.node(),
        "process": os.getpid(),
        "ranks": ranks,
        "device": device.type,
        "versions": environment(),
    }


def moment() -> str:
    """Return the time now, in ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
