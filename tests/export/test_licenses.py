"""Licences: what folders say of them, and which ones do not go together."""

from __future__ import annotations

import json
from importlib.metadata import distribution

import pytest
from model_cases import plan

from tailorlib.export import export_model
from tailorlib.export.licenses import KINDS, Kind, License, license_warnings, licenses_of
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", ["apache-2.0"]),
        ("---\r\nlicense: mit\r\n---\r\n", ["mit"]),
        ("---\nlicense: [mit, apache-2.0]\n---\n", ["mit", "apache-2.0"]),
        ("---\nlicense: other\nlicense_name: my-own\n---\n", ["my-own"]),
        ("---\nlicense: other\n---\n", ["other"]),
        ("---\ntags: [a]\n---\n", []),
        ("# license: mit\n", []),
        ("---\n: [\n---\n", []),
        ("---\nlicense: 3\n---\n", []),
        ("", []),
    ],
)
def test_the_model_card_s_licence_is_read(tmp_path, card, expected):
    (tmp_path / "README.md").write_text(card)
    assert [license.identifier for license in licenses_of(tmp_path)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "                                 Apache License\n                           Version 2.0, January",
            "apache-2.0",
        ),
        ("Copyright 2024 A\n\nPermission is hereby granted, free of charge, to any person", "mit"),
        ("GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007", "gpl-3.0"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n  Version 3, 19 November 2007", "agpl-3.0"),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version Release Date", "llama2"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", "llama3.1"),
        ("Attribution-NonCommercial-ShareAlike 4.0 International", "cc-by-nc-sa-4.0"),
        ("Attribution 4.0 International", "cc-by-4.0"),
        ("Do what you like.", "unrecognised"),
    ],
)
def test_a_licence_file_is_recognised(tmp_path, text, expected):
    (tmp_path / "LICENSE").write_text(text)
    assert licenses_of(tmp_path) == (License(expected, "LICENSE"),)


def test_the_licence_texts_that_packages_ship_are_recognised(tmp_path):
    for package, expected in {"transformers": "apache-2.0", "safetensors": "apache-2.0", "rich": "mit"}.items():
        files = [f for f in distribution(package).files or () if f.name.upper().startswith("LICENSE")]
        for file in files:
            (tmp_path / "LICENSE").write_text(file.read_text(encoding="utf-8"))
            assert licenses_of(tmp_path) == (License(expected, "LICENSE"),)


def test_statements_that_differ_are_all_told_and_repeated_ones_once(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "LICENSE").write_text("GNU GENERAL PUBLIC LICENSE Version 3")
    (tmp_path / "config.json").write_text(json.dumps({"license": "mit"}))
    assert licenses_of(tmp_path) == (License("mit", "README.md"), License("gpl-3.0", "LICENSE"))
    assert licenses_of(tmp_path / "missing") == ()


def warnings(**licenses):
    return license_warnings(
        {name: tuple(License(i, "") for i in given.split()) for name, given in licenses.items()}
    )


@pytest.mark.parametrize(
    "licenses",
    [
        {"base": "apache-2.0", "a": "mit", "b": "Apache-2.0 cc-by-4.0"},
        {"base": "llama2", "a": "llama2"},
        {"base": "cc-by-nc-4.0", "a": "cc-by-nc-4.0"},
        {"base": "gpl-3.0"},
    ],
)
def test_what_goes_together_gives_no_warning(licenses):
    assert warnings(**licenses) == []


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        ({"base": "apache-2.0", "a": "cc-by-nc-4.0"}, ["cc-by-nc-4.0 (of a): rules out commercial use"]),
        ({"base": "cc-by-nd-4.0"}, ["cc-by-nd-4.0 (of base): a changed model must not be passed on."]),
        ({"base": "llama2", "a": "mit"}, ["llama2 (of base): its restrictions of use bind the whole model."]),
        ({"base": "llama2", "a": "llama3", "b": "llama2"}, ["llama2 (of base, b) and llama3 (of a): its"]),
        ({"base": "mit", "a": "gpl-3.0"}, ["gpl-3.0 (of a): the whole model comes under this licence."]),
        (
            {"base": "gpl-2.0", "a": "gpl-3.0"},
            [
                "gpl-2.0 (of base) and gpl-3.0 (of a): each demands",
                "gpl-2.0 (of base) and gpl-3.0 (of a): the whole",
            ],
        ),
        ({"base": "gpl-3.0", "a": "agpl-3.0"}, ["gpl-3.0 (of base) and agpl-3.0 (of a): the whole"]),
        (
            {"base": "gemma", "a": "gpl-3.0"},
            [
                "gemma (of base): its restrictions",
                "gpl-3.0 (of a): admits no further restrictions, and gemma (of base)",
            ],
        ),
        (
            {"base": "gpl-2.0", "a": "apache-2.0"},
            [
                "gpl-2.0 (of base): the whole",
                "gpl-2.0 (of base) and apache-2.0 (of a): the Free Software Foundation",
            ],
        ),
        ({"base": "mit", "a": "my-own"}, ["my-own (of a): not among the licences"]),
        ({"base": "mit", "a": "", "b": ""}, ["No licence was found for a, b."]),
    ],
)
def test_what_does_not_go_together_is_told_with_the_models(licenses, expected):
    found = warnings(**licenses)
    assert [given[: len(start)] for given, start in zip(found, expected, strict=True)] == expected


def test_every_kind_of_licence_is_known():
    assert set(KINDS.values()) == set(Kind)
    assert all(identifier == identifier.lower() for identifier in KINDS)


def test_an_export_lists_the_licences_of_its_sources(folders, tmp_path):
    a = tmp_path / "a"
    a.symlink_to(folders["a"])
    copies = {name: tmp_path / f"{name}-copy" for name in ("base", "a")}
    for name, copy in copies.items():
        copy.mkdir()
        for file in folders[name].iterdir():
            (copy / file.name).symlink_to(file)
    (copies["a"] / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (copies["base"] / "LICENSE").write_text("Apache License Version 2.0")
    family = ModelFamily(str(copies["base"]), {"a": str(copies["a"]), "b": str(folders["b"])})
    family.prepare()
    text = (export_model(family, Tailoring((plan("a:1"),)), tmp_path / "out") / "README.md").read_text()
    assert "| base | base-copy | apache-2.0 (LICENSE) |" in text
    assert "| a | a-copy | cc-by-nc-4.0 (README.md) |" in text
    assert "rules out commercial use" in text
    assert "| b |" not in text
