"""Lines that save work after an interruption, and that can be made again where they are lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailorlib.records import DisturbedError, LineFile, RecordError


class KeptLines:
    """A file of such lines that this process appends to.

    Args:
        path: The file; what an earlier process left in it stays.
        durable: Whether a line is to outlast a power cut.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._file, self._known = LineFile(path, durable=durable), False

    def append(self, data: Mapping[str, Any]) -> None:
        """Add a line; what is too long to be read again is not kept.

        Raises:
            JournalError: If the disk doesn't take it.
        """
        try:
            if not self._known:
                self._file.resume()
                self._known = True
            self._file.append(data)
        except RecordError:
            return
        except DisturbedError:  # somebody made room, or put back an older copy: go on with what there is now
            self._file.resume()
            self._file.append(data)

    def clear(self) -> None:
        """Remove the file."""
        self._file.clear()
        self._known = True
