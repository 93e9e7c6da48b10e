# ruff: noqa: T201
"""Time the evaluation engine against ``lm_eval.simple_evaluate`` and the machine's GEMM rate; run it as a script.

The limit counts what has to be computed: unique tokens x parameters of the decoder layers x 2, and scored rows x
parameters of the head x 2, at the rate of a square matrix product measured before and after in the same run.
Example::

    python tests/benchmarks/evaluation_speed.py MODEL TASK_FOLDER --tasks my_hellaswag my_piqa --limit 100
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.requests import TaskRequests, quiet_lm_eval

_clock = time.perf_counter


def gemm_rate(device: torch.device, dtype: torch.dtype, size: int, seconds: float = 2.0) -> float:
    """Return the rate of ``size``-cubed matrix products in FLOP/s."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    done, start = 0, _now(device)
    while _now(device) - start < seconds:
        a @ b
        done += 1
    return 2 * size**3 * done / (_now(device) - start)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _clock()


def needed_flops(model: PreTrainedModel, tokens: int, rows: int) -> float:
    """Return the multiplications and additions of the layers over all tokens and of the head over scored rows."""
    head = model.get_output_embeddings().weight.numel()
    decoder = model.get_decoder()
    layers = sum(p.numel() for p in decoder.layers.parameters())
    return 2.0 * (tokens * layers + rows * head)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or name of a causal language model")
    parser.add_argument("include_path", help="folder with lm-eval task files")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--row-tokens", type=int, nargs="+", default=[Engine.ROW_TOKENS])
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[Engine.TOKENS_PER_BATCH])
    parser.add_argument("--batch-size", type=int, default=16, help="of simple_evaluate; 0 to leave it out")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="one thread and CPU seconds: for a busy machine")
    args = parser.parse_args()
    if args.cpu_time:
        global _clock
        _clock = time.process_time
        torch.set_num_threads(1)

    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"machine: {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"command: {shlex.join(sys.argv)}")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    max_length = min(2048, model.config.max_position_embeddings)
    start = _clock()
    tasks = TaskRequests(
        args.tasks,
        Engine(tokenizer, device, max_length),
        include_path=args.include_path,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
    )
    print(f"compiled {len(tasks.requests)} requests in {_clock() - start:.1f} s")
    ours = float("inf")
    for row_tokens in args.row_tokens:
        for batch_tokens in args.batch_tokens:
            engine = Engine(tokenizer, device, max_length, batch_tokens, row_tokens=row_tokens)
            compiled = engine.compile(tasks.requests)
            for _ in range(args.repeats):
                before = gemm_rate(device, dtype, 1024 if device.type == "cpu" else 8192)
                start = _now(device)
                scores = engine.score(model, compiled)
                seconds = _now(device) - start
                found = tasks.evaluate(scores)
                metrics_seconds = _now(device) - start - seconds
                rate = (before + gemm_rate(device, dtype, 1024 if device.type == "cpu" else 8192)) / 2
                limit = needed_flops(model, compiled.tokens, compiled.plan.scored_rows) / rate
                ours = min(ours, seconds + metrics_seconds)
                print(
                    f"engine, rows of {row_tokens}, batches of {batch_tokens}: {seconds:.2f} s + metrics "
                    f"{metrics_seconds:.2f} s; {compiled.raw_tokens} tokens, {compiled.tokens} unique, "
                    f"{compiled.plan.padded_tokens} padded, {compiled.plan.scored_rows} scored rows; "
                    f"{compiled.tokens / seconds:.0f} unique tokens/s; GEMM {rate / 1e9:.0f} GFLOP/s, limit "
                    f"{limit:.2f} s: {limit / seconds:.0%} of it"
                )
    print("metrics:", {k: round(v, 4) for k, v in found.metrics.items()})
    if args.batch_size:
        theirs, metrics = simple_evaluate(model, tokenizer, max_length, args)
        same = {k: v for k, v in metrics.items() if found.metrics.get(k) != v}
        print(f"simple_evaluate, batch {args.batch_size}: {theirs:.2f} s; ratio {theirs / ours:.2f}")
        print("all metrics equal" if not same else f"different metrics: {same}")


def simple_evaluate(
    model: PreTrainedModel, tokenizer: object, max_length: int, args: argparse.Namespace
) -> tuple[float, dict[str, float]]:
    """Return the seconds and metrics of lm-eval on its own, the model given and the tasks loaded."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with quiet_lm_eval():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size, max_length=max_length)
        manager = TaskManager(include_path=args.include_path, include_defaults=False)
        start = _clock()
        results = lm_eval.simple_evaluate(
            lm,
            tasks=args.tasks,
            limit=args.limit,
            num_fewshot=args.num_fewshot,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=False,
        )
        seconds = _clock() - start
    metrics = {
        f"{task}/{key.removesuffix(',none')}": value
        for task, values in results["results"].items()
        for key, value in values.items()
        if key.endswith(",none") and "_stderr" not in key
    }
    return seconds, metrics


if __name__ == "__main__":
    main()
