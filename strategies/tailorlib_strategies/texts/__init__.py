"""Built-in texts."""

from tailorlib_strategies.texts.arithmetic import ArithmeticProblems
from tailorlib_strategies.texts.files import JSONLines, PlainText
from tailorlib_strategies.texts.interleaved import Interleaved
from tailorlib_strategies.texts.pydoc_topics import PydocTopics
from tailorlib_strategies.texts.standard_library import StandardLibraryCode

__all__ = ["ArithmeticProblems", "Interleaved", "JSONLines", "PlainText", "PydocTopics", "StandardLibraryCode"]
