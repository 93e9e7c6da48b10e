"""A fitness of one's own: how often the model's first choice is the token that follows."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tailorlib import Fitness, Measurement
from tailorlib.evaluation.engine import Engine


class FirstChoice(Fitness):
    """Share of tokens that are the model's first choice; a sample is a sentence."""

    def __init__(self, sentences: list[str]) -> None:
        self.sentences = sentences

    @property
    def num_samples(self) -> int:
        """Number of sentences."""
        return len(self.sentences)

    def _setup(self, engine: Engine) -> None:
        encoded = [engine.tokenizer(text, return_tensors="pt")["input_ids"] for text in self.sentences]
        self._ids = [ids.to(engine.device) for ids in encoded]  # each [1, tokens]

    @torch.inference_mode()
    def _score_samples(self, model: PreTrainedModel, samples: Sequence[int]) -> list[list[int]]:
        return [self._count(model, self._ids[i]) for i in samples]

    def _count(self, model: PreTrainedModel, ids: torch.Tensor) -> list[int]:
        right = model(ids[:, :-1]).logits.argmax(dim=-1) == ids[:, 1:]
        return [int(right.sum()), right.numel()]

    def _summarise(self, results: Sequence[list[int]]) -> Measurement:
        share = sum(right for right, _ in results) / sum(tokens for _, tokens in results)
        return Measurement(score=share, metrics={"first_choice": share})
