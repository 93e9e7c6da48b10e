"""Text to calibrate tiny families on, and what their streams are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from model_cases import LAYERS
from torch import Tensor, nn

from tailorlib import Tailoring, TextSource
from tailorlib.calibration.mixture import Calibration, CalibrationRows, lay_out
from tailorlib.models.family import ModelFamily

CUT = Tailoring.whole("base", LAYERS, without=[2, 3])


class Words(TextSource):
    """Made-up words: enough of them for the tiny models' widths."""

    def __init__(self, first: int = 0, number: int = 40) -> None:
        self.first, self.number = first, number

    def documents(self) -> list[str]:
        return [
            " ".join(f"w{(i * i + j * 7) % 97}" for j in range(40))
            for i in range(self.first, self.first + self.number)
        ]


def calibration(**settings: Any) -> Calibration:
    return Calibration({"one": Words(), "two": Words(100)}, **{"tokens": 1200, "context_length": 32, **settings})


def rows_of(family: ModelFamily, **settings: Any) -> CalibrationRows:
    return lay_out(calibration(**settings), family.tokenizer, None)


def streams(
    model: Any, rows: Sequence[Sequence[int]], layers: str, norm: str, which: Sequence[int]
) -> list[Tensor]:
    """Return inputs of some layers of a model, or of its final norm, over rows without their first tokens."""
    found: dict[int, list[Tensor]] = {i: [] for i in which}
    modules = [*model.get_submodule(layers), model.get_submodule(norm)]

    def hook(i: int) -> Any:
        def keep(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            found[i].append((args[0] if args else kwargs["hidden_states"])[0, 1:])

        return keep

    handles = [modules[i].register_forward_pre_hook(hook(i), with_kwargs=True) for i in which]
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return [torch.cat(found[i]) for i in which]
