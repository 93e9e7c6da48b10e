# ruff: noqa: T201
"""Time a whole evolutionary search against what its peers do with each candidate; run it as a script.

A search over zero-shot HellaSwag, ARC-easy and PIQA, or over 5-shot MMLU, proposes candidates. Then:

- The peers' way: candidates, evenly spread over the search and each right after its trial, are merged through
  files (by tailorlib's own exporter,
  which is faster than ``mergekit-yaml``), loaded with ``from_pretrained`` and scored with
  ``lm_eval.simple_evaluate`` and HFLM. The metrics must be the same.
- Ablations: the first candidates of the search twice more, each time with one idea switched off.
- Fidelities: candidates by successive halving (a ninth of the samples for all, a third for the best third, all for
  the best ninth), each rung going on from the one before, against all samples for all candidates.

Everything is timed in one run, and the arms take turns. Example::

    python tests/benchmarks/search_speed.py --base BASE --candidate math=FOLDER --candidate code=FOLDER \\
        --data DATA --threads 2
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from evaluation_speed import ZERO_SHOT, machine
from local_tasks import MMLU, write_tasks
from scipy.stats import spearmanr
from tailorlib_strategies.fitness import LMEval
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import Nevergrad
from tailorlib_strategies.search_spaces import PruningSpace
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tailorlib.evaluation import forward, scoring
from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.packing import Batch
from tailorlib.evaluation.requests import quiet_lm_eval
from tailorlib.evaluation.workspace import Workspace
from tailorlib.export import export_model
from tailorlib.models.family import ModelFamily
from tailorlib.search.evaluator import Evaluator, Outcome
from tailorlib.search.proposer import Proposer
from tailorlib.search.study import Study, StudySettings
from tailorlib.trial import Trial, incumbent

MAX_LENGTH = 2048


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--candidate", action="append", default=[], help="NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--questions", type=int, default=12, help="of each task")
    parser.add_argument("--mmlu", type=int, default=0, metavar="SUBJECTS", help="5-shot MMLU instead")
    parser.add_argument("--peer-trials", type=int, default=6)
    parser.add_argument("--ablation-trials", type=int, default=12)
    parser.add_argument("--halving-trials", type=int, default=18)
    parser.add_argument("--batch-size", type=int, default=16, help="of simple_evaluate")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Bench:
    """The arms of the comparison, over one family and one fitness."""

    def __init__(self, args: argparse.Namespace, tasks: Path) -> None:
        self.args, self.tasks, self.device = args, tasks, torch.device(args.device)
        self.names, self.shots = ([MMLU], 5) if args.mmlu else (list(ZERO_SHOT), None)
        each = f"{args.mmlu} subjects x {args.questions}" if args.mmlu else f"{args.questions} each"
        self.label = f"MMLU, 5-shot, {each}" if args.mmlu else f"HellaSwag, ARC-easy, PIQA, zero-shot, {each}"

    def study(self, **settings: Any) -> tuple[Study, Engine]:
        """Return a fresh study: family, fitness and caches of its own."""
        args = self.args
        merge_cache = settings.pop("merge_cache_mib", 1024)
        study = Study(
            family=ModelFamily(
                args.base,
                dict(pair.split("=", 1) for pair in args.candidate),
                dtype=args.dtype,
                merge_cache_mib=merge_cache,
            ),
            space=PruningSpace(LayerRemoval(ratio=0.25), merges=[TaskArithmetic()]),
            optimizer=Nevergrad("DiscreteOnePlusOne"),
            fitness=LMEval(
                list(self.names), include_path=str(self.tasks), limit=args.questions, num_fewshot=self.shots
            ),
            settings=StudySettings(seed=args.seed, trials=args.trials, max_length=MAX_LENGTH, **settings),
        )
        engine = study.prepare(self.device)
        study.family.load(self.device)
        return study, engine

    def search(self, peers: int) -> tuple[list[Trial], list[float], list[float]]:
        """Run the search, and the peers' way of some trials right after them.

        Returns:
            The trials; the wall time of each, the optimizer's share included; the wall times of the peers' way.
        """
        study, engine = self.study()
        exporting, _ = self.study()
        spread = {i * self.args.trials // peers for i in range(peers)} if peers else set()
        theirs: list[float] = []
        evaluator = Evaluator(study, engine)
        evaluator.measure(study.dense)
        proposer = Proposer(study.space, study.optimizer, seed=self.args.seed)
        trials: list[Trial] = []
        seconds = []
        while len(trials) < self.args.trials:
            start = time.perf_counter()
            (proposal,) = proposer.propose(1)
            best = incumbent(trials)
            (outcome,) = evaluator.evaluate([proposal.tailoring], None if best is None else best.tailoring)
            trials.append(_trial(len(trials), proposal, outcome))
            proposer.tell(trials[-1:])
            seconds.append(time.perf_counter() - start)
            _progress("search", len(trials), self.args.trials, seconds[-1])
            if trials[-1].number in spread:
                theirs.append(self.peer(exporting, trials[-1]))
                _progress("peers", len(theirs), peers, theirs[-1])
        return trials, seconds, theirs

    def replay(self, trials: Sequence[Trial], off: str | None) -> list[float]:
        """Evaluate the candidates of a search again with one idea switched off; return the wall time of each."""
        settings: dict[str, Any] = {}
        if off in ("prefix reuse", "everything"):
            settings["prefix_cache_mib"] = 0
        if off in ("merge cache", "everything"):
            settings["merge_cache_mib"] = 0
        with ExitStack() as stack:
            if off in ("packing", "everything"):
                plain = lambda *args, **kwargs: Engine(*args, **{**kwargs, "packing": False})  # noqa: E731
                stack.enter_context(mock.patch("tailorlib.search.study.Engine", plain))
            if off in ("head at scored positions", "everything"):
                stack.enter_context(_head_everywhere())
            study, engine = self.study(**settings)
            evaluator = Evaluator(study, engine)
            evaluator.measure(study.dense)
            seconds = []
            for i, trial in enumerate(trials):
                start = time.perf_counter()
                if off in ("stitching by reference", "everything"):
                    study.family._stitcher = None
                    study.family.load(self.device)
                if off in ("compiled tasks", "everything"):
                    study.fitness.setup(engine)
                best = incumbent(trials[:i])
                (outcome,) = evaluator.evaluate([trial.tailoring], None if best is None else best.tailoring)
                seconds.append(time.perf_counter() - start)
                found = outcome.measurement
                same = not isinstance(found, str) and abs(found.score - (trial.fitness or 0)) < 1e-5
                assert same, f"the same candidate scores differently without {off}: {found} and {trial.fitness}"
        return seconds

    def peer(self, study: Study, trial: Trial) -> float:
        """Merge a candidate through files and score a fresh model; return the wall time."""
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, quiet_lm_eval():
            export_model(study.family, trial.tailoring, Path(folder) / "model")
            model = AutoModelForCausalLM.from_pretrained(
                Path(folder) / "model", dtype=getattr(torch, self.args.dtype)
            ).to(self.device)
            tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "model")
            lm = HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=self.args.batch_size, max_length=MAX_LENGTH
            )
            results = lm_eval.simple_evaluate(
                lm,
                tasks=list(self.names),
                limit=self.args.questions,
                num_fewshot=self.shots,
                task_manager=TaskManager(include_path=str(self.tasks), include_defaults=False),
                bootstrap_iters=0,
                log_samples=False,
            )
        seconds = time.perf_counter() - start
        for task in (t for t in results["results"] if f"{t}/acc" in trial.metrics):
            theirs = results["results"][task]["acc,none"]
            # the file is in the checkpoints' data type: a choice at the edge may fall the other way
            assert abs(theirs - trial.metrics[f"{task}/acc"]) <= 1 / self.args.questions + 1e-9, task
        return seconds

    def halving(self, trials: Sequence[Trial]) -> tuple[float, float, float, bool]:
        """Return seconds of all samples for all, and of successive halving; rank correlation; same winner."""
        study, engine = self.study()
        fitness, total = study.fitness, study.fitness.num_samples
        fitness.evaluate(study.family.stitch(study.dense))
        for trial in trials:  # every layer once: what follows compares evaluation
            study.family.stitch(trial.tailoring)
        rungs = [max(fitness.min_samples, round(total * share)) for share in (1 / 9, 1 / 3, 1)]
        known: dict[str, list[Any]] = {t.tailoring.digest: [] for t in trials}
        alive, first, spent = list(trials), dict[str, float](), 0.0
        for rung, samples in enumerate(rungs):
            scores = {}
            for trial in alive:
                start = time.perf_counter()
                results = known[trial.tailoring.digest]
                model = study.family.stitch(trial.tailoring)
                with engine.reusing(model, trial.tailoring.prefixes):
                    results += fitness.score_samples(model, range(len(results), samples))
                scores[trial.tailoring.digest] = fitness.summarise(results).score
                spent += time.perf_counter() - start
            first = first or scores
            alive = sorted(alive, key=lambda t: -scores[t.tailoring.digest])[: max(1, len(alive) // 3)]
            print(f"  rung {rung}: {samples} of {total} samples, {len(scores)} candidates", flush=True)
        engine.states.clear()
        full = {}
        start = time.perf_counter()
        for trial in trials:
            model = study.family.stitch(trial.tailoring)
            with engine.reusing(model, trial.tailoring.prefixes):
                full[trial.tailoring.digest] = fitness.evaluate(model).score
        whole = time.perf_counter() - start
        rho = float(spearmanr(list(first.values()), [full[d] for d in first]).statistic)
        return whole, spent, rho, alive[0].tailoring.digest == max(full, key=lambda d: full[d])


@contextmanager
def _head_everywhere() -> Iterator[None]:
    """Apply the head to all positions, as a plain forward pass does."""
    run, workspace = forward.hidden_states, Workspace()

    def hidden_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        states = run(model, batch)
        others = torch.ones(len(states), dtype=torch.bool)
        others[batch.scored] = False
        forward.logits_of(model, states[others], workspace)
        return states

    with mock.patch.object(scoring, "hidden_states", hidden_states):
        yield


def _trial(number: int, proposal: Any, outcome: Outcome) -> Trial:
    found = outcome.measurement
    assert not isinstance(found, str), found
    return Trial(
        number, proposal.params, proposal.tailoring, "complete", found.score, found.metrics, costs=outcome.costs
    )


def _progress(what: str, done: int, total: int, seconds: float) -> None:
    if done == total or done % 5 == 0:
        print(f"  {what}: {done}/{total}, the last in {seconds:.2f} s", flush=True)


def main() -> None:
    """Measure and print."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"machine: {machine(torch.device(args.device))}; python {platform.python_version()}, ", end="")
    print(f"torch {torch.__version__}, {args.dtype}\ncommand: {shlex.join(sys.argv)}\n")
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(args.data, Path(folder), args.mmlu or 1)
        bench = Bench(args, Path(folder))
        trials, seconds, theirs = bench.search(args.peer_trials)
        own, reused = statistics.mean(seconds), statistics.mean(t.reused_layers for t in trials)
        print("\n| questions of a trial | trials | tailorlib, s a trial | peers' way, s | ratio | layers reused |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        peer = f"{statistics.mean(theirs):.2f} ({len(theirs)} of them)" if theirs else ""
        ratio = f"**{statistics.mean(theirs) / own:.2f}**" if theirs else ""
        print(f"| {bench.label} | {len(trials)} | {own:.2f} | {peer} | {ratio} | {reused:.0%} |", flush=True)
        if args.ablation_trials:
            table(bench, trials[: args.ablation_trials])
        if args.halving_trials:
            whole, spent, rho, same = bench.halving(trials[: args.halving_trials])
            print("\n| candidates | all samples, s | successive halving, s | ratio | rank correlation | winner |")
            print("| ---: | ---: | ---: | ---: | ---: | --- |")
            numbers = f"{whole:.1f} | {spent:.1f} | **{whole / spent:.2f}** | {rho:.2f}"
            print(f"| {args.halving_trials} | {numbers} | {'the same' if same else 'another'} |")


def table(bench: Bench, trials: Sequence[Trial]) -> None:
    """Print what each idea is worth, over the same candidates; a second round goes through the arms backwards."""
    arms = [None, "packing", "prefix reuse", "head at scored positions", "compiled tasks", "merge cache"]
    arms += ["stitching by reference", "everything"]
    seconds: dict[str | None, list[float]] = {arm: [] for arm in arms}
    for arm in (*arms, *reversed(arms)):
        seconds[arm].append(statistics.mean(bench.replay(trials, arm)))
        print(f"  without {arm or 'nothing'}: {seconds[arm][-1]:.2f} s a trial", flush=True)
    base = statistics.mean(seconds[None])
    print(f"\n| without ({len(trials)} candidates) | s a trial, both rounds | times as long |")
    print("| --- | ---: | ---: |")
    for arm in arms:
        rounds = " and ".join(f"{taken:.2f}" for taken in seconds[arm])
        print(f"| {arm or 'nothing'} | {rounds} | {statistics.mean(seconds[arm]) / base:.2f} |")


if __name__ == "__main__":
    main()
