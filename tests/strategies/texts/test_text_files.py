from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tailorlib_strategies.texts import files
from tailorlib_strategies.texts.files import JSONLines, PlainText

from tailorlib.exceptions import DataError
from tailorlib.text import TextSource


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


@pytest.mark.parametrize("source", [PlainText, JSONLines])
def test_what_is_no_file_is_refused_and_never_waited_for(
    source: Callable[[str], TextSource], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name, kind in (("pipe", "a pipe"), ("link", "a pipe"), ("socket", "a socket"), ("", "it is a folder")):
        with pytest.raises(DataError, match=f"can't be read: .*{kind}"):
            source(str(tmp_path / name)).documents()
    with pytest.raises(DataError, match="can't be read: it is a device and no file"):
        source("/dev/zero").documents()
    server.close()


@pytest.mark.parametrize("source", [PlainText, JSONLines])
@pytest.mark.parametrize(("content", "said"), [(b"\0", "no NUL characters; line 3"), (b"\xff", "UTF-8; line 3")])
def test_a_line_that_is_no_text_is_named(
    source: Callable[[str], TextSource], content: bytes, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "text"
    file.write_bytes(b'{"text": "one"}\n{"text": "two"}\n' + content + b"\n")
    with pytest.raises(DataError, match=said):
        source(str(file)).documents()


def test_half_a_character_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text('{"text": "one"}\n{"text": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"half a character .* in line 2"):
        JSONLines(str(tmp_path / "text")).documents()


def test_json_lines_reads_no_more_than_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b'{"text": "one"}\n' + b"\xff" * 100)
    assert JSONLines(str(tmp_path / "text"), limit=1).documents() == ["one"]


def test_a_text_is_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 20)
    (tmp_path / "text").write_text("word\n" * 5)
    with pytest.raises(DataError, match="25 bytes and at most 20 are read"):
        PlainText(str(tmp_path / "text")).documents()
    (tmp_path / "line").write_text('{"text": "one"}\n{"text": "' + 20 * "x" + '"}\n')
    with pytest.raises(DataError, match="at most 20 bytes; line 2"):
        JSONLines(str(tmp_path / "line")).documents()


def test_line_breaks_of_any_system_are_one_character(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"one\r\ntwo\rthree\n")
    assert PlainText(str(tmp_path / "text")).documents() == ["one\ntwo\nthree\n"]
    (tmp_path / "lines").write_bytes(b'{"text": "one"}\r\n{"text": "two"}\r\n')
    assert JSONLines(str(tmp_path / "lines")).documents() == ["one", "two"]
