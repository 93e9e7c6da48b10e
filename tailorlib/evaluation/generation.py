"""Generated text: tasks that let the live model write, through lm-eval's own Hugging Face class and a KV cache.

This module imports lm-eval, which takes seconds: import it inside functions.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tailorlib.evaluation.faults import is_out_of_memory, memory_figure, release_memory, where_it_breaks
from tailorlib.evaluation.lm import Encoder
from tailorlib.evaluation.tasks import TaskSettings
from tailorlib.exceptions import DataError, EvaluationError
from tailorlib.seeding import seed_for

_log = logging.getLogger(__name__)


class Generator:
    """Lets live models write what tasks ask for.

    Args:
        tokenizer: The base model's tokenizer; a copy is used, since lm-eval changes it.
        device: Where the models live.
        max_length: The models' context length; prompts lose tokens from the left so that the text fits.
        instances: The requests of lm-eval, in its order.
        batch_size: Number of texts generated at once. It is halved, once and for good, if memory runs out.
        arguments: Further arguments of lm-eval's Hugging Face model.

    Raises:
        DataError: If a request asks for more tokens than the context has.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        max_length: int,
        instances: Sequence[Instance],
        batch_size: int,
        arguments: Mapping[str, Any],
    ) -> None:
        self.tokenizer, self.device, self.max_length = copy.deepcopy(tokenizer), device, max_length
        self.instances, self.batch_size, self.arguments = tuple(instances), batch_size, dict(arguments)
        self._halved = False
        encoder = Encoder(tokenizer, max_length, arguments)
        self._prompts = {id(instance): encoder.tok_encode(instance.args[0]) for instance in self.instances}
        settings = {id(i): normalize_gen_kwargs(i.args[1], encoder.max_gen_toks) for i in self.instances}
        self._room = {id(i): self._room_for(i, int(settings[id(i)]["max_gen_toks"])) for i in self.instances}
        self._sampled = {key: bool(found["do_sample"]) for key, found in settings.items()}

    @property
    def tokens(self) -> int:
        """Number of tokens that run through the model: prompts, and texts at their longest."""
        return sum(map(self.tokens_of, self.instances))

    def tokens_of(self, instance: Instance) -> int:
        """Return the same of one request."""
        room = self._room[id(instance)]
        return int(instance.repeats) * (self.max_length - room + min(len(self._prompts[id(instance)]), room))

    def seeded(
        self, settings: TaskSettings, documents: Mapping[str, Collection[int]] | None = None
    ) -> list[tuple[Sequence[Instance], TaskSettings]]:
        """Return which requests are generated at once, and the settings with their seed.

        All of them are, as lm-eval does it. Of some documents, a text that is drawn at random stands alone and has
        a seed of its own, so that it doesn't depend on the others.

        Args:
            settings: The settings.
            documents: Numbers of the documents by task; all by default.
        """
        if documents is None:
            return [(self.instances, settings)]
        chosen = [i for i in self.instances if i.doc_id in documents.get(i.task_name, ())]
        together = [i for i in chosen if not self._sampled[id(i)]]
        found: list[tuple[Sequence[Instance], TaskSettings]] = [(together, settings)] if together else []
        for i in chosen:
            if self._sampled[id(i)]:
                seed = seed_for(settings.torch_random_seed, i.task_name, i.doc_id, i.idx)
                found.append(([i], replace(settings, torch_random_seed=seed)))
        return found

    @property
    def truncated(self) -> list[bool]:
        """Say for each request whether its prompt loses tokens."""
        return [len(self._prompts[id(i)]) > self._room[id(i)] for i in self.instances]

    @torch.inference_mode()
    def generate(
        self, model: PreTrainedModel, instances: Sequence[Instance] | None = None
    ) -> dict[int, list[str]]:
        """Return the texts of each instance, as many as its repeats, by the instance's ``id``.

        Args:
            model: A live causal language model.
            instances: Some of :attr:`instances`; all by default.

        Raises:
            EvaluationError: If the model gives NaN, with the layer where it begins, or if memory runs out even
                with half the batch size.
        """
        asked = [
            instance
            for instance in (self.instances if instances is None else instances)
            for _ in range(instance.repeats)
        ]
        texts = self._attempt(model, asked)
        if texts is None:  # outside of the exception, which holds on to the memory
            texts = self._attempt(model, asked)
        assert texts is not None  # the second failure raises
        found: dict[int, list[str]] = {}
        for instance, text in zip(asked, texts, strict=True):
            found.setdefault(id(instance), []).append(text)
        return found

    def _attempt(self, model: PreTrainedModel, asked: list[Instance]) -> list[str] | None:
        """Generate; if memory runs out for the first time, halve the batch size and return ``None``."""
        try:
            with _watched(model) as nan_seen:
                texts: list[str] = self._lm(model).generate_until(asked, disable_tqdm=True)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            figure = f"Memory ran out while {self.batch_size} texts were generated at once: {memory_figure(error)}"
            if self._halved:
                raise EvaluationError(f"{figure} That is half of what the recipe asks for. Lower it.") from error
        else:
            if nan_seen():
                first = id(asked[0])
                ids = torch.tensor([self._prompts[first][-self._room[first] :]], device=self.device)
                decoder = model.get_decoder()
                raise EvaluationError(
                    where_it_breaks(model, lambda: decoder(ids, use_cache=False).last_hidden_state)
                )
            return texts
        self._halved, self.batch_size = True, max(1, self.batch_size // 2)
        _log.warning("%s At most %d at once from now on.", figure, self.batch_size)
        release_memory(self.device)
        return None

    def _lm(self, model: PreTrainedModel) -> HFLM:
        return HFLM(
            pretrained=model,
            tokenizer=self.tokenizer,
            batch_size=self.batch_size,
            max_length=self.max_length,
            **self.arguments,
        )

    def _room_for(self, instance: Instance, wanted: int) -> int:
        """Return how many tokens of a prompt fit beside the text that may follow."""
        if wanted >= self.max_length:
            raise DataError(
                f"A text and its prompt fit into the context of {self.max_length} tokens; "
                f"{instance.task_name!r} lets the model write {wanted}. Set gen_kwargs: {{max_gen_toks: ...}} or "
                "raise study.max_length."
            )
        return self.max_length - wanted


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[Any]:
    """Watch the head's output; yields a function that says whether there was a NaN."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: Any, output: Tensor) -> None:
        found = output.isnan().any()  # stays on the device until the end
        seen[:] = [found | seen[0] if seen else found]

    handle = model.get_output_embeddings().register_forward_hook(look)
    try:
        yield lambda: bool(seen and seen[0])
    finally:
        handle.remove()
