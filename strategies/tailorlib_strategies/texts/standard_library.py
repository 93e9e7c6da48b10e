"""Source code that every Python installation has."""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tailorlib.exceptions import DataError
from tailorlib.text import TextSource
from tailorlib_strategies.texts.splits import Split, check_count, check_split, pack, position, split_of

# Demonstrations, tables, and (distutils) modules that are near copies of each other.
_SKIPPED_PACKAGES = {
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "this",
    "turtledemo",
}
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}
# Tables and generated files teach a model nothing about code.
_SKIPPED_FILES = re.compile(r"_sysconfigdata|^(entities|stringprep|token|keyword|opcode|_opcode_metadata)$")
_DEFINITION = re.compile(r"^(?=(?:@|def |class |async def ))", re.MULTILINE)
_LOW, _HIGH = 1500, 4000
_PER_MODULE = 4


class StandardLibraryCode(TextSource):
    """Documents of 1,500 to 4,000 characters from the source of the running Python's standard library.

    A module file is in one split only, by the SHA-256 of its name. The texts differ a little from one Python
    version to the next.

    Args:
        split: ``train``, ``search`` or ``test``.
        count: Number of documents at most; one module gives no more than four.
    """

    def __init__(self, split: Split = "train", count: int = 200) -> None:
        self.split, self.count = check_split(split), check_count(count)

    def documents(self) -> Sequence[str]:
        """Return pieces of source code, in an order that depends on the modules' names only.

        Raises:
            DataError: If this Python comes without its source.
        """
        root = Path(sysconfig.get_path("stdlib"))
        documents: list[str] = []
        for name in _module_files(root):
            if split_of(f"code/{name}") == self.split:
                documents += _cut((root / name).read_text(encoding="utf-8", errors="replace"))[:_PER_MODULE]
            if len(documents) >= self.count:
                break
        if not documents:
            raise DataError(
                f"StandardLibraryCode reads the standard library's source; there is none below {root}. Use a "
                "Python that comes with its .py files, or another text."
            )
        return documents[: self.count]


def _module_files(root: Path) -> list[str]:
    """Return the paths of ordinary modules below ``root``, with forward slashes, in shuffled but fixed order."""
    names = []
    for top in sys.stdlib_module_names - _SKIPPED_PACKAGES:
        for path in (root / f"{top}.py", *(root / top).rglob("*.py")):
            relative = path.relative_to(root)
            skipped = _SKIPPED_FOLDERS.intersection(relative.parts) or _SKIPPED_FILES.search(relative.stem)
            if path.is_file() and not skipped:
                names.append(relative.as_posix())
    return sorted(names, key=lambda name: position(f"order/{name}"))


def _cut(source: str) -> list[str]:
    """Cut a module's source before top-level definitions."""
    return pack(_DEFINITION.split(source), low=_LOW, high=_HIGH)
