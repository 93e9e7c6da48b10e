"""Searches, exports and cache building that are killed, interrupted, or run out of disk, and begun again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml
from proof_bench import Bench, environment, leftovers, tree, trials_of
from proof_cases import Case, FaultClass
from proof_process import AtWrite, Fault, FullDisk, SizeLimit, run, seconds_of

from tailorlib.journal import FILE_NAME, Journal
from tailorlib.models.cache import SEAL, is_sealed
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import Tailoring

CHAINS, LIFE = 8, 8
"""Studies that are killed until they have ended, and how often each."""
SIGNALS = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
KILLED = -int(signal.SIGKILL)


class Undisturbed:
    """What a search, an export and a cache are without any fault."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def search(self, folder: Path) -> list[str]:
        """Return the command of a search into ``run``."""
        return ["search", "--config", str(self.bench.write(folder, self.bench.recipe())), "--quiet"]

    @cached_property
    def folder(self) -> Path:
        """A folder with a run, its model exported again, and a cache."""
        return self.bench._once("undisturbed", self._make)

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """The trials of the search."""
        return trials_of(self.folder / "run")

    @cached_property
    def sharded_trials(self) -> list[dict[str, Any]]:
        """The trials of :func:`sharded`, searched by one process."""
        return trials_of(self.bench._once("sharded", self._make_sharded) / "run")

    @cached_property
    def seconds(self) -> dict[str, float]:
        """What each takes."""
        found: dict[str, float] = yaml.safe_load((self.folder / "seconds.yaml").read_text())
        return found

    def _make(self, folder: Path) -> None:
        cached = self.bench.write(folder, fine_tuned(self.bench), "cached.yaml")
        commands = {
            "search": self.search(folder),
            "export": export(folder),
            "cache": ["search", "--config", str(cached), "--quiet"],
        }
        os.environ["TAILORLIB_CACHE"] = str(folder / "cache")
        run(["--version"], folder)  # the first process waits for what all of them import
        took = {
            name: seconds_of(lambda argv=argv: run(argv, folder).check_message(0))
            for name, argv in commands.items()
        }
        (folder / "seconds.yaml").write_text(yaml.safe_dump(took))

    def _make_sharded(self, folder: Path) -> None:
        recipe = self.bench.write(folder, sharded(self.bench))
        run(["search", "--config", str(recipe), "--quiet"], folder).check_message(0)

    def check_whole(self, run: Path) -> None:
        """Check that a run folder has all that a search leaves, and nothing half done."""
        assert trials_of(run) == self.trials, "other trials"
        assert Journal.read(run).validations
        assert Tailoring.load(run / "model" / "tailoring.yaml") == Tailoring.load(run / "tailoring.yaml")
        expected = tree(self.folder / "run" / "model")
        found = tree(run / "model")
        assert {n for n in expected if found.get(n) != expected[n]} <= {"README.md"}, "another model"
        assert not leftovers(run), leftovers(run)


def export(folder: Path, run: str | Path = "run") -> list[str]:
    """Return the command of an export that replaces what is there."""
    flags = ["--overwrite", "true"]
    return ["export", str(run), "--output", str(folder / "out"), "--max_shard_gb", "0.00004", *flags]


def sharded(bench: Bench) -> dict[str, Any]:
    """Return a recipe whose trials can be shared among two ranks, in pieces."""
    return bench.recipe(trials=8, batch_size=4, shards=2, export=False)


def fine_tuned(bench: Bench) -> dict[str, Any]:
    """Return a recipe whose variant is trained, and whose merges need statistics: all of it goes to the cache."""
    recipe = bench.recipe("cached", trials=2)
    text = recipe["fitness"]["init_args"]["text"]
    small = {"tokens": 200, "held_out_tokens": 60, "rank": 2, "context_length": 32}
    held_out = {"class_path": "PlainText", "init_args": {"path": str(bench.other_text)}}
    variant = {"text": text, "held_out": held_out, **small}
    recipe["family"] = {
        "class_path": "FineTunedFamily",
        "init_args": {"base": str(bench.family / "base"), "variants": {"v": variant, "w": {**variant, "seed": 1}}},
    }
    return recipe


class Kills(FaultClass):
    """SIGKILL at writes and at any time."""

    name = "kills"
    checked = (
        "no finished trial is lost; the study, model or cache in the end is that of an undisturbed one; nothing "
        "half done is left, and none is taken for whole"
    )
    in_process = False
    seconds = 900.0

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.whole = Undisturbed(bench)

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        return [
            *(Case(f"search and resume {i}", partial(self._search, i), LIFE) for i in range(CHAINS)),
            *(Case(f"export {i}", partial(self._export, i), 8) for i in range(3)),
            *(Case(f"cache {i}", partial(self._cache, i), 8) for i in range(2)),
            *(Case(f"two ranks {i}", partial(self._ranks, i)) for i in range(8)),
        ]

    def _kill(self, argv: Sequence[str], folder: Path, rng: Any, kind: str, calls: int) -> bool:
        """Run a command that is killed, by turns at a call and at a time; say whether it was."""
        if rng.random() < 0.5:
            found = run(argv, folder, fault=AtWrite(int(rng.integers(1, calls))))
        else:
            found = run(argv, folder, after=float(rng.uniform(0.02, 1.0)) * self.whole.seconds[kind])
        assert found.code in (0, KILLED), f"exit status {found.code}:\n{found.text[-3000:]}"
        return found.code == KILLED

    def _search(self, number: int, folder: Path) -> None:
        rng, kills, known, directory = numpy_generator("kills", number), 0, 0, folder / "run"
        for _ in range(6 * LIFE):
            begun = number % 2 and (directory / FILE_NAME).exists()
            argv = ["search", "--resume", "run", "--quiet"] if begun else self.whole.search(folder)
            was_killed = kills < LIFE and self._kill(argv, folder, rng, "search", 60)
            if kills >= LIFE:
                run(argv, folder).check_message(0)
            kills += was_killed
            if (directory / FILE_NAME).exists():
                found = trials_of(directory)
                assert found == self.whole.trials[: len(found)], "other trials"
                assert len(found) >= known, f"{known - len(found)} finished trials are lost"
                known = len(found)
            if not was_killed:
                self.whole.check_whole(directory)
                if kills >= LIFE:
                    return
                known = 0
                shutil.rmtree(directory)  # it ended before it could be killed: begin anew
        raise AssertionError(f"only {kills} kills")

    def _export(self, number: int, folder: Path) -> None:
        rng, kills = numpy_generator("exports", number), 0
        argv, expected = export(folder, self.whole.folder / "run"), tree(self.whole.folder / "out")
        while kills < 8:
            kills += self._kill(argv, folder, rng, "export", 40)
            if (folder / "out").exists():
                assert tree(folder / "out") == expected, "half a model"
            if number == 2 and rng.random() < 0.3:
                shutil.rmtree(folder / "out", ignore_errors=True)
        run(argv, folder).check_message(0)
        assert tree(folder / "out") == expected
        hidden = [p.name for p in folder.iterdir() if p.name.startswith(".")]
        assert not hidden, f"left behind: {hidden}"

    def _cache(self, number: int, folder: Path) -> None:
        rng, kills, cache = numpy_generator("caches", number), 0, folder / "cache"
        os.environ["TAILORLIB_CACHE"] = str(cache)
        argv = ["search", "--config", str(self.whole.folder / "cached.yaml"), "--quiet"]
        while kills < 8:
            kills += self._kill(argv, folder, rng, "cache", 40)
            entries = [seal.parent for seal in cache.rglob(SEAL) if not seal.parent.name.startswith(".")]
            assert all(is_sealed(entry) for entry in entries), "an entry is not what its seal says"
            if rng.random() < 0.3:
                shutil.rmtree(cache, ignore_errors=True)
                shutil.rmtree(folder / "cached", ignore_errors=True)
        run(argv, folder).check_message(0)
        assert trials_of(folder / "cached") == trials_of(self.whole.folder / "cached")
        hidden = [p.name for p in cache.rglob(".*") if p.is_dir()]
        assert not hidden, f"left behind: {hidden}"

    def _ranks(self, number: int, folder: Path) -> None:
        recipe = sharded(self.bench)
        recipe["trainer"] |= {"strategy": "candidates", "devices": 2}
        argv = ["search", "--config", str(self.bench.write(folder, recipe)), "--quiet"]
        expected = self.whole.sharded_trials
        told = _killed_rank(argv, folder, rank=number % 2, lines=2 + number)
        if (folder / "run" / FILE_NAME).exists():
            assert trials_of(folder / "run") == expected[: len(trials_of(folder / "run"))], told
        alone = self.bench.write(folder, sharded(self.bench), "alone.yaml")
        run(["search", "--config", str(alone)], folder).check_message(0)
        assert trials_of(folder / "run") == expected


def _killed_rank(argv: Sequence[str], folder: Path, rank: int, lines: int) -> str:
    """Search with two ranks, kill one when the journal has some lines; the other has a minute to end."""
    command = [sys.executable, "-m", "tailorlib.cli", *argv]
    journal, log = folder / "run" / FILE_NAME, folder / "output.txt"
    variables = {**os.environ, **environment(folder)}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        content = journal.read_bytes() if journal.exists() else b""
        children = _children(process.pid)
        if content.count(b"\n") >= lines and children:
            os.kill(process.pid if rank == 0 else children[0], signal.SIGKILL)
            break
        time.sleep(0.01)
    began = time.monotonic()
    pids = [process.pid, *children]
    while any(map(_alive, pids)) and time.monotonic() - began < 60:
        process.poll()
        time.sleep(0.1)
    left = [pid for pid in pids if _alive(pid)]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)
    text = log.read_text(errors="replace")
    assert not left, f"a rank that lost the other still runs after 60 s:\n{text[-2000:]}"
    return text


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Disks(FaultClass):
    """No room from the n-th write on, for all n; and a limit for the size of files."""

    name = "full disks"
    checked = (
        "one message, exit status 1 or 2; no finished trial is lost, no half model; with room again it goes on"
    )
    in_process = False

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.whole = Undisturbed(bench)

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        found = [Case(f"search, {n} writes", partial(self._search, n)) for n in range(0, 150, 4)]
        found += [Case(f"export, {n} writes", partial(self._export, n)) for n in range(40)]
        sizes = [5_000 + 2_000 * n for n in range(25)]
        found += [Case(f"search, files of {n} bytes", partial(self._search, n)) for n in sizes[::2]]
        return [*found, *(Case(f"export, files of {n} bytes", partial(self._export, n)) for n in sizes)]

    def _fault(self, number: int, folder: Path) -> Fault:
        return FullDisk(str(folder), number) if number < 5000 else SizeLimit(number)

    def _search(self, number: int, folder: Path) -> None:
        argv, directory = self.whole.search(folder), folder / "run"
        told = run(argv, folder, fault=self._fault(number, folder))
        told.check_message(0, 1, 2)
        if told.code:
            assert any(word in told.text for word in ("No space", "disk is full", "too large")), told.text
        if (directory / FILE_NAME).exists():
            found = trials_of(directory)
            assert found == self.whole.trials[: len(found)]
        run(argv, folder).check_message(0)
        self.whole.check_whole(directory)

    def _export(self, number: int, folder: Path) -> None:
        argv, expected = export(folder, self.whole.folder / "run"), tree(self.whole.folder / "out")
        told = run(argv, folder, fault=self._fault(number, folder))
        told.check_message(0, 1, 2)
        assert (told.code == 0) == (folder / "out").exists()
        run(argv, folder).check_message(0)
        again = run(argv, folder, fault=self._fault(number, folder))  # in the place of one that is there
        again.check_message(0, 1, 2)
        assert tree(folder / "out") == expected
        run(argv, folder).check_message(0)
        assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]


class Signals(FaultClass):
    """SIGINT, SIGTERM and SIGHUP at writes and at any time."""

    name = "signals"
    checked = "exit status 128 + signal, a message and no traceback; the search goes on with the same trials"
    in_process = False

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.whole = Undisturbed(bench)

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        found = [
            Case(f"{name} at write {n}", partial(self._search, number, AtWrite(n, number), None))
            for number, name in SIGNALS.items()
            for n in range(1, 61, 5)
        ]
        found += [
            Case(f"{name} after {share:.2f} of the search", partial(self._search, number, None, share))
            for number, name in SIGNALS.items()
            for share in (0.08 * i for i in range(12))
        ]
        found += [
            Case(f"{name} at write {n} of an export", partial(self._export, number, n))
            for number, name in SIGNALS.items()
            for n in range(1, 31, 3)
        ]
        return [
            *found,
            *(
                Case(f"{name} {seconds} s after the start", partial(self._start, number, seconds))
                for number, name in SIGNALS.items()
                for seconds in (0.2, 0.5, 1.0, 2.0, 3.0)
            ),
        ]

    def _check(self, told: Any, number: int) -> None:
        told.check_message(0, 128 + number)
        assert told.code == 0 or told.text.strip(), "nothing was said"

    def _search(self, number: int, fault: AtWrite | None, share: float | None, folder: Path) -> None:
        argv, directory = self.whole.search(folder), folder / "run"
        argv.remove("--quiet")
        after = None if share is None else share * self.whole.seconds["search"]
        told = run(argv, folder, fault=fault, after=after, with_signal=number)
        self._check(told, number)
        if (directory / FILE_NAME).exists():
            found = trials_of(directory)
            assert found == self.whole.trials[: len(found)]
            assert told.code or found == self.whole.trials, "it says that it ended, and it didn't"
        run(argv, folder).check_message(0)
        self.whole.check_whole(directory)

    def _export(self, number: int, write: int, folder: Path) -> None:
        argv, expected = export(folder, self.whole.folder / "run"), tree(self.whole.folder / "out")
        self._check(run(argv, folder, fault=AtWrite(write, number)), number)
        if (folder / "out").exists():
            assert tree(folder / "out") == expected, "half a model"
        run(argv, folder).check_message(0)
        assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]

    def _start(self, number: int, seconds: float, folder: Path) -> None:
        """Interrupt the command itself, while it imports: whoever sees it is told no traceback."""
        command = [sys.executable, "-c", "import sys; from tailorlib.start import main; sys.exit(main())"]
        process = subprocess.Popen(
            [*command, *self.whole.search(folder)],
            cwd=folder,
            env={**os.environ, **environment(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        time.sleep(seconds)
        process.send_signal(number)
        text = process.communicate(timeout=90)[0]
        code = process.returncode
        early = code == -number and seconds < 1  # Python itself starts: nobody's handler is there yet
        assert early or code in (0, 128 + number), f"exit status {code}:\n{text[-2000:]}"
        assert "Traceback" not in text or early, text[-2000:]
