"""Give a reader many damaged and hostile files: ``python tests/fuzz/campaign.py --reader recipe --inputs 100000``.

Whatever comes out must be a value or an error for the user. A failing input is shrunk by hypothesis and saved.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

sys.dont_write_bytecode = True  # an import would write outside the folder
os.environ["HF_HUB_OFFLINE"] = "1"

from fuzz_guard import Guard  # noqa: E402
from fuzz_inputs import variants  # noqa: E402
from fuzz_readers import READERS, Reader, load_plugins  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import seed as seeded  # noqa: E402

BATCH = 5000
VARIANTS = 10
"""How many inputs are made of one of hypothesis's."""
MOST_FAILURES = 10


class Campaign:
    """The readings of one reader.

    Args:
        reader: The reader.
        guard: What watches it.
        folder: A folder for its files.
    """

    def __init__(self, reader: Reader, guard: Guard, folder: Path) -> None:
        self.reader, self.guard, self.folder = reader, guard, folder
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, bytes] = {}
        self.slowest, self.slowest_input, self.number = 0.0, b"", 0

    def batch(self, inputs: int, seed: int) -> None:
        """Read some inputs; of a failure keep the smallest input that shows it."""
        last = b""

        @seeded(seed)
        @settings(
            max_examples=-(-inputs // VARIANTS),
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(self.reader.inputs)
        def one(content: bytes) -> None:
            nonlocal last
            for last in variants(content, VARIANTS, self.reader.valid, self.reader.repair):
                self.number += 1
                self._read(last)

        try:
            one()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.outcomes["FAILED"] += 1
            self.failures.setdefault(f"{type(error).__name__}: {str(error)[:300]}", last)

    def _read(self, content: bytes) -> None:
        started = time.process_time()
        with self.guard():
            outcome = self.reader.outcome(content, self.folder)
        seconds = time.process_time() - started
        self.outcomes[outcome] += 1
        if seconds > self.slowest:
            self.slowest, self.slowest_input = seconds, content


def main() -> int:
    """Run a campaign and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", choices=[*READERS], required=True)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, default=Path("build/fuzz"), help="folder for failing inputs")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    load_plugins()
    memory = Path("/dev/shm")  # a file per input wears no disk there
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        folder = Path(scratch)
        campaign = Campaign(READERS[options.reader], Guard(folder), folder)
        for content in campaign.reader.more:
            campaign.reader.outcome(content, folder)  # imports what is imported late
        started, used, batch = time.perf_counter(), time.process_time(), 0
        while campaign.number < options.inputs and len(campaign.failures) < MOST_FAILURES:
            campaign.batch(min(BATCH, options.inputs - campaign.number), options.seed * 1_000_000 + batch)
            batch += 1
    seconds = (time.perf_counter() - started, time.process_time() - used)
    _report(options, campaign, *seconds)
    return 1 if campaign.failures else 0


def _report(options: argparse.Namespace, campaign: Campaign, wall: float, used: float) -> None:
    say = sys.stdout.write
    say(f"{options.reader}: {campaign.number:,} inputs, seed {options.seed}, ")
    say(f"{wall:,.0f} s ({used:,.0f} s of CPU)\n")
    say(f"{platform.platform()}, {_processor()}, Python {platform.python_version()}, ")
    say(
        f"hypothesis {version('hypothesis')}, PyYAML {version('pyyaml')}, jsonargparse {version('jsonargparse')}\n"
    )
    for outcome, count in campaign.outcomes.most_common():
        say(f"  {outcome}: {count:,}\n")
    slowest = campaign.slowest_input
    say(f"  slowest: {campaign.slowest:.3f} s of CPU for {len(slowest)} bytes: {slowest[:120]!r}\n")
    for message, content in campaign.failures.items():
        options.save.mkdir(parents=True, exist_ok=True)
        file = options.save / f"{options.reader}-{hashlib.sha256(content).hexdigest()[:12]}"
        file.write_bytes(content)
        say(f"  FAILED {message}\n    {file}: {content[:300]!r}\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
