# ruff: noqa: T201
"""A pocket family: a real network and real fine-tunes of it, whose trials take some hundredths of a second.

A small Llama is trained on text that every Python has (its standard library's source, the texts behind ``help()``,
generated arithmetic problems), and then on each of the three alone. Base and variants are folders as Transformers
writes them. They are made once, in a few minutes on two cores, and kept; files that have changed since are made
again.

Run as a script it makes the family and prints what each variant gains; ``pocket_landscape.py`` shows whether there
is something for a search to find. ::

    python tests/benchmarks/pocket_family.py --cache FOLDER --threads 2
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tailorlib_strategies.families import FineTuning
from tailorlib_strategies.families.training import training_rows
from tailorlib_strategies.fitness import Perplexity, WeightedMean
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.texts import ArithmeticProblems, Interleaved, PlainText, PydocTopics, StandardLibraryCode
from tailorlib_strategies.texts.splits import Split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.samples import SampledRequests
from tailorlib.fitness import Fitness, SampleResult
from tailorlib.models.cache import build_once, cache_root, sha256_of
from tailorlib.models.family import ModelFamily
from tailorlib.search.study import Study
from tailorlib.seeding import seed_for
from tailorlib.tailoring import BASE
from tailorlib.text import TextSource

DOMAINS = ("code", "prose", "arithmetic")
MANIFEST = "pocket_family.json"
END = "<|endoftext|>"
MAX_LENGTH = 256
STATE_BYTES = 2**28


@dataclass(frozen=True)
class Settings:
    """What a pocket family is made of.

    Args:
        layers: Number of layers.
        width: Size of the hidden states.
        feed_forward: Size of the layers' inner states.
        heads: Number of attention heads.
        vocabulary: Number of tokens, those of single bytes included.
        row: Tokens in a row of training text.
        batch: Rows in a step.
        base_tokens: Tokens that the base is trained on, all domains together.
        base_rate: Peak of its learning rate.
        variant_tokens: Tokens that each variant is then trained on.
        variant_rate: Peak of its learning rate.
        seed: Seed of the weights and of the order of the text.
    """

    layers: int = 12
    width: int = 96
    feed_forward: int = 256
    heads: int = 3
    vocabulary: int = 1024
    row: int = 128
    batch: int = 8
    base_tokens: int = 900_000
    base_rate: float = 4e-3
    variant_tokens: int = 100_000
    variant_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class PocketFamily:
    """A family on disk.

    Args:
        base: Folder of the base model and its tokenizer.
        candidates: Folder of each variant, by its domain.
        losses: Nats per token on held-out text, by model and domain.
        seconds: Wall time that making it took.
        fingerprint: Digest of all weights and of the tokenizer.
    """

    base: Path
    candidates: Mapping[str, Path]
    losses: Mapping[str, Mapping[str, float]]
    seconds: float
    fingerprint: str


class StudyParts(NamedTuple):
    """What a study over the pocket family takes.

    Args:
        family: Base and variants, float32.
        space: Removal of a share of the layers, selection and merges.
        fitness: What a search sees: short windows of each domain's ``search`` split.
        test: What it never sees: longer windows of each domain's ``test`` split.
    """

    family: ModelFamily
    space: PruningSpace
    fitness: Fitness
    test: Fitness


def pocket_family(
    cache: Path | None = None, settings: Settings | None = None, texts: Sequence[Path] = ()
) -> PocketFamily:
    """Return the pocket family, made now if it is not in the cache or its files have changed.

    Args:
        cache: Folder to keep it in; by default the library's own cache.
        settings: Its shape and training.
        texts: Plain text files that the base is trained on besides.
    """
    settings = settings or Settings()
    own = [PlainText(str(path)) for path in texts]
    words = [list(source(domain, "train").documents()) for domain in DOMAINS] + [list(t.documents()) for t in own]
    content = json.dumps([asdict(settings), words], sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:16]

    def build(target: Path) -> None:
        _build(target, settings, own)

    folder = build_once(
        (cache or cache_root()) / "pocket" / name, build, valid=lambda found: (found / MANIFEST).is_file()
    )
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return PocketFamily(
        base=folder / "base",
        candidates={domain: folder / domain for domain in DOMAINS},
        losses=manifest["losses"],
        seconds=manifest["seconds"],
        fingerprint=hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest(),
    )


def study_parts(family: PocketFamily, ratio: float = 0.25, windows: int = 16) -> StudyParts:
    """Return the parts of a study that removes a share of the layers and sees so many windows a domain."""
    return StudyParts(
        family=ModelFamily(
            str(family.base), {name: str(path) for name, path in family.candidates.items()}, dtype="float32"
        ),
        space=PruningSpace(LayerRemoval(ratio=ratio), merges=[TaskArithmetic()]),
        fitness=texts_of("search", windows=windows, length=20, documents=windows // 2),
        test=texts_of("test", windows=64, length=64, documents=32),
    )


class OneBatch(WeightedMean):
    """A weighted mean of perplexities, all of whose windows run together: three small batches take longer."""

    def _setup(self, engine: Engine) -> None:
        super()._setup(engine)
        requests = [self.parts[name]._requests.requests[i] for name, i in self._samples]
        self._windows = SampledRequests(engine, requests)

    def _score_samples(self, model: Any, samples: Sequence[int]) -> list[SampleResult]:
        return [log_likelihood for ((log_likelihood, _),) in self._windows.score(model, samples)]


def prepared(study: Study) -> Engine:
    """Prepare a study, and load its family; return an engine for windows of a few tokens.

    They run as plain rows: to share a window's first token costs more than it saves.
    """
    device = torch.device("cpu")
    study.prepare(device)
    engine = Engine(study.family.tokenizer, device, MAX_LENGTH, packing=False, state_bytes=STATE_BYTES)
    for fitness in (study.fitness, study.benchmark.fitness):
        if fitness is not None:
            fitness.setup(engine)
    study.family.load(device)
    return engine


def texts_of(split: Split, windows: int, length: int, documents: int) -> OneBatch:
    """Return the mean over the domains of 1 / perplexity, relative to the dense base.

    Args:
        split: ``search`` or ``test``.
        windows: Windows of each domain.
        length: Tokens of a window.
        documents: Documents that they come from.
    """
    return OneBatch(
        {
            domain: Perplexity(
                source(domain, split, documents), context_length=length, max_tokens=windows * length
            )
            for domain in DOMAINS
        }
    )


def source(domain: str, split: Split, documents: int | None = None) -> TextSource:
    """Return the text of a domain; all there is (1,500 arithmetic problems) by default."""
    if domain == "code":
        return StandardLibraryCode(split, documents or 10_000)
    if domain == "prose":
        return PydocTopics(split)
    return ArithmeticProblems(split, documents or 1_500)


# -- Making it ----------------------------------------------------------------------------------------------------


def _build(target: Path, settings: Settings, own: Sequence[TextSource]) -> None:
    started = time.perf_counter()
    everything = Interleaved([*(source(domain, "train") for domain in DOMAINS), *own]).documents()
    tokenizer = _tokenizer(everything, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("pocket", settings.seed))
        model = LlamaForCausalLM(_config(settings, tokenizer))
    _train(model, _batches(tokenizer, everything, settings, settings.base_tokens), settings.base_rate, BASE)
    held_out = {domain: _held_out(tokenizer, domain) for domain in DOMAINS}
    losses = {BASE: {domain: _loss(model, rows) for domain, rows in held_out.items()}}
    _save(model, tokenizer, target / "base")
    for domain in DOMAINS:
        variant = AutoModelForCausalLM.from_pretrained(target / "base", dtype=torch.float32)
        steps = _batches(tokenizer, source(domain, "train").documents(), settings, settings.variant_tokens)
        _train(variant, steps, settings.variant_rate, domain)
        losses[domain] = {other: _loss(variant, rows) for other, rows in held_out.items()}
        _save(variant, tokenizer, target / domain)
    manifest = {"files": _digests(target), "losses": losses, "seconds": time.perf_counter() - started}
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _tokenizer(documents: Sequence[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer; its vocabulary depends on the documents alone."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token=END, eos_token=END)


def _config(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _batches(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[str], settings: Settings, tokens: int
) -> list[torch.Tensor]:
    """Return full batches [batch, row] of up to so many tokens; a short text comes again, reordered."""
    found: list[torch.Tensor] = []
    left, epoch = tokens, 0
    while left >= settings.batch * settings.row:
        plan = FineTuning(PydocTopics(), tokens=left, context_length=settings.row, seed=settings.seed + epoch)
        rows = training_rows(tokenizer, documents, plan)
        found += [part for part in rows.split(settings.batch) if len(part) == settings.batch]
        left, epoch = left - rows.numel(), epoch + 1
    return found


def _train(model: Any, steps: Sequence[torch.Tensor], rate: float, name: str) -> None:
    """Train all weights with AdamW, a warm-up and a cosine decay."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    warm_up = max(1, len(steps) // 20)
    model.train()
    recent: list[float] = []
    for number, batch in enumerate(steps):
        done = max(0, number - warm_up) / max(1, len(steps) - warm_up)
        scale = min((number + 1) / warm_up, 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = [*recent[-49:], float(loss.detach())]
        if (number + 1) % 100 == 0 or number + 1 == len(steps):
            print(
                f"  {name}: step {number + 1}/{len(steps)}, {statistics.mean(recent):.3f} nats per token",
                flush=True,
            )
    model.eval()


def _held_out(tokenizer: PreTrainedTokenizerFast, domain: str) -> torch.Tensor:
    plan = FineTuning(PydocTopics(), tokens=16_384, context_length=128)
    return training_rows(tokenizer, source(domain, "test").documents(), plan)


@torch.inference_mode()
def _loss(model: Any, rows: torch.Tensor) -> float:
    parts = rows.split(16)
    losses = [float(model(input_ids=part, labels=part, use_cache=False).loss) * len(part) for part in parts]
    return sum(losses) / len(rows)


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


# -- The command --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how the family is made."""
    parser.add_argument("--cache", type=Path, help="folder to keep the family in; by default the library's cache")
    parser.add_argument("--text", type=Path, action="append", default=[], help="further text to train the base on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="for training")


def made_by(args: argparse.Namespace) -> PocketFamily:
    """Return the family that the arguments describe."""
    torch.set_num_threads(args.threads)
    return pocket_family(args.cache, Settings(seed=args.seed), args.text)


def show_models(made: PocketFamily) -> list[str]:
    """Print each model's loss on each domain; return the variants that are no better than the base."""
    print(f"made in {made.seconds:.0f} s; nats per token of held-out text\n")
    print(f"{'':14s}" + "".join(f"{domain:>14s}" for domain in DOMAINS))
    for name, losses in made.losses.items():
        print(f"{name:14s}" + "".join(f"{losses[domain]:14.3f}" for domain in DOMAINS))
    return [
        f"{d} is no better than the base on its text" for d in DOMAINS if made.losses[d][d] >= made.losses[BASE][d]
    ]


def main() -> None:
    """Make the family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    made = made_by(parser.parse_args())
    faults = show_models(made)
    print(f"\n{made.base.parent}")
    if faults:
        raise SystemExit("; ".join(faults))


if __name__ == "__main__":
    main()
