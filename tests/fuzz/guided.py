"""Let atheris look for new paths through a reader: ``python tests/fuzz/guided.py header -runs=100000 -seed=1``.

It changes bytes and keeps what reaches code that nothing reached before, so it suits the readers of plain bytes:
header, index, genotype, journal. A tool for developers (``pip install atheris``); no test needs it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
os.environ["HF_HUB_OFFLINE"] = "1"

import atheris  # noqa: E402

with atheris.instrument_imports(include=["tailorlib"]):
    from fuzz_readers import READERS


def main() -> None:
    """Run atheris on the reader that the command line names, beginning from its valid files."""
    reader = READERS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as scratch:
        corpus, folder = Path(scratch) / "corpus", Path(scratch) / "inputs"
        corpus.mkdir()
        folder.mkdir()
        for i, content in enumerate(reader.valid):
            (corpus / str(i)).write_bytes(content)

        def one(content: bytes) -> None:
            reader.outcome(content, folder)

        atheris.Setup([*sys.argv, "-timeout=10", "-rss_limit_mb=4096", "-print_final_stats=1", str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
