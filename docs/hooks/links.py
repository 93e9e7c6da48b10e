"""External links of the documentation: ``make links`` asks each whether it is still there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
_LINK = re.compile(r"https?://[^\s)<>`\"'|]+[^\s)<>`\"'|.,:;]")


def external_links() -> dict[str, list[str]]:
    """Return the pages that hold each link, code blocks left out."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in _LINK.findall(text):
            found.setdefault(link, []).append(str(page.relative_to(ROOT)))
    return found


def answer(link: str) -> str:
    """Return ``ok``, or what is wrong with a link."""
    try:
        with urlopen(Request(link, headers={"User-Agent": "tailorlib-docs"}), timeout=20):
            return "ok"
    except HTTPError as error:
        return f"HTTP {error.code}"
    except (URLError, TimeoutError, OSError) as error:
        return str(error)


def main() -> int:
    """Print what each link answers; 1 if one doesn't."""
    answers = {link: answer(link) for link in external_links()}
    for link, said in sorted(answers.items()):
        sys.stdout.write(f"{said:12} {link}  ({', '.join(external_links()[link])})\n")
    return int(any(said != "ok" for said in answers.values()))


if __name__ == "__main__":
    sys.exit(main())
