"""Text that models write themselves: drawn from their own distribution, once, and the same again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_cases import CUT, Words
from model_cases import CPU, LAYERS
from tailorlib_strategies.compensations import Bridge

from tailorlib import Tailoring
from tailorlib.calibration.mixture import Calibration
from tailorlib.calibration.written import written_rows
from tailorlib.compensation import CompensationContext
from tailorlib.evaluation.text import prefix_token
from tailorlib.exceptions import RecipeError
from tailorlib.models.family import ModelFamily
from tailorlib.models.terms import keep_terms


@pytest.mark.parametrize("case", ["llama", "gpt_neox", "gemma3_text", "falcon", "mixtral"])
def test_tokens_are_drawn_from_the_models_own_distribution(case_family: Any, case: str) -> None:
    """Cached keys and values give what the whole row gives: draws are as likely as its logits say."""
    family: ModelFamily = case_family(case)
    rows = torch.tensor(written_rows(family, "a", 90, 10, seed=3))
    assert rows.shape == (10, 10)
    assert set(rows[:, 0].tolist()) == {prefix_token(family.tokenizer)}
    model = family.stitch(Tailoring.whole("a", LAYERS))
    with torch.inference_mode():
        log_p = model(input_ids=rows).logits[:, :-1].double().log_softmax(-1)
    drawn = -log_p.gather(2, rows[:, 1:, None]).mean()
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    spread = float((log_p.exp() * (log_p + entropy) ** 2).sum(-1).mean() / rows[:, 1:].numel()) ** 0.5
    assert abs(float(drawn - entropy)) < 4 * spread + 1e-3


def test_it_is_written_once(llama: ModelFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written_rows(llama, "base", 40, 11, seed=0)
    assert written_rows(llama, "base", 40, 11, seed=1) != first
    monkeypatch.setattr(ModelFamily, "stitch", lambda *_: pytest.fail("it is written again"))
    assert written_rows(llama, "base", 40, 11, seed=0) == first


def test_models_write_domains_of_their_own(llama: ModelFamily, tmp_path: Path) -> None:
    keep_terms(llama, tmp_path, cached=True)
    mixture = Calibration({"words": Words()}, ["base", "a"], tokens=900, context_length=32)
    bridge = Bridge(mixture, "base")
    bridge.check_family(llama)
    bridge.prepare(CompensationContext(llama, CPU, 2, lambda tailoring: 0.0))
    assert set(bridge.table.left(1, 4)) == {"words", "written by base", "written by a"}
    assert bridge.complete(CUT).terms


def test_who_writes_is_a_model_of_the_family(llama: ModelFamily) -> None:
    with pytest.raises(RecipeError, match=r"written_by names models .* got 'bsae'. Did you mean 'base'"):
        Bridge(Calibration(written_by=["bsae"]), "base").check_family(llama)
