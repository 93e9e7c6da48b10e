"""Tiny random models with a real tokenizer: a whole family on disk in well under a second, offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

_LINES = (
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b): return a + b",
    "Anna has 3 apples and buys 4 more; now she has 7.",
    "Question: what is the opposite of hot? Answer: cold",
)

_SHAPE: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
"""What every tiny model has, as far as its config knows the entry."""


def tiny_tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on a few lines; it encodes every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>"
    )


def tiny_config(model_type: str, *, num_layers: int, tokenizer: PreTrainedTokenizerFast, **config: Any) -> Any:
    """Return the transformers config of a tiny model.

    Args:
        model_type: The ``model_type`` of a transformers config.
        num_layers: Number of decoder layers.
        tokenizer: Gives the size of the vocabulary and the special tokens.
        config: Further config values, over the tiny defaults.
    """
    kind = CONFIG_MAPPING[model_type]
    known = {field.name for field in fields(kind)}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    wanted = {**_SHAPE, "num_hidden_layers": num_layers, "vocab_size": len(tokenizer), **tokens, **config}
    # one name for each entry: GPT-2's num_hidden_layers is its n_layer
    named = {n if n in known else kind.attribute_map.get(n, n): value for n, value in wanted.items()}
    return kind(**{name: value for name, value in named.items() if name in known or name in config})


def write_tiny_model(
    directory: Path,
    *,
    seed: int = 0,
    model_type: str = "llama",
    num_layers: int = 6,
    dtype: torch.dtype = torch.float32,
    noise_from: Path | None = None,
    **config: Any,
) -> Path:
    """Write a tiny random causal model and its tokenizer to a folder.

    Args:
        directory: Folder to create.
        seed: Seed of the weights.
        model_type: The ``model_type`` of a transformers config.
        num_layers: Number of decoder layers.
        dtype: Data type of the stored weights.
        noise_from: A model written earlier whose weights are taken, with a little noise: a "fine-tune" of it.
        config: Further config values, over the tiny defaults.

    Returns:
        The folder.
    """
    tokenizer = tiny_tokenizer()
    model_config = tiny_config(model_type, num_layers=num_layers, tokenizer=tokenizer, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(model_config).to(dtype)
        with torch.no_grad():
            if noise_from is None:
                _liven(model)
            else:
                model.load_state_dict(AutoModelForCausalLM.from_pretrained(noise_from, dtype=dtype).state_dict())
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_tiny_family(directory: Path, *, candidates: int = 2, **settings: Any) -> dict[str, Path]:
    """Write a base and its fine-tunes; the settings are those of :func:`write_tiny_model`.

    Returns:
        The folders by family name: ``"base"``, ``"a"``, ``"b"``, ...
    """
    folders = {"base": write_tiny_model(directory / "base", seed=0, **settings)}
    for i, name in enumerate("abcdefgh"[:candidates], start=1):
        folders[name] = write_tiny_model(directory / name, seed=i, noise_from=folders["base"], **settings)
    return folders


def _liven(model: nn.Module) -> None:
    """Make every tensor of a fresh model count: each layer would be almost the identity, and all norms alike."""
    for parameter in model.parameters():
        if (
            parameter.min() == parameter.max()
        ):  # a norm is all ones, a bias all zeros: out of place it wouldn't show
            parameter.add_(0.1 * torch.randn_like(parameter))
        else:
            parameter.mul_(5.0)
