# ruff: noqa: T201
"""What ``tailor plan`` says of a recipe whose models are not at hand; run it as a script.

The recipe's base is replaced by a file of its true shape that takes no disk, its tasks by tasks of three
questions, and the plan is made without a calibration. Printed are the lines that the recipe's comment has to have;
with ``--write`` they are put there. Example::

    python tests/benchmarks/plan_of_recipe.py recipes/llama-3-8b.yaml --write

A base that no recipe has had before needs a row in ``tests/recipes/stand_ins.py``.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from stand_ins import comment_of, plan_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put the lines into the recipes' comments")
    arguments = parser.parse_args()
    for path in arguments.recipes:
        with tempfile.TemporaryDirectory() as folder:
            rows = plan_of(path, Path(folder))
        print(path)
        text = path.read_text(encoding="utf-8")
        for name, said in comment_of(path, rows).items():
            line = f"#   {name:<11} {said}"
            print(line)
            text = re.sub(rf"^#   {name} .*$", lambda _, line=line: line, text, count=1, flags=re.MULTILINE)
        if arguments.write:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
