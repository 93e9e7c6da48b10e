"""Misspelt verbs and options, and missing arguments: each is named as that, with what is close."""

from __future__ import annotations

import pytest

from tailorlib.exceptions import RecipeError
from tailorlib.light import LIGHT, VERBS
from tailorlib.light import main as light
from tailorlib.lightning_cli import STUDY_VERBS
from tailorlib.options import check_verb, missing_value, option_faults


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["serach"], r"no verb 'serach'\. Did you mean 'search'\?"),
        (["lst"], r"no verb 'lst'\. Did you mean 'list'\?"),
        (["frobnicate"], r"no verb 'frobnicate'\. Known: .*plan.* See tailor --help"),
        (
            ["--jsno", "list"],
            r"takes a verb first, .* got '--jsno'\. Did you mean '--json'\?",
        ),
    ],
)
def test_a_misspelt_verb_is_named(args: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_verb(args, (*VERBS, *LIGHT))


@pytest.mark.parametrize("args", [[], ["search"], ["list"], ["--help"], ["-h"], ["--version"]])
def test_what_there_is_passes(args: list[str]) -> None:
    check_verb(args, (*VERBS, *LIGHT))


@pytest.mark.parametrize(
    ("verb", "args", "message"),
    [
        ("search", ["--verfy"], "tailor search has no option '--verfy'. Its own are --"),
        ("search", ["--resum", "x"], "tailor search has no option '--resum'. Did you mean '--resume'?"),
        ("search", ["--optimiser=CMA"], "no option '--optimiser'. Did you mean '--optimizer'?"),
        ("search", ["--study.trails", "3"], "study has no setting 'trails'. Did you mean 'trials'?"),
        ("evaluate", ["run", "--trail", "3"], "tailor evaluate has no option '--trail'. Did you mean '--trial'?"),
        ("export", ["run", "--verfy", "true"], "tailor export has no option '--verfy'. Did you mean '--verify'?"),
        ("import", ["x.yaml", "--outptu", "y"], "no option '--outptu'. Did you mean '--output'?"),
        ("plugins", ["--plugin", "x"], "no option '--plugin'. Did you mean '--plugins'?"),
    ],
)
def test_a_misspelt_option_is_named(verb: str, args: list[str], message: str) -> None:
    assert [fault for fault in option_faults(verb, args) if message in fault]


def test_all_misspelt_options_are_named_and_values_are_none() -> None:
    args = [
        "--study.trails",
        "-3",
        "--studdy.seed",
        "1",
        "--study.seed",
        "1",
        "--config",
        "-",
        "--trainer.devices=1",
    ]
    assert len(option_faults("search", [*args, "--fitness.init_args.x", "1", "--plugins+=a.py"])) == 2
    assert VERBS[:4] == STUDY_VERBS


def test_an_option_without_its_value_is_named() -> None:
    assert missing_value(["--config"], ["--config"]) == ["--config takes a value, got none."]
    assert missing_value(["--config", "--resume"], ["--config"]) == ["--config takes a value, got none."]
    assert missing_value(["--config", "x"], ["--config"]) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["list", "--jsn"], "tailor list has no option '--jsn'. Did you mean '--json'?"),
        (["show", "nowhere", "--trail", "3"], "tailor show has no option '--trail'. Did you mean '--trial'?"),
        (["show"], "tailor show needs RUN (The run folder). See tailor show --help."),
        (["show", "nowhere", "--trial", "x"], "trial is a whole number, got 'x'"),
        (["diff", "a", "b", "c"], "tailor diff takes no further argument, got 'c'"),
        (["init"], "tailor init needs BASE ("),
    ],
)
def test_light_verbs_name_it_too(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert light(args) == 2
    told = capsys.readouterr().err
    assert message in told and "usage:" not in told
