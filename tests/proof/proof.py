"""Break tailorlib in every known way: ``python tests/proof/proof.py`` (``make proof``), 40 minutes on two cores.

Cases that passed are not run again while the code stays the same. Failing ones leave their files in
``build/proof/failures/CLASS/CASE``. A run of all classes without failure writes the table of ``docs/safety.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "strategies")]  # this tree, whatever is installed
WORK = ROOT / "build" / "proof"
PAGE = ROOT / "docs" / "safety.md"
BEGIN, END = "<!-- Written by make proof -->", "<!-- End of what make proof writes -->"
WIDTH = 79


@dataclass
class Result:
    """What came of a case."""

    kind: str
    case: str
    faults: int
    ok: bool
    seconds: float
    message: str = ""


@dataclass
class Worker:
    """A process that runs cases one by one; one that dies or hangs is replaced."""

    number: int
    folder: Path
    bench: Path
    process: Any = None
    pipe: Connection | None = None
    task: tuple[str, int, str, int] | None = None
    began: float = 0.0
    limit: float = 0.0
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / f"worker{self.number}.txt"

    def start(self) -> None:
        """Start the process."""
        from proof_process import context

        self.pipe, theirs = multiprocessing.Pipe()
        self.process = context().Process(target=_serve, args=(theirs, self.folder, self.bench, self.log))
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """End the process and whatever it started."""
        if self.process is not None and self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection, folder: Path, shared: Path, log: Path) -> None:
    """Run the cases that come through a pipe, until ``None``."""
    from proof_bench import Bench
    from proof_classes import CLASSES

    sys.stdout = sys.stderr = log.open("a", buffering=1, encoding="utf-8")
    sys.setrecursionlimit(1000)
    bench, known = Bench(shared), dict[str, Any]()
    while (task := pipe.recv()) is not None:
        kind, number = task
        if kind not in known:
            known[kind] = CLASSES[kind](bench).cases()
        case = known[kind][number]
        place = folder / "failures" / kind.replace(" ", "-") / _file_name(case.name)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        os.environ["TAILORLIB_CACHE"] = str(shared / "cache")
        try:
            case.check(place)
        except BaseException:
            message = traceback.format_exc()
            (place / "message.txt").write_text(message, encoding="utf-8", errors="backslashreplace")
            pipe.send((False, message))
        else:
            shutil.rmtree(place, ignore_errors=True)
            pipe.send((True, ""))


def _file_name(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-." else "-" for c in name)[:80]
    return f"{kept}-{sha256(name.encode()).hexdigest()[:6]}"


class Campaign:
    """All cases that are asked for.

    Args:
        chosen: Names of classes.
        most: How many cases of each class; all if ``None``.
        workers: Number of processes.
        fresh: Whether cases run again that passed.
        match: Regular expression that names of cases have to match.
    """

    def __init__(self, chosen: list[str], most: int | None, workers: int, fresh: bool, match: str) -> None:
        from proof_bench import Bench
        from proof_cases import spread
        from proof_classes import CLASSES

        digest = _code_digest()
        self.state = WORK / f"passed-{digest}.jsonl"
        if fresh:
            self.state.unlink(missing_ok=True)
        self.results = {(result.kind, result.case): result for result in self._passed()}
        bench = Bench(_only(WORK / f"bench-{digest}"))
        self.tasks: list[tuple[str, int, str, int]] = []
        self.limits: dict[str, float] = {}
        self.sizes: dict[str, int] = {}
        for kind in chosen:
            cls = CLASSES[kind](bench)
            everything = list(cls.cases())
            self.sizes[kind] = len(everything)
            self.limits[kind] = cls.seconds
            kept = set(map(id, spread([c for c in everything if re.search(match, c.name)], most)))
            self.tasks += [(kind, i, c.name, c.faults) for i, c in enumerate(everything) if id(c) in kept]
        self.chosen = {(kind, name) for kind, _, name, _ in self.tasks}
        self.waiting = [t for t in self.tasks if (t[0], t[2]) not in self.results]
        # what takes long goes first, so that no process waits for it at the end
        self.waiting.sort(key=lambda t: -self.limits[t[0]])
        self.workers = [Worker(i, WORK, bench.folder) for i in range(workers)]
        self.began = time.monotonic()

    def run(self) -> None:
        """Run what has not passed before."""
        try:
            for worker in self.workers:
                self._next(worker)
            while any(w.task for w in self.workers):
                busy = [w for w in self.workers if w.task]
                ready = wait([w.pipe for w in busy if w.pipe], timeout=1)
                for worker in busy:
                    self._look(worker, worker.pipe in ready)
                self._show()
        finally:
            for worker in self.workers:
                worker.stop()
            _say("\n" if sys.stdout.isatty() else "")

    def of(self, kind: str) -> list[Result]:
        """Return the results of a class that were asked for."""
        return [r for (k, name), r in self.results.items() if k == kind and (k, name) in self.chosen]

    def _next(self, worker: Worker) -> None:
        worker.task = self.waiting.pop(0) if self.waiting else None
        if worker.task is None:
            return
        if worker.process is None or not worker.process.is_alive():
            worker.start()
        assert worker.pipe is not None
        worker.pipe.send(worker.task[:2])
        worker.began, worker.limit = time.monotonic(), self.limits[worker.task[0]]

    def _look(self, worker: Worker, ready: bool) -> None:
        assert worker.pipe is not None
        if ready:
            try:
                ok, message = worker.pipe.recv()
            except EOFError:
                worker.process.join()
                ok, message = False, f"the process died with {worker.process.exitcode}"
        elif time.monotonic() - worker.began > worker.limit:
            worker.stop()
            ok, message = False, f"it ran for more than {worker.limit:.0f} s"
        else:
            return
        self._keep(worker, ok, message)
        self._next(worker)

    def _keep(self, worker: Worker, ok: bool, message: str) -> None:
        assert worker.task is not None
        kind, _, name, faults = worker.task
        result = Result(kind, name, faults, ok, time.monotonic() - worker.began, message)
        self.results[kind, name] = result
        if ok:
            with self.state.open("a", encoding="utf-8") as file:
                file.write(json.dumps(vars(result)) + "\n")
        else:
            _say(f"{chr(13) + ' ' * WIDTH + chr(13) if sys.stdout.isatty() else ''}FAILED {kind}: {name}\n")
            _say(f"  {(message.strip().splitlines() or [''])[-1][:300]}\n")

    def _passed(self) -> Iterator[Result]:
        lines = self.state.read_text(encoding="utf-8").splitlines() if self.state.exists() else []
        for line in lines:
            try:
                yield Result(**json.loads(line))
            except (ValueError, TypeError):
                continue  # torn: it runs again

    def _show(self) -> None:
        done = [r for key, r in self.results.items() if key in self.chosen]
        failed = sum(not r.ok for r in done)
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        kinds = ", ".join(sorted({w.task[0] for w in self.workers if w.task}))
        line = f"{len(done)}/{len(self.tasks)} cases, {failed} failed, {minutes}:{seconds:02}  {kinds}"[:WIDTH]
        if sys.stdout.isatty():
            _say(f"\r{line:<{WIDTH}}")
        elif len(done) // 100 > getattr(self, "_shown", 0):
            self._shown = len(done) // 100
            _say(line + "\n")


def _code_digest() -> str:
    files = [p for top in ("tailorlib", "strategies", "tests/proof") for p in (ROOT / top).rglob("*.py")]
    return sha256(b"\0".join(p.read_bytes() for p in sorted(files))).hexdigest()[:12]


def _only(bench: Path) -> Path:
    """Return a folder for what cases share, and delete those that other code has made."""
    for other in bench.parent.glob("bench*"):
        if other != bench:
            shutil.rmtree(other, ignore_errors=True)
    return bench


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def table(campaign: Campaign) -> str:
    """Return what came of the classes as a table in Markdown."""
    from proof_classes import CLASSES

    lines = ["| Class | Cases | Faults | Failures | What is checked | Seconds |", "|---|---|---|---|---|---|"]
    totals = [0, 0, 0.0]
    for kind, cls in CLASSES.items():
        found = campaign.of(kind)
        if not found:
            continue
        failed = sum(not r.ok for r in found)
        row = (sum(r.faults for r in found), failed, sum(r.seconds for r in found))
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        cases = f"{len(found):,} of {campaign.sizes[kind]:,}"
        lines.append(f"| {kind} | {cases} | {row[0]:,} | {row[1]} | {cls.checked} | {row[2]:,.0f} |")
    lines.append(f"| all | | {totals[0]:,} | {totals[1]} | | {totals[2]:,.0f} |")
    return "\n".join(lines)


def _write_page(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    machine = f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    about = f"{machine}, {time.strftime('%B %Y')}; seconds are those of one process."
    PAGE.write_text(f"{head}{BEGIN}\n\n{about}\n\n{text}\n\n{END}{tail}", encoding="utf-8")


def main() -> int:
    """Run a campaign and print what came of it."""
    from proof_bench import environment

    os.environ.update(environment(WORK))
    from proof_classes import CLASSES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--class", dest="classes", action="append", choices=[*CLASSES], help="only this class")
    parser.add_argument("--cases", type=int, help="only so many cases of each class")
    parser.add_argument("--match", default="", help="only cases whose names match this regular expression")
    parser.add_argument("--workers", type=int, default=min(8, len(os.sched_getaffinity(0))))
    parser.add_argument("--fresh", action="store_true", help="run cases again that passed before")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(
        options.classes or [*CLASSES], options.cases, options.workers, options.fresh, options.match
    )
    campaign.run()
    text = table(campaign)
    _say(text + "\n")
    failures = [r for kind in CLASSES for r in campaign.of(kind) if not r.ok]
    for failure in failures:
        _say(f"FAILED {failure.kind}: {failure.case}\n")
    if failures:
        _say(f"What failed lies in {WORK / 'failures'}\n")
    elif options.classes is None and not options.match:
        _write_page(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
