from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tailorlib.evaluation import text
from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.hidden_states import block_influence
from tailorlib.evaluation.text import first_tokens, text_loss, windows
from tailorlib.exceptions import DataError
from tailorlib.testing.tiny import tiny_tokenizer

DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Ärger über Öl: naïve café, 日本語のテキスト and 🙂🙂 emoji. " * 2,
    "x",
    "",
    "def add(a, b): return a + b\n\n",
]
CPU = torch.device("cpu")


def test_all_windows_together_are_the_text() -> None:
    tokenizer = tiny_tokenizer()
    found = windows(tokenizer, DOCUMENTS, 16)
    assert sum(w.num_bytes for w in found) == sum(len(d.encode()) for d in DOCUMENTS)
    tokens = [len(tokenizer(d, add_special_tokens=False)["input_ids"]) for d in DOCUMENTS]
    assert sum(len(w.request.continuation) for w in found) == sum(tokens)
    assert all(w.request.context == (tokenizer.bos_token_id,) for w in found)
    assert all(1 <= len(w.request.continuation) <= 16 for w in found)


@pytest.mark.parametrize("budget", [1, 7, 16, 40, 75])
def test_a_budget_is_met_exactly_and_is_a_prefix_of_a_larger_one(budget: int) -> None:
    found = windows(tiny_tokenizer(), DOCUMENTS, 16, budget, seed=3)
    more = windows(tiny_tokenizer(), DOCUMENTS, 16, budget + 30, seed=3)
    assert sum(len(w.request.continuation) for w in found) == budget
    assert found[:-1] == more[: len(found) - 1]
    last = found[-1].request.continuation
    assert more[len(found) - 1].request.continuation[: len(last)] == last


def test_a_small_budget_sees_many_documents() -> None:
    found = windows(tiny_tokenizer(), [f"{i} " * 100 for i in range(20)], 8, 80)
    assert len({tiny_tokenizer().decode(w.request.continuation).split()[0] for w in found}) == 10


def test_the_seed_decides_the_order() -> None:
    first, again, other = (windows(tiny_tokenizer(), DOCUMENTS, 8, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first != other


PROSE = "The quick brown fox, aged 12, jumps over Ärger and 日本語 🙂 twice.\n\n  Then it rests. " * 40
WORD = "abcdefghijklmnop" * 200
"""One word: no tokenizer splits it before it merges."""


@pytest.mark.parametrize("document", [PROSE, WORD, "a" * 3000, PROSE[:300] + WORD + PROSE])
@pytest.mark.parametrize("piece", [64, 500, 4000])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(
    document: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    expected = windows(tokenizer, [document], 16)
    ids = tokenizer(document, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(text, "_PIECE", piece)
    monkeypatch.setattr(text, "_OVERLAP", 32)
    assert windows(tokenizer, [document], 16) == expected
    assert windows(tokenizer, [document], 16, 64) == expected[:4]
    assert [list(first_tokens(tokenizer, document, n)) for n in (1, 50, 10**6)] == [ids[:1], ids[:50], ids]


def test_no_more_of_a_line_of_megabytes_is_tokenised_than_is_needed() -> None:
    tokenizer, seen = tiny_tokenizer(), list[int]()

    class Counting(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, document: str, **options: Any) -> Any:
            seen.append(len(document))
            return super().__call__(document, **options)

    tokenizer.__class__ = Counting
    line = "The quick brown fox. " * 500_000
    found = windows(tokenizer, [line], 256, 2000)
    assert sum(len(window.request.continuation) for window in found) == 2000
    assert sum(seen) < 10**6 < len(line)


def test_text_without_a_token_is_refused() -> None:
    with pytest.raises(DataError, match="at least one token, got 2 documents"):
        windows(tiny_tokenizer(), ["", ""], 8)


def test_loss_is_that_of_the_model_on_its_labels(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny()
    found = windows(tokenizer, DOCUMENTS, 16)
    engine = Engine(tokenizer, CPU, 256)
    loss = text_loss(
        found, engine.score(model, engine.compile([w.request for w in found])).log_likelihood.tolist()
    )
    nats = tokens = 0.0
    for window in found:
        ids = torch.tensor([window.request.context + window.request.continuation])
        with torch.no_grad():
            nats += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert loss.nats_per_token == pytest.approx(nats / tokens, abs=1e-5)
    assert loss.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert loss.probability == pytest.approx(1 / loss.perplexity)
    num_bytes = sum(len(d.encode()) for d in DOCUMENTS)
    assert loss.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, abs=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "gemma3_text"])
def test_block_influence_is_the_turn_of_hidden_states(tiny: Callable[..., Any], model_type: str) -> None:
    model, tokenizer = tiny(model_type, "sdpa")
    found = windows(tokenizer, DOCUMENTS, 16)
    engine = Engine(tokenizer, CPU, 256)
    layers = list(model.get_decoder().layers)
    hooks = [dict(layer._forward_hooks) for layer in layers]
    influence = block_influence(model, layers, engine.compile([w.request for w in found]))
    assert [dict(layer._forward_hooks) for layer in layers] == hooks
    cosines: list[list[torch.Tensor]] = [[] for _ in layers]
    for window in found:
        ids = torch.tensor([(window.request.context + window.request.continuation)[:-1]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        for i in range(len(layers) - 1):  # the last state of transformers is after the final norm
            cosines[i].append(torch.cosine_similarity(states[i][0], states[i + 1][0], dim=-1))
    expected = [1 - torch.cat(c).double().mean().item() for c in cosines[:-1]]
    assert influence.tolist()[:-1] == pytest.approx(expected, abs=1e-5)
    assert 0 <= influence[-1] <= 2
