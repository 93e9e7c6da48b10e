"""Plugins that raise, return nonsense, print, fork, exit or hang, at every extension point."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from proof_bench import Told
from proof_cases import Case, FaultClass
from proof_process import run

from tailorlib.journal import FILE_NAME, Journal

RAISES = {
    "ValueError": "raise ValueError('own fault')",
    "KeyError": "{}['own fault']",
    "AssertionError": "assert False",
    "an error that can't be shown": "raise type('Bad', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "an error of half a character": "raise ValueError('\\ud800 \\x1b[31m')",
    "endless recursion": "f = lambda: f()\n        f()",
    "sys.exit": "sys.exit(3)",
    "SystemExit of a text": "raise SystemExit('bye')",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
}
RETURNS = {
    what: f"return {what}"
    for what in (
        "None",
        "float('nan')",
        "float('inf')",
        "'x'",
        "[]",
        "{}",
        "-1",
        "object()",
        "[None]",
        "{'x': 'y'}",
    )
}
MISUSES = {
    "prints": "print('x' * 300)\n        return SUPER",
    "fork": "os.fork()\n        return SUPER",
    "a pool": "multiprocessing.get_context('fork').Pool(2).map(abs, [1, 2])\n        return SUPER",
    "a thread": "threading.Thread(target=time.sleep, args=(0.1,)).start()\n        return SUPER",
    "another folder": "os.chdir('/')\n        return SUPER",
    "closed output": "sys.stdout.close()\n        return SUPER",
    "handlers": "signal.signal(signal.SIGINT, signal.SIG_IGN)\n        return SUPER",
}
HANGS = {"a loop": "while True: pass", "sleep": "time.sleep(1000)"}
HOOKS: dict[str, tuple[str, str, bool]] = {
    "fitness.check": ("Perplexity", "check(self)", False),
    "fitness._setup": ("Perplexity", "_setup(self, engine)", False),
    "fitness._score_samples": ("Perplexity", "_score_samples(self, model, samples)", True),
    "fitness._summarise": ("Perplexity", "_summarise(self, results)", True),
    "optimizer._setup": ("RandomSearch", "_setup(self, space, seed)", False),
    "optimizer._ask": ("RandomSearch", "_ask(self)", False),
    "optimizer._tell": ("RandomSearch", "_tell(self, trial)", False),
    "scheduler._start": ("SuccessiveHalving", "_start(self)", False),
    "scheduler._tell": ("SuccessiveHalving", "_tell(self, trial)", False),
    "search_space.distributions": ("PruningSpace", "distributions(self)", False),
    "search_space.decode": ("PruningSpace", "decode(self, params, *, seed=0)", False),
    "search_space.active": ("PruningSpace", "active(self, params)", False),
    "merge.merge": ("TaskArithmetic", "merge(self, tensors, *, base, params, generators)", True),
    "merge.distributions": ("TaskArithmetic", "distributions(self)", False),
    "objective.score": ("Quality", "score(self, candidate)", True),
    "warm_start.propose": ("UniformMix", "propose(self, context)", False),
    "text.documents": ("PlainText", "documents(self)", False),
    "family._sources": ("ModelFamily", "_sources(self)", False),
}
"""Base class, hook, and whether a fault in it is one trial's own."""
TEMPLATE = """
import multiprocessing, os, signal, sys, threading, time
from tailorlib.models.family import ModelFamily
from tailorlib_strategies.fitness import *
from tailorlib_strategies.objectives import *
from tailorlib_strategies.operations import *
from tailorlib_strategies.optimizers import *
from tailorlib_strategies.schedulers import *
from tailorlib_strategies.search_spaces import *
from tailorlib_strategies.texts import *
from tailorlib_strategies.warm_starts import *

class Own(BASE):
    calls = 0
    def HOOK:
        Own.calls += 1
        if Own.calls < FIRST:
            return SUPER
        BODY
"""


class Plugins(FaultClass):
    """Faults of plugins."""

    name = "plugins"
    checked = (
        "a message or a failed trial with file and line, never a traceback, a second search or a hang; "
        "the journal is sound"
    )
    in_process = False

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        found = []
        for hook, (_, _, of_trial) in HOOKS.items():
            bodies = RAISES | RETURNS | MISUSES | (HANGS if of_trial else {})
            found += [Case(f"{hook}: {what}", partial(self._check, hook, body)) for what, body in bodies.items()]
        found += [Case(f"{hook}: exits", partial(self._exits, hook)) for hook in HOOKS]
        return [*found, *(Case(f"a file: {text!r}", partial(self._file, text)) for text in FILES)]

    def _recipe(self, hook: str) -> dict[str, Any]:
        recipe = self.bench.recipe(trials=4, export=False)
        recipe["plugins"] = ["own.py"]
        kind = hook.partition(".")[0]
        text = recipe["fitness"]["init_args"]["text"]
        if kind == "text":
            text["class_path"] = "Own"
        elif kind == "merge":
            recipe["search_space"]["init_args"]["merges"] = ["Own"]
        elif kind == "objective":
            recipe["objectives"] = ["Own", "ParametersRemoved"]
            del recipe["scheduler"]
        elif kind == "warm_start":
            recipe["warm_starts"] = ["Own"]
        else:
            old = recipe[kind] if isinstance(recipe[kind], dict) else {"class_path": recipe[kind]}
            recipe[kind] = {**old, "class_path": "Own"}
        if kind != "scheduler":
            recipe.pop("scheduler", None)
        return recipe

    def _run(self, hook: str, body: str, folder: Path) -> Told:
        base, signature, of_trial = HOOKS[hook]
        name, arguments = signature.split("(", 1)
        names = [a.strip() for a in arguments.rstrip(")").split(",")][1:]
        passed = [f"{n}={n}" if "*" in names[:i] else n for i, n in enumerate(n.split("=")[0] for n in names)]
        call = f"super().{name}({', '.join(p for p in passed if p != '*')})"
        values = {"BASE": base, "HOOK": signature, "BODY": body, "FIRST": "3" if of_trial else "1", "SUPER": call}
        source = TEMPLATE
        for word, value in values.items():
            source = source.replace(word, value)
        (folder / "own.py").write_text(source, encoding="utf-8", errors="backslashreplace")
        recipe = self._recipe(hook)
        if body in HANGS.values():
            recipe["study"]["trial_seconds"] = 2.0
        self.bench.write(folder, recipe)
        began = time.time()
        told = run(["search", "--config", "recipe.yaml"], folder, limit=100)
        _check_alone(folder, began)
        return told

    def _check(self, hook: str, body: str, folder: Path) -> None:
        told = self._run(hook, body, folder)
        codes = (0, 1, 2, 3) if "exit" in body.lower() else (0, 1, 2, 130) if "Interrupt" in body else (0, 1, 2)
        told.check_message(*codes)
        assert "\x1b[31m" not in told.text
        if not (folder / "run" / FILE_NAME).exists():
            assert told.code, "nothing was done, and the exit status is 0"
            return
        journal = Journal.read(folder / "run")
        most = 4 if not hook.startswith("scheduler") else 4 * 40  # its trials are parts of one
        assert len(journal.trials) <= most, f"{len(journal.trials)} trials"
        failed = [trial for trial in journal.trials if trial.state == "failed"]
        assert all(trial.reason for trial in failed)
        if "own fault" in body and HOOKS[hook][2]:
            assert failed and all("own.py" in str(t.reason) and "line" in str(t.reason) for t in failed), failed
        if body.startswith("print"):
            assert not failed and told.code == 0, told.text[-2000:]

    def _exits(self, hook: str, folder: Path) -> None:
        """A process that is gone at once: its journal is whole."""
        told = self._run(hook, "os._exit(7)", folder)
        assert told.code == 7 and "Traceback" not in told.text
        if (folder / "run" / FILE_NAME).exists():
            assert len(Journal.read(folder / "run").trials) < 4

    def _file(self, text: str, folder: Path) -> None:
        (folder / "own.py").write_bytes(text.encode("latin-1"))
        recipe = self.bench.recipe(trials=2)
        recipe["plugins"] = ["own.py"]
        self.bench.write(folder, recipe)
        told = run(["search", "--config", "recipe.yaml"], folder)
        told.check_message(2)
        assert "own.py" in told.text


FILES = (
    *(
        "def",
        "import nowhere_at_all",
        "1 / 0",
        "raise SystemExit(3)",
        "import sys; sys.exit()",
        "\xff\xfe",
        "x = '\0'",
    ),
    *(
        "from tailorlib import Fitness\nclass Own(Fitness, int): pass",
        "raise KeyboardInterrupt",
        "from . import x",
    ),
    "from tailorlib import Optimizer\nclass RandomSearch(Optimizer): pass",
)


def _check_alone(folder: Path, began: float) -> None:
    """Check that nobody who works in the folder is left, within a few seconds."""
    deadline = time.monotonic() + 10
    while (left := _working_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"{len(left)} processes are left"
    assert time.time() - began < 110


def _working_in(folder: Path) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (place / "cwd").resolve() == folder.resolve() and " Z " not in (place / "stat").read_text():
                found.append(int(place.name))
    return [pid for pid in found if pid != os.getpid()]
