"""Built-in texts."""

from tailorlib_strategies.texts.files import JSONLines, PlainText

__all__ = ["JSONLines", "PlainText"]
