from __future__ import annotations

from pathlib import Path

import pytest
from tailorlib_strategies.texts.files import JSONLines, PlainText

from tailorlib.exceptions import DataError


def test_json_lines_gives_a_field_of_each_line(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text(
        '{"text": "one\\u2028two", "body": "x"}\n\n{"text": "  ", "body": "y"}\n{"text": "é", "body": "z"}\n'
    )
    assert JSONLines(str(file)).documents() == ["one\u2028two", "é"]
    assert JSONLines(str(file), field="body").documents() == ["x", "y", "z"]
    assert JSONLines(str(file), limit=1).documents() == ["one\u2028two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', "line 2 of .* is none"),
        ('{"text": "a"}\n[1]\n', "line 2 of .* is a list"),
        ('{"text": "a"}\n\n{"body": "b"}\n', "has the field 'text'; line 3 of .* has 'body'"),
        ('{"text": 3}\n', "in line 1 of .* it is a int"),
        ("\n \n", "at least one document, got none"),
    ],
)
def test_json_lines_names_the_bad_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        JSONLines(str(file)).documents()


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one\n\ntwo\n")
    assert PlainText(str(file)).documents() == ["one\n\ntwo\n"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read: No such file"):
        PlainText(str(tmp_path / "none.txt")).documents()
    with pytest.raises(DataError, match="can't be read: No such file"):
        JSONLines(str(tmp_path / "none.jsonl")).documents()
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="nothing but white space"):
        PlainText(str(tmp_path / "empty.txt")).documents()
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match="is in UTF-8"):
        PlainText(str(tmp_path / "latin.txt")).documents()
