"""Text that models write themselves: calibration where there is no data, of what the models know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tailorlib.console import bar
from tailorlib.evaluation.text import prefix_token
from tailorlib.exceptions import DataError
from tailorlib.models.cache import build_once, cache_root
from tailorlib.models.digests import model_contents
from tailorlib.seeding import torch_generator
from tailorlib.tailoring import BASE, Tailoring

if TYPE_CHECKING:
    from tailorlib.models.family import ModelFamily

FORMAT = 1
_FILE = "rows.json"
_ROWS_AT_ONCE = 32


def written_rows(family: ModelFamily, model: str, tokens: int, length: int, seed: int) -> list[tuple[int, ...]]:
    """Return rows of tokens that a model of a family writes, from the cache if it wrote them before.

    It samples from its own distribution, token by token (temperature 1, nothing cut off), from the token that
    begins a text. A text that ends is followed by another one.

    Args:
        family: A loaded family.
        model: Name of the model in it.
        tokens: Number of tokens, those that begin a row not counted; at least these.
        length: Length of a row.
        seed: Seed of the draws.

    Raises:
        DataError: If the model gives NaN.
        ModelError: If the cache can't be written.
    """
    number = -(-tokens // (length - 1))
    content = {
        "format": FORMAT,
        "models": {name: model_contents(family.sources[name]) for name in sorted({BASE, model})},
        "model": model,
        "rows": number,
        "length": length,
        "seed": seed,
        "dtype": str(family.compute_dtype),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def build(folder: Path) -> None:
        live = family.stitch(Tailoring.whole(model, family.layout.num_layers))
        start, draws = prefix_token(family.tokenizer), torch_generator(seed, "written", model)
        rows: list[list[int]] = []
        with torch.inference_mode(), bar(f"Text written by {model}", number) as advance:
            while len(rows) < number:
                count = min(_ROWS_AT_ONCE, number - len(rows))
                rows += _write(live, start, count, length, draws).tolist()
                for _ in range(count):
                    advance()
        (folder / _FILE).write_text(json.dumps(rows), encoding="utf-8")

    folder = build_once(cache_root() / "written" / key, build)
    rows: Sequence[Sequence[int]] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return [tuple(row) for row in rows]


def _write(model: PreTrainedModel, start: int, rows: int, length: int, draws: torch.Generator) -> Tensor:
    """Return token ids that a model draws, [rows, length], on the CPU; each row begins with a token that is given.

    Draws are made on the CPU, so that they depend on the device by the digits of its probabilities alone.
    """
    ids = torch.full((rows, 1), start)
    cache = DynamicCache(config=model.config)
    while ids.shape[1] < length:
        logits = model(input_ids=ids[:, -1:].to(model.device), past_key_values=cache, use_cache=True).logits
        weights = logits[:, -1].float().softmax(-1).cpu()
        if not bool(torch.isfinite(weights).all()):
            raise DataError("A model that is to write calibration text gives NaN. Give a text instead.")
        ids = torch.cat([ids, torch.multinomial(weights, 1, generator=draws)], dim=1)
    return ids
