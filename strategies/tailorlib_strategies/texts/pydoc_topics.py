"""Technical prose that every Python installation has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tailorlib.exceptions import DataError
from tailorlib.text import TextSource
from tailorlib_strategies.texts.splits import SHARES, Split, check_split, pack, position

_LOW, _HIGH = 500, 4000
_TELLING = 60
"""A paragraph of this many characters is text; a shorter one is a heading or a line that recurs everywhere."""


class PydocTopics(TextSource):
    """Sections of up to 4,000 characters from the reference texts behind Python's ``help()``.

    Many topics quote others whole (``compound`` contains ``with``, ``while``, ...), so topics that share a
    paragraph are kept together, in one split, and each paragraph is given once.

    Args:
        split: ``train``, ``search`` or ``test``.
    """

    def __init__(self, split: Split = "train") -> None:
        self.split = check_split(split)

    def documents(self) -> Sequence[str]:
        """Return sections of topics, longest topic of a group first.

        Raises:
            DataError: If this Python comes without ``pydoc_data.topics``.
        """
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise DataError(
                "PydocTopics reads the texts of Python's help(), and this Python has none (pydoc_data.topics). "
                "Use a complete Python, or another text."
            ) from error
        paragraphs = {name: _paragraphs(text) for name, text in topics.items()}
        groups = _divide(_groups(paragraphs), paragraphs)[self.split]
        documents = [d for group in groups for d in _write(group, paragraphs)]
        if not documents:
            raise DataError(f"PydocTopics found no text for the split {self.split!r} in pydoc_data.topics.")
        return documents


def _paragraphs(text: str) -> list[str]:
    return [p.strip("\n") for p in text.split("\n\n") if p.strip()]


def _key(paragraph: str) -> str:
    """Name a paragraph so that another indentation or line width makes no difference."""
    return " ".join(paragraph.split())


def _groups(paragraphs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the topics in groups that share no telling paragraph with each other."""
    group_of = {name: {name} for name in paragraphs}
    first_seen: dict[str, str] = {}
    for name in sorted(paragraphs):
        for key in map(_key, paragraphs[name]):
            other = first_seen.setdefault(key, name) if len(key) >= _TELLING else name
            if group_of[other] is not group_of[name]:
                group_of[other] |= group_of[name]
                for member in group_of[other]:
                    group_of[member] = group_of[other]
    distinct = {id(group): sorted(group) for group in group_of.values()}
    return sorted(distinct.values())


def _divide(groups: Iterable[list[str]], paragraphs: Mapping[str, Sequence[str]]) -> dict[Split, list[list[str]]]:
    """Deal whole groups out to the splits, each to the one that is furthest from its share.

    Groups are few and of very different size: drawing each group's split alone could leave one almost empty. The
    largest come first, so that the rest evens them out.
    """
    sizes = {group[0]: len("".join(_unique(group, paragraphs))) for group in groups}
    total = sum(sizes.values())
    divided: dict[Split, list[list[str]]] = {split: [] for split in SHARES}
    filled = dict.fromkeys(SHARES, 0)
    for group in sorted(groups, key=lambda g: (-sizes[g[0]], g)):
        split = max(SHARES, key=lambda s: SHARES[s] - filled[s] / total)
        divided[split].append(group)
        filled[split] += sizes[group[0]]
    for members in divided.values():
        members.sort(key=lambda g: position(f"order/{g[0]}"))
    return divided


def _unique(group: Iterable[str], paragraphs: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each paragraph of a group once: whole topics first, then what only their parts have."""
    kept: dict[str, str] = {}
    for name in sorted(group, key=lambda n: (-len(paragraphs[n]), n)):
        for paragraph in paragraphs[name]:
            kept.setdefault(_key(paragraph), paragraph)
    return list(kept.values())


def _write(group: Iterable[str], paragraphs: Mapping[str, Sequence[str]]) -> list[str]:
    return pack([p + "\n\n" for p in _unique(group, paragraphs)], low=_LOW, high=_HIGH)
