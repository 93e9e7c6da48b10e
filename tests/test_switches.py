"""Options that are true or false are flags, and dashes do for underscores."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest

from tailorlib.cli import main
from tailorlib.light import LIGHT
from tailorlib.lightning_cli import VERBS
from tailorlib.search.trainer import TailorTrainer
from tailorlib.switches import SWITCHES, spelled_out


@pytest.mark.parametrize(
    ("line", "spelled"),
    [
        ("export RUN --verify", "export RUN --verify=true"),
        ("export --verify RUN --overwrite", "export --verify=true RUN --overwrite=true"),
        ("export RUN --verify true --overwrite False", "export RUN --verify=true --overwrite=false"),
        ("export RUN --verify=true --no-overwrite", "export RUN --verify=true --overwrite=false"),
        ("plan --config a-b.yaml --no-calibrate", "plan --config a-b.yaml --calibrate=false"),
        ("import x --legacy-base-index --layers 4", "import x --legacy_base_index=true --layers 4"),
        ("export --max-shard-gb=2 --output a--b", "export --max_shard_gb=2 --output a--b"),
        (
            "export --family.init_args.my-key a --search-space.init_args.x-y=1",
            "export --family.init_args.my-key a --search_space.init_args.x-y=1",
        ),
        ("search -c x.yaml --plugins+=my-ops.py -- --", "search -c x.yaml --plugins+=my-ops.py -- --"),
    ],
)
def test_a_command_line_is_spelled_out(line: str, spelled: str) -> None:
    assert spelled_out(line.split()) == spelled.split()
    assert spelled_out(spelled.split()) == spelled.split()


def test_every_option_that_is_true_or_false_is_a_flag() -> None:
    from tailorlib.export.command import export_verb

    functions = [getattr(import_module(m), f) for m, _, f in (spec.partition(":") for spec in LIGHT.values())]
    functions += [getattr(TailorTrainer, "import_" if verb == "import" else verb) for verb in VERBS]
    options = [p for f in (*functions, export_verb) for p in inspect.signature(f).parameters.values()]
    found = {p.name for p in options if p.annotation in (bool, "bool")}
    assert found >= {"calibrate", "legacy_base_index", "overwrite", "verify"}
    assert found <= SWITCHES


def test_a_file_is_overwritten_by_a_flag(tmp_path: Path) -> None:
    text = "merge_method: passthrough\nslices: [{sources: [{model: org/one, layer_range: [0, 2]}]}]\n"
    (tmp_path / "one.yaml").write_text(text)
    line = ["import", str(tmp_path / "one.yaml"), "--output", str(tmp_path / "out")]
    assert main(line) == 0
    assert main(line) == 2
    assert main([*line, "--overwrite"]) == 0
