# ruff: noqa: T201
"""Peak memory of an export, as a whole process, on a synthetic family of any size; run it as a script.

Writes a base and two candidates, all different, as bfloat16 shards, then exports a tailoring that removes, selects
and TIES-merges layers. The peak is the largest resident set of the process, mapped file pages included, as the
kernel counts it. The limit that it is held to is 1.5 times the largest shard plus 500 MB. Example::

    python tests/benchmarks/export_memory.py /big/disk/family --layers 27
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5632, 32_000
SHARD = 5e8
GRAIN = 2**22


def write_model(folder: Path, layers: int, seed: int, size: float) -> None:
    """Write a random Llama in shards: for each tensor, numbers from a random place in a long list of them."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        vocab_size=VOCABULARY,
        num_attention_heads=16,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in AutoModelForCausalLM.from_config(config).state_dict().items()}
    base = torch.randn(GRAIN, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    change = torch.randn(GRAIN, generator=torch.Generator().manual_seed(seed)).mul_(0.002 if seed else 0)
    grain = (base + change).bfloat16()
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    shards: list[dict[str, Any]] = [{}]
    used = 0
    for name, shape in shapes.items():
        if used + 2 * shape.numel() > size:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += 2 * shape.numel()
    where = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            name: grain.roll(17 * len(name) + i)
            .repeat(-(-shape.numel() // GRAIN))[: shape.numel()]
            .view(shape)
            .clone()
            for name, shape in shard.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def tailoring(layers: int) -> dict[str, Any]:
    """Return a tailoring, as plain data: a quarter of the layers removed, every third of the others merged."""
    removed = range(layers // 2, layers // 2 + layers // 4)
    kept = [i for i in range(layers) if i not in removed]
    plans: list[dict[str, Any]] = []
    for at, i in enumerate(kept):
        if at % 3 == 2:
            merge = {"operation": "TIES", "params": {"density": 0.5, "scale": 1.0}, "base": f"base:{i}"}
            plans.append({"sources": [f"a:{i}", f"b:{i}"], **merge})
        else:
            plans.append({"sources": [f"{('base', 'a')[at % 3]}:{i}"]})
    return {"tailoring": 1, "embeddings": "base", "norm": "a", "head": "b", "layers": plans}


def main() -> None:
    """Make the family if it isn't there, export, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the family is, or is made (9 GB for 27 layers)")
    parser.add_argument("--layers", type=int, default=27, help="of each model; 27 make 3 GB")
    parser.add_argument("--tailor", default="tailor", help="the command")
    args = parser.parse_args()
    folder = args.folder.absolute()
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a child's peak counts from its parent's
        for seed, name in enumerate(("base", "a", "b")):
            if not (folder / name).is_dir():
                print(f"writing {folder / name}")
                pool.apply(write_model, (folder / name, args.layers, seed, SHARD))
    recipe = {"base": str(folder / "base"), "candidates": {n: str(folder / n) for n in "ab"}}
    (folder / "recipe.yaml").write_text(json.dumps({"family": {"class_path": "ModelFamily", "init_args": recipe}}))
    (folder / "tailoring.yaml").write_text(json.dumps(tailoring(args.layers)))
    command = [*shlex.split(args.tailor), "export", "--config", str(folder / "recipe.yaml")]
    command += ["--tailoring", str(folder / "tailoring.yaml"), "--output", str(folder / "exported")]
    shutil.rmtree(folder / "exported", ignore_errors=True)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS')=}")
    print(f"versions: tailorlib {version('tailorlib')}, torch {version('torch')}")
    print(f"command: {shlex.join(command)}")
    print(f"load before: {os.getloadavg()[0]:.2f}")
    start = time.perf_counter()
    _, status, usage = os.wait4(os.posix_spawnp(command[0], command, os.environ), 0)
    if status:
        sys.exit("the export failed")
    seconds = time.perf_counter() - start
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    sizes = {n: sorted(f.stat().st_size for f in (folder / n).glob("*.safetensors")) for n in ("base", "exported")}
    limit = 1.5 * sizes["base"][-1] + 5e8
    for name, found in sizes.items():
        print(f"{name}: {sum(found) / 1e9:.2f} GB, {len(found)} files, the largest {found[-1] / 1e6:,.0f} MB")
    verdict = "kept" if peak <= limit else "broken"
    print(f"{seconds:.1f} s, peak {peak / 1e6:,.0f} MB; limit {limit / 1e6:,.0f} MB: {verdict}")


if __name__ == "__main__":
    main()
