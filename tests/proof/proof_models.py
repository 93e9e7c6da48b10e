"""Models whose files are damaged or lie: refused with a message, or read as transformers reads them."""

from __future__ import annotations

import json
import random
import resource
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from proof_cases import Case, FaultClass
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import ModelError, TailorError
from tailorlib.models.checkpoint import INDEX, SINGLE, SafetensorsCheckpoint
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring

CPU = torch.device("cpu")
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    10**9,
    2**63,
    0.5,
    float("nan"),
    "",
    "x",
    "../x",
    [],
    [3],
    {},
    "\x1b[31m",
)
QUANTISED: tuple[dict[str, Any], ...] = (
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "fp8"},
    {"quant_method": "unheard"},
    {},
)
TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int": lambda t: t.to(torch.int32),
    "bool": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "flat": lambda t: t.reshape(-1),
    "short": lambda t: t[:-1].contiguous(),
    "empty": lambda t: t[:0].contiguous(),
    "wide": lambda t: torch.cat([t, t], -1),
    "scalar": lambda t: t.sum(),
}
FOUR_GIB = 4 * 2**30
LONGEST = 6000
"""Characters of a message: as many as the files that it names need."""


class Models(FaultClass):
    """Damaged and lying configs, headers, indices, tensors, tokenizers and adapters."""

    name = "hostile models"
    checked = "one message within 4 GiB and a minute, or the logits that transformers has of the same files"

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        base = self.bench.family / "base"
        config = json.loads((base / "config.json").read_text())
        size = (base / SINGLE).read_bytes()[:8]
        header = 8 + struct.unpack("<Q", size)[0]
        found = [
            Case(f"config {key} {role}", partial(self._config, key, role), len(VALUES) + 1)
            for key in [*config, "text_config", "auto_map", "layer_types", "pruned_heads"]
            for role in ("base", "a")
        ]
        found += [Case(f"quantised {i}", partial(self._quantised, i)) for i in range(len(QUANTISED))]
        found += [Case(f"header bytes {i}+", partial(self._header, i), 64) for i in range(0, header, 64)]
        found += [
            Case(f"{kind} tensor {i} of {role}", partial(self._tensor, kind, i, role))
            for i, kind in enumerate([*TENSORS, "gone", "more", "nan"] * 3)
            for role in ("base", "a")
        ]
        files = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
        found += [Case(f"{name} damaged", partial(self._file, name), 12) for name in files]
        found += [Case(f"index {i}", partial(self._index, i), 10) for i in range(8)]
        return [*found, *(Case(f"adapter {key}", partial(self._adapter, key), len(VALUES)) for key in ADAPTER)]

    def _copied(self, folder: Path, role: str) -> Path:
        target = folder / role
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.bench.family / role, target)
        return target

    def _judge(self, folder: Path, role: str, what: str) -> None:
        places = {name: self.bench.family / name for name in ("base", "a")} | {role: folder / role}
        judge(places["base"], {"a": places["a"]}, role, what)

    def _config(self, key: str, role: str, folder: Path) -> None:
        file = self._copied(folder, role) / "config.json"
        config = json.loads(file.read_text())
        for value in VALUES:
            file.write_text(json.dumps({**config, key: value}))
            self._judge(folder, role, f"{key}: {value!r}")
        file.write_text(json.dumps({k: v for k, v in config.items() if k != key}))
        self._judge(folder, role, f"no {key}")

    def _quantised(self, number: int, folder: Path) -> None:
        file = self._copied(folder, "base") / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": QUANTISED[number]}))
        self._judge(folder, "base", str(QUANTISED[number]))

    def _header(self, first: int, folder: Path) -> None:
        whole = (self.bench.family / "base" / SINGLE).read_bytes()
        expected = load_file(self.bench.family / "base" / SINGLE)
        rng = random.Random(first)
        for i in range(first, first + 64):
            damaged = bytearray(whole)
            damaged[i] ^= 1 << rng.randrange(8)
            (folder / SINGLE).unlink(missing_ok=True)  # a new file: an old one may be mapped
            (folder / SINGLE).write_bytes(damaged)
            with told(f"byte {i}", ModelError):
                checkpoint = SafetensorsCheckpoint(folder)
                names = [name for name in checkpoint.keys() if name in expected]  # noqa: SIM118
                assert all(checkpoint.tensor(n).nbytes == expected[n].nbytes for n in names), (
                    f"byte {i}: a tensor of another size"
                )

    def _tensor(self, kind: str, number: int, role: str, folder: Path) -> None:
        file = self._copied(folder, role) / SINGLE
        tensors = load_file(file)
        name = sorted(tensors)[number * 7 % len(tensors)]
        if kind == "gone":
            del tensors[name]
        elif kind == "more":
            tensors["model.layers.99.more"] = torch.ones(2)
        elif kind == "nan":
            tensors[name][..., :1] = float("nan")
        else:
            tensors[name] = TENSORS[kind](tensors[name])
        file.unlink()
        save_file(tensors, file, metadata={"format": "pt"})
        self._judge(folder, role, f"{kind} {name}")

    def _file(self, name: str, folder: Path) -> None:
        file = self._copied(folder, "base") / name
        content = file.read_bytes()
        damaged = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"\0" * 100]
        damaged += [content[: len(content) * i // 5] for i in range(1, 5)]
        for other in damaged:
            file.write_bytes(other)
            self._judge(folder, "base", f"{name}: {other[:40]!r}")

    def _index(self, seed: int, folder: Path) -> None:
        target, rng = self._copied(folder, "base"), random.Random(seed)
        tensors = load_file(target / SINGLE)
        (target / SINGLE).rename(target / "1.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "1.safetensors")}
        for _ in range(10):
            weights = dict(index["weight_map"])
            name = rng.choice(sorted(weights))
            weights[name] = rng.choice(
                ["../x", "/etc/passwd", "2.safetensors", "", 3, None, "1.safetensors/", "~"]
            )
            (target / INDEX).write_text(json.dumps({**index, "weight_map": weights}))
            self._judge(folder, "base", f"{name} in {weights[name]!r}")

    def _adapter(self, key: str, folder: Path) -> None:
        tensors = load_file(self.bench.family / "a" / SINGLE)
        target = "model.layers.0.self_attn.q_proj"
        out, inside = tensors[f"{target}.weight"].shape
        low = {"lora_A": torch.full((2, inside), 0.01), "lora_B": torch.full((out, 2), 0.01)}
        for value in VALUES:
            (folder / "a").mkdir(exist_ok=True)
            (folder / "a" / "adapter_config.json").write_text(json.dumps({**ADAPTER, key: value}))
            save_file(
                {f"base_model.model.{target}.{n}.weight": t for n, t in low.items()},
                folder / "a" / "adapter_model.safetensors",
            )
            with limited(), told(f"adapter {key}: {value!r}", TailorError):
                _logits(
                    ModelFamily(str(self.bench.family / "base"), {"a": str(folder / "a")}, dtype="float32"), "a"
                )


ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": None,
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "fan_in_fan_out": False,
    "layers_to_transform": None,
    "target_parameters": None,
}


@contextmanager
def told(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Let errors for the user pass, if they are messages that can be shown."""
    try:
        yield
    except errors as error:
        message = str(error)
        assert message and len(message) < LONGEST, f"{what}: {len(message)} characters"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


@contextmanager
def limited() -> Iterator[None]:
    """Let the process have four GiB more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + FOUR_GIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _logits(family: ModelFamily, model: str) -> torch.Tensor:
    family.load(CPU)
    family.tokenizer("a b")
    with torch.inference_mode():
        return family.stitch(Tailoring.whole(model, family.layout.num_layers))(_TOKENS).logits


_TOKENS = torch.arange(5, 45).reshape(2, 20)


def judge(base: Path, candidates: dict[str, Path], role: str, what: str) -> None:
    """Check that a family is refused, or that its model is that of transformers."""
    found = None
    with limited(), told(what, TailorError):
        family = ModelFamily(str(base), {n: str(p) for n, p in candidates.items()}, dtype="float32")
        found = _logits(family, role)
    if found is None or role != "base":
        return
    try:
        expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        with torch.inference_mode():
            logits = expected(_TOKENS).logits
    except Exception:
        return  # transformers can't, so nothing can be compared
    assert torch.allclose(found, logits, atol=1e-4, equal_nan=True), f"{what}: other logits than transformers'"
