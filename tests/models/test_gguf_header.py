"""What a GGUF file says of itself reaches the folder that it becomes, and licences; damage is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailorlib.export.card import CardInfo, render_card
from tailorlib.export.licenses import License, license_warnings, licenses_of
from tailorlib.models import gguf as conversion
from tailorlib.models.gguf_header import FILE, hub_ids, stated, statements
from tailorlib.models.source import resolve
from tailorlib.tailoring import Tailoring


def write_gguf(file: Path, **entries: str) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_uint32("general.file_type", 3)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b\u2603"] * 50)
    writer.add_array("tokenizer.ggml.scores", [0.5] * 100)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_float64("x.y", 1.0)
    for name, text in entries.items():
        writer.add_string(f"general.{name}", text)
    writer.add_string("tokenizer.chat_template", "{{ x }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def test_the_texts_that_gguf_s_own_reader_finds(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", name="Größe", license="apache-2.0", empty="")
    fields = gguf.GGUFReader(file).fields
    text = {n: f.contents() for n, f in fields.items() if f.types == [gguf.GGUFValueType.STRING]}
    assert statements(file) == {n: t for n, t in text.items() if n.startswith("general.")}
    assert statements(file)["general.license"] == "apache-2.0"


def test_a_converted_file_keeps_its_licence_and_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "_convert", lambda file, folder: (folder / "config.json").write_text("{}"))
    entries = {
        "license": "other",
        "license.name": "llama3.2",
        "source.huggingface.repository": "org/chat",
        "base_model.0.repo_url": "https://huggingface.co/org/base",
        "repo_url": "https://e.vil/org/x",
    }
    folder = resolve(str(write_gguf(tmp_path / "a.gguf", **entries))).folder
    assert licenses_of(folder) == (License("llama3.2", "GGUF metadata"),)
    assert set(hub_ids(folder)) == {"org/chat", "org/base"}
    assert "restrictions of use" in license_warnings({"base": licenses_of(folder), "a": (License("mit", "x"),)})[0]
    card = render_card(
        CardInfo(),
        Tailoring.whole("base", 1),
        title="x",
        references={"base": "/models/a.gguf"},
        layer_kinds=("full_attention",),
        num_parameters=1,
        licenses={"base": licenses_of(folder)},
        origins={"base": hub_ids(folder)},
    )
    assert "license: llama3.2\n" in card
    assert "base_model:\n- org/" in card
    assert "| base | a.gguf (of org/" in card
    assert "llama3.2 (GGUF metadata)" in card


def test_a_folder_that_was_never_a_gguf_file_states_nothing(tmp_path: Path) -> None:
    assert stated(tmp_path) == {}
    for text in ("[", "[]", '"x"', json.dumps({"general.license": ["mit"], "general.repo_url": 3})):
        (tmp_path / FILE).write_text(text)
        assert licenses_of(tmp_path) == ()
        assert hub_ids(tmp_path) == ()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_passed_over_in_no_time(tmp_path: Path, data: st.DataObject) -> None:
    file = write_gguf(tmp_path / "a.gguf", name="x", license="mit")
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 8, 9, 127, 255]))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert all(isinstance(text, str) and len(text) <= 1000 for text in statements(file).values())
