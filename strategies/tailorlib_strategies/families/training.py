"""The training itself: LoRA on all linear layers, with Lightning and PEFT."""

from __future__ import annotations

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailorlib.console import console
from tailorlib.evaluation.text import windows
from tailorlib.exceptions import DataError
from tailorlib.seeding import numpy_generator, seed_for
from tailorlib_strategies.families.fine_tuning import FineTuning, FineTuningReport

_WARM_UP = 0.1
_IGNORED = -100
_Batch = dict[str, Tensor]


def fine_tune(
    base: Path,
    fine_tuning: FineTuning,
    target: Path,
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    trust_remote_code: bool = False,
) -> FineTuningReport:
    """Train a LoRA adapter, compare it with the base, and save it with its report.

    Args:
        base: Folder of the base model and its tokenizer.
        fine_tuning: The settings.
        target: Folder for the adapter; it exists.
        name: Name of the variant, for the progress bar.
        dtype: Data type of the computation; the adapter itself is trained in float32.
        trust_remote_code: Whether the base's own code may be run.

    Raises:
        DataError: If there is too little text.
        ModelError: If the variant does not become better than the base.
    """
    training, held_out = fine_tuning.documents()
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
    rows = training_rows(tokenizer, training, fine_tuning)
    batches = [rows[i : i + fine_tuning.batch_size] for i in range(0, len(rows), fine_tuning.batch_size)]
    steps = [{"input_ids": batch, "labels": batch} for batch in batches]
    comparison = held_out_batches(tokenizer, held_out, fine_tuning)
    devices = range(torch.cuda.device_count())
    with _quiet(), torch.random.fork_rng(devices), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(seed_for("fine-tuning", fine_tuning.seed))
        module = FineTuningModule(base, fine_tuning, len(steps), dtype, trust_remote_code=trust_remote_code)
        bar = _ProgressBar(f"Fine-tuning {name}", len(steps) + 2 * len(comparison))
        with bar.progress:
            trainer = _trainer(scratch, dtype, bar)
            before = _perplexity(trainer, module, comparison)
            started = time.perf_counter()
            trainer.fit(module, _loader(steps))
            seconds = time.perf_counter() - started
            after = _perplexity(trainer, module, comparison)
        report = FineTuningReport(
            rows.numel(), round(seconds, 1), str(dtype).removeprefix("torch."), before, after
        )
        report.check(name)
        module.model.save_pretrained(target, save_embedding_layers=False)
    report.write(target)
    return report


class FineTuningModule(pl.LightningModule):
    """A base model under LoRA, trained with AdamW, a warm-up and a linear decay.

    Args:
        base: Folder of the base model.
        fine_tuning: The settings.
        steps: Number of steps that the training will take.
        dtype: Data type of the frozen weights.
        trust_remote_code: Whether the base's own code may be run.
    """

    def __init__(
        self,
        base: Path,
        fine_tuning: FineTuning,
        steps: int,
        dtype: torch.dtype,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__()
        self.fine_tuning, self.steps = fine_tuning, steps
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=trust_remote_code)
        lora = LoraConfig(
            r=fine_tuning.rank, lora_alpha=2 * fine_tuning.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(model, lora)  # its own matrices are float32 whatever the base's are
        self.held_out_nats, self.held_out_tokens = 0.0, 0

    def training_step(self, batch: _Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch's tokens."""
        return self._loss(batch)

    def on_validation_epoch_start(self) -> None:
        """Start to sum anew."""
        self.held_out_nats, self.held_out_tokens = 0.0, 0

    def validation_step(self, batch: _Batch, batch_idx: int) -> None:
        """Add up the losses of the batch's tokens."""
        scored = int((batch["labels"][:, 1:] != _IGNORED).sum())
        self.held_out_nats += float(self._loss(batch)) * scored
        self.held_out_tokens += scored

    def configure_optimizers(self) -> Any:
        """Return AdamW on the adapter, and its schedule."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.fine_tuning.learning_rate, weight_decay=0.0)
        warm_up = max(1, round(_WARM_UP * self.steps))

        def scale(step: int) -> float:
            return min((step + 1) / warm_up, (self.steps - step) / max(1, self.steps - warm_up))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, batch: _Batch) -> Tensor:
        from peft.helpers import disable_input_dtype_casting

        # Autocast turns the adapter's matrices to bfloat16; PEFT would turn the activations to float32 first.
        with disable_input_dtype_casting(self.model, active=torch.is_autocast_enabled(self.device.type)):
            loss: Tensor = self.model(**batch, use_cache=False).loss
        return loss


class _ProgressBar(pl.Callback):
    """One bar for the whole of a fine-tuning, with its name."""

    def __init__(self, description: str, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = getattr(rank_zero_only, "rank", 0) == 0
        self.progress = Progress(*columns, console=console, disable=not shown, transient=True)
        self._task = self.progress.add_task(description, total=total)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.progress.advance(self._task)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.progress.advance(self._task)


def training_rows(tokenizer: Any, documents: Sequence[str], fine_tuning: FineTuning) -> Tensor:
    """Return the text as full rows of tokens, [rows, context_length], in a seeded order.

    Each stretch of text stands behind the token that it also gets when its perplexity is measured.

    Raises:
        DataError: If the text doesn't fill one row.
    """
    length = fine_tuning.context_length
    found = windows(tokenizer, documents, length - 1, fine_tuning.tokens, fine_tuning.seed)
    stream = [token for w in found for token in (*w.request.context, *w.request.continuation)]
    number = min(len(stream), fine_tuning.tokens) // length
    if number == 0:
        raise DataError(
            f"A fine-tuning needs a row of {length} tokens, got {len(stream)} tokens of text and a budget of "
            f"{fine_tuning.tokens}. Give more text, or a smaller context_length."
        )
    rows = torch.tensor(stream[: number * length]).view(number, length)
    order = numpy_generator("fine-tuning", fine_tuning.seed).permutation(number)
    return rows[torch.from_numpy(order)]


def held_out_batches(tokenizer: Any, documents: Sequence[str], fine_tuning: FineTuning) -> list[_Batch]:
    """Return windows of the held-out text in padded batches; padding and the first token are not scored."""
    found = windows(
        tokenizer, documents, fine_tuning.context_length, fine_tuning.held_out_tokens, fine_tuning.seed
    )
    tokens = [torch.tensor((*w.request.context, *w.request.continuation)) for w in found]
    tokens.sort(key=len)
    budget = fine_tuning.batch_size * fine_tuning.context_length
    batches: list[list[Tensor]] = [[]]
    for row in tokens:
        if batches[-1] and (len(batches[-1]) + 1) * len(row) > budget:
            batches.append([])
        batches[-1].append(row)
    pad = torch.nn.utils.rnn.pad_sequence
    # The rows are padded on the right, where a causal model's earlier tokens can't see it.
    return [
        {
            "input_ids": pad(rows, batch_first=True, padding_value=0),
            "labels": pad(rows, batch_first=True, padding_value=_IGNORED),
        }
        for rows in batches
    ]


def _perplexity(trainer: pl.Trainer, module: FineTuningModule, batches: list[_Batch]) -> float:
    trainer.validate(module, _loader(batches), verbose=False)
    return math.exp(min(module.held_out_nats / module.held_out_tokens, 700.0))


def _loader(batches: list[_Batch]) -> DataLoader[_Batch]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a dataset


def _trainer(scratch: str, dtype: torch.dtype, bar: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
        max_epochs=1,
        gradient_clip_val=1.0,
        callbacks=[bar],
        default_root_dir=scratch,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute what the libraries below say and a user can't act on."""
    from transformers.utils import logging as transformers_logging

    names = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "bitsandbytes")
    levels = {name: logging.getLogger(name).level for name in names}
    bars = transformers_logging.is_progress_bar_enabled()
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
