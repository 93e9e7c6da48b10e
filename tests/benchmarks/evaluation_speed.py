# ruff: noqa: T201
"""Time the evaluation engine against ``lm_eval.simple_evaluate`` and the machine's GEMM rate; run it as a script.

Both score the same live model. ``simple_evaluate`` gets it in memory, in lm-eval's Hugging Face class, and builds
its requests at every call, as a search with it does; the engine has compiled them before. Three sets of questions:
zero-shot HellaSwag, ARC-easy and PIQA; few-shot MMLU; the same with three times the questions, which share more.

The limit counts what has to be computed: unique tokens x parameters of the decoder layers x 2, and scored rows x
parameters of the head x 2, at the rate of a square matrix product measured before and after in the same run.
Example::

    python tests/benchmarks/evaluation_speed.py --data DATA --model MODEL --threads 2
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from local_tasks import MMLU, write_tasks
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.requests import TaskRequests, quiet_lm_eval
from tailorlib.evaluation.tasks import TaskSettings

ZERO_SHOT = ("local_hellaswag", "local_arc_easy", "local_piqa")
_clock = time.perf_counter


def machine(device: torch.device) -> str:
    """Return the processor or graphics card, and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def gemm_rate(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Return the rate of square matrix products in FLOP/s."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    done, start = 0, now(device)
    while now(device) - start < seconds:
        a @ b
        done += 1
    return 2 * size**3 * done / (now(device) - start)


def now(device: torch.device) -> float:
    """Return the time in seconds when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _clock()


def needed_flops(model: PreTrainedModel, tokens: int, rows: int) -> float:
    """Return the multiplications and additions of the layers over all tokens and of the head over scored rows."""
    layers = sum(p.numel() for p in model.get_decoder().layers.parameters())
    return 2.0 * (tokens * layers + rows * model.get_output_embeddings().weight.numel())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--model", required=True, help="folder or name of a causal language model")
    parser.add_argument("--questions", type=int, default=100, help="of each zero-shot task")
    parser.add_argument("--mmlu-questions", type=int, nargs="*", default=[10, 30], help="of each subject")
    parser.add_argument("--subjects", type=int, default=10, help="of MMLU")
    parser.add_argument("--shots", type=int, default=5, help="examples of MMLU")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--layout", choices=["single", "rows", "plain"], help="of the engine; by the device if left out"
    )
    parser.add_argument("--row-tokens", type=int)
    parser.add_argument("--tokens-per-batch", type=int, default=Engine.TOKENS_PER_BATCH)
    parser.add_argument("--batch-size", type=int, default=16, help="of simple_evaluate; 0 to leave it out")
    parser.add_argument("--repeats", type=int, default=1, help="the median of as many runs of each")
    parser.add_argument("--max-length", type=int, default=4096)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count CPU seconds: for a busy machine, one thread"
    )
    args = parser.parse_args()
    if args.cpu_time:
        global _clock
        _clock, args.threads = time.process_time, 1
    if args.threads:
        torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    print(
        f"machine: {machine(device)}; python {platform.python_version()}, torch {torch.__version__}, {args.dtype}"
    )
    print(f"command: {shlex.join(sys.argv)}\n")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(args.data, Path(folder), args.subjects)
        bench = Bench(model, tokenizer, folder, args)
        if args.questions:
            bench.run(f"zero-shot, {args.questions} questions each", ZERO_SHOT, args.questions, None)
        for questions in args.mmlu_questions:
            label = f"MMLU {args.shots}-shot, {args.subjects} subjects x {questions}"
            bench.run(label, (MMLU,), questions, args.shots)
    print("\n" + bench.table())


class Bench:
    """Times the engine and ``simple_evaluate`` on sets of questions, in turns."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, folder: str, args: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.folder, self.args = model, tokenizer, folder, args
        self.device = model.device
        self.lines: list[tuple[str, ...]] = [
            (
                *(
                    "questions",
                    "GEMM, GFLOP/s",
                    "raw tokens",
                    "unique",
                    "scored rows",
                    "engine, s",
                    "of the limit",
                ),
                *("simple_evaluate, s", "ratio", "metrics"),
            )
        ]

    def run(self, label: str, tasks: Sequence[str], limit: int, shots: int | None) -> None:
        """Time one set of questions."""
        args, device = self.args, self.device
        max_length = min(args.max_length, self.model.config.max_position_embeddings)
        engine = Engine(
            self.tokenizer,
            device,
            max_length,
            args.tokens_per_batch,
            row_tokens=args.row_tokens,
            layout=args.layout,
        )
        start = _clock()
        settings = TaskSettings(include_path=self.folder, limit=limit, num_fewshot=shots)
        ours = TaskRequests(tasks, engine, settings)
        compiled = engine.compile(ours.requests)
        print(f"{label}: {len(ours.requests)} requests compiled in {_clock() - start:.1f} s", flush=True)
        found: dict[str, Any] = {}
        engine.score(self.model, engine.compile(ours.requests[:8]))  # touch every weight: a search is warm, too

        def own() -> None:
            found["ours"] = ours.evaluate(engine.score(self.model, compiled)).metrics

        def peer() -> None:
            found["theirs"] = self._simple_evaluate(tasks, limit, shots, max_length)

        shares, seconds, theirs = [], [], []
        rates = [gemm_rate(device, self.model.dtype)]
        for _ in range(args.repeats):
            seconds.append(self._timed(own))
            rates.append(gemm_rate(device, self.model.dtype))
            flops = needed_flops(self.model, compiled.tokens, compiled.plan.scored_rows)
            shares.append(flops / statistics.mean(rates[-2:]) / seconds[-1])
            if args.batch_size:
                theirs.append(self._timed(peer))
                rates.append(gemm_rate(device, self.model.dtype))
        self._report(label, compiled, found, rates, shares, seconds, theirs)

    def _timed(self, do: Callable[[], None]) -> float:
        start = now(self.device)
        do()
        return now(self.device) - start

    def _simple_evaluate(
        self, tasks: Sequence[str], limit: int, shots: int | None, max_length: int
    ) -> dict[str, float]:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        with quiet_lm_eval():
            lm = HFLM(
                pretrained=self.model,
                tokenizer=self.tokenizer,
                batch_size=self.args.batch_size,
                max_length=max_length,
            )
            results = lm_eval.simple_evaluate(
                lm,
                tasks=list(tasks),
                limit=limit,
                num_fewshot=shots,
                task_manager=TaskManager(include_path=self.folder, include_defaults=False),
                bootstrap_iters=0,
                log_samples=False,
            )
        return {
            f"{task}/{key.removesuffix(',none')}": value
            for task, values in results["results"].items()
            for key, value in values.items()
            if key.endswith(",none") and "_stderr" not in key
        }

    def _report(
        self,
        label: str,
        compiled: Any,
        found: dict[str, Any],
        rates: list[float],
        shares: list[float],
        seconds: list[float],
        theirs: list[float],
    ) -> None:
        plan, rate, own = compiled.plan, statistics.mean(rates), statistics.median(seconds)
        print(
            f"  {plan.layout} rows, {len(plan.batches)} batches, {plan.padded_tokens} tokens with padding; "
            f"{plan.tokens / own:.0f} unique tokens/s; GEMM {', '.join(f'{r / 1e9:.0f}' for r in rates)} GFLOP/s; "
            f"engine {', '.join(f'{s:.2f} s ({share:.0%})' for s, share in zip(seconds, shares, strict=True))}"
            + (f"; simple_evaluate {', '.join(f'{s:.2f} s' for s in theirs)}" if theirs else ""),
            flush=True,
        )
        peer = statistics.median(theirs) if theirs else None
        wrong = [k for k, v in found.get("theirs", {}).items() if found["ours"].get(k) != v]
        self.lines.append(
            (
                *(label, f"{rate / 1e9:.0f}", f"{plan.raw_tokens}", f"{plan.tokens}", f"{plan.scored_rows}"),
                *(
                    f"{own:.1f}",
                    f"{statistics.median(shares):.0%}",
                    f"{peer:.1f}" if peer else "",
                    f"{peer / own:.2f}" if peer else "",
                ),
                f"{', '.join(wrong)} differ" if wrong else "equal" if peer else "",
            )
        )

    def table(self) -> str:
        """Return the results as a Markdown table."""
        head, *rows = self.lines
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *rows))


if __name__ == "__main__":
    main()
