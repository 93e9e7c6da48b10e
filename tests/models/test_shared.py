"""Weights once per node: processes share files, bits are those of private weights, and nothing torn is read."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_cases import CPU, LAYERS, logits, random_tailoring
from test_adapter import write_adapter
from test_vocabulary import permuted

from tailorlib.exceptions import ModelError
from tailorlib.models import shared
from tailorlib.models.family import ModelFamily
from tailorlib.models.shared import SharedFolder
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_family

DYING_BEFORE_THE_MOVE = """
import os, pathlib
pathlib.Path.replace = lambda self, target: os.kill(os.getpid(), 9)
"""
DYING_HALFWAY = """
import os, pathlib, tailorlib.models.shared as shared
class Stream:
    def __init__(self, stream): self.stream, self.times = stream, 0
    def __enter__(self): return self
    def __exit__(self, *_): self.stream.close()
    def write(self, data):
        self.times += 1
        if self.times == 4:  # the header, two tensors, and half of a third one
            self.stream.write(memoryview(data)[: len(data) // 2])
            self.stream.flush()
            os.kill(os.getpid(), 9)
        self.stream.write(data)
before = pathlib.Path.open
def opened(self, *a, **k):
    return Stream(before(self, *a, **k)) if self.suffix == ".tmp" else before(self, *a, **k)
pathlib.Path.open = opened
"""
PROCESS = """
import hashlib, json, sys, torch
from pathlib import Path
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring
torch.set_num_threads(1)
root, folder, models = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(",")
family = ModelFamily(str(root / "base"), {n: str(root / n) for n in "ab"}, dtype="float32")
family.prepare()
found = family.share_weights(folder)
family.load(torch.device("cpu"))
digest = hashlib.sha256()
for name in models:
    model = family.stitch(Tailoring.whole(name, 6))
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    with torch.inference_mode():
        digest.update(model(torch.arange(4, 40)[None]).logits.numpy().data)
memory = family.stitcher.memory()
print(json.dumps([found.built, found.found, digest.hexdigest(), memory["mapped"], sum(memory.values())]))
"""
GROUPS = LAYERS + 3
"""What has to be computed of one model: its layers, embeddings, norm and head."""


def start(script, *arguments, **settings):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **settings)


def result(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    write_tiny_family(root, num_layers=LAYERS, dtype=torch.bfloat16)
    return root


def family_in(root, folder=None, dtype="float32", **settings):
    family = ModelFamily(str(root / "base"), {n: str(root / n) for n in "ab"}, dtype=dtype, **settings)
    family.prepare()
    counts = None if folder is None else family.share_weights(folder)
    family.load(CPU)
    return family, counts


def files(folder):
    return sorted(folder.glob("*.safetensors"))


def same(family, plain, tailorings):
    for tailoring in tailorings:
        assert torch.equal(logits(family.stitch(tailoring)), logits(plain.stitch(tailoring)))
        state, expected = (f.stitch(tailoring).state_dict() for f in (family, plain))
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)
        assert all(state[name].dtype == expected[name].dtype for name in state)


def test_processes_compute_each_layer_once_between_them(root, folder, tmp_path):
    (tmp_path / "alone").mkdir()
    together = [start(PROCESS, root, folder, "base,a"), start(PROCESS, root, folder, "base,a")]
    alone = start(PROCESS, root, tmp_path / "alone", "base,a")
    one, other = (result(process) for process in together)
    single = result(alone)
    assert single[:2] == [2 * GROUPS, 0]
    assert one[0] + other[0] == 2 * GROUPS  # between two that start at once
    assert one[1] + other[1] == 2 * GROUPS
    assert len(files(folder)) == 2 * GROUPS
    assert one[2:] == other[2:] == single[2:]
    assert one[3] == one[4] - one[3]  # all of it is mapped
    family, third = family_in(root, folder)
    plain, _ = family_in(root)
    same(family, plain, [Tailoring.whole("base", LAYERS), Tailoring.whole("a", LAYERS)])
    assert (third.built, third.found) == (0, 2 * GROUPS)
    same(family, plain, [random_tailoring(family, seed) for seed in range(6)])  # merges are private, and the same


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_to_read(root, tmp_path):
    dying = {}
    for name, death in {"halfway": DYING_HALFWAY, "whole": DYING_BEFORE_THE_MOVE}.items():
        (tmp_path / name).mkdir()
        dying[name] = start(death + PROCESS, root, tmp_path / name, "base")
    sizes = {}
    for name, process in dying.items():
        process.communicate(timeout=120)
        assert process.returncode == -9
        assert files(tmp_path / name) == []
        (written,) = (tmp_path / name).glob(".*.tmp")
        sizes[name] = written.stat().st_size
        family, counts = family_in(root, tmp_path / name)
        same(family, family_in(root)[0], [Tailoring.whole("base", LAYERS)])
        assert (counts.built, counts.found) == (GROUPS, 0)
        assert not list((tmp_path / name).glob(".*.tmp"))
    assert 0 < sizes["halfway"] < sizes["whole"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:100], lambda data: b""])
def test_a_torn_file_is_made_anew(root, folder, damage):
    family_in(root, folder)[0].stitch(Tailoring.whole("a", LAYERS))
    for file in files(folder):
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(damage(data))
    family, counts = family_in(root, folder)
    same(family, family_in(root)[0], [Tailoring.whole("a", LAYERS)])
    assert (counts.built, counts.found) == (GROUPS, 0)


@pytest.mark.parametrize(
    ("case", "storage", "compute"),
    [
        ("llama-tied", "bfloat16", "float32"),
        ("mixtral", "bfloat16", "float32"),
        ("mixtral", "float32", "float32"),
        ("qwen3_moe", "float32", "bfloat16"),
        ("gpt2", "bfloat16", "float32"),
    ],
)
def test_every_kind_of_layer_keeps_its_bits(case_family, folder, case, storage, compute):
    plain, sharing, again = (case_family(case, storage, compute) for _ in range(3))
    counts = [family.share_weights(folder) for family in (sharing, again)]
    tailorings = [Tailoring.whole("a", LAYERS), *(random_tailoring(plain, seed) for seed in range(3))]
    same(sharing, plain, tailorings)
    same(again, plain, tailorings)
    assert counts[0].built == counts[1].found > 0 == counts[1].built
    memory = sharing.stitcher.memory()
    assert memory["mapped"] == sum(memory.values()) - memory["mapped"] - memory["merged"]


def test_an_adapter_s_changes_alone_are_written(folders, folder, tmp_path):
    adapter = write_adapter(folders["base"], tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    families = []
    for shares in (True, False):
        family = ModelFamily(str(folders["base"]), {"tuned": str(adapter)}, dtype="float32")
        family.prepare()
        if shares:
            counts = family.share_weights(folder)
        family.load(CPU)
        families.append(family)
    same(*families, [Tailoring.whole("tuned", LAYERS), Tailoring.whole("base", LAYERS)])
    assert counts.built == LAYERS
    names = {name for file in files(folder) for name in shared._mapped(file)}
    assert names == {"self_attn.q_proj.weight", "mlp.up_proj.weight"}


def test_an_aligned_vocabulary_is_computed_once(folders, folder, tmp_path):
    candidate = permuted(tmp_path / "candidate", folders["a"])
    families = []
    for shares in (True, False):
        family = ModelFamily(str(folders["base"]), {"other": str(candidate)}, dtype="float32")
        family.prepare()
        if shares:
            counts = family.share_weights(folder)
        family.load(CPU)
        families.append(family)
    same(*families, [Tailoring.whole("other", LAYERS)])
    assert counts.built == 2  # embeddings and head; the rest is mapped from the candidate


def test_tensors_lie_as_they_do_in_memory(root, folder):
    family, _ = family_in(root, folder)
    model = family.stitch(Tailoring.whole("b", LAYERS))
    assert {parameter.data_ptr() % 64 for parameter in model.parameters()} == {0}


def test_other_weights_in_one_folder_are_other_files(root, folder, tmp_path):
    write_tiny_family(tmp_path / "changed", num_layers=LAYERS, dtype=torch.bfloat16)
    other, _ = family_in(tmp_path / "changed", folder)
    other.stitch(Tailoring.whole("a", LAYERS))
    family, counts = family_in(root, folder)
    family.stitch(Tailoring.whole("a", LAYERS))
    half, halves = family_in(root, folder, dtype="float16")
    half.stitch(Tailoring.whole("a", LAYERS))
    assert (counts.built, counts.found, halves.built) == (GROUPS, 0, GROUPS)


def test_what_files_hold_already_and_quantised_layers_are_not_written(root, folder):
    for settings in ({"dtype": "bfloat16"}, {"quantization": "int8"}):
        family, counts = family_in(root, folder, **settings)
        family.stitch(Tailoring.whole("a", LAYERS))
        assert (counts.built, counts.found) == (0, 0)
    assert not list(folder.iterdir())


def test_sharing_can_begin_after_loading(root, folder):
    family, _ = family_in(root)
    family.stitch(Tailoring.whole("base", LAYERS))
    counts = family.share_weights(folder)
    family.stitch(Tailoring.whole("base", LAYERS))
    assert counts.built == 0
    family.stitch(Tailoring.whole("a", LAYERS))
    assert counts.built == GROUPS


def test_a_folder_that_is_full_or_gone_makes_weights_private(root, folder, monkeypatch, caplog):
    family, counts = family_in(root, folder)
    plain, _ = family_in(root)
    write, written = shared._write, []

    def full(file, tensors):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        write(file, tensors)

    monkeypatch.setattr(shared, "_write", full)
    with caplog.at_level(logging.WARNING):
        same(family, plain, [Tailoring.whole("a", LAYERS)])
    assert counts.built == 3
    (record,) = caplog.records
    assert (
        f"can't be shared in {str(folder)!r} (No space left on device): each process holds" in record.getMessage()
    )
    memory = family.stitcher.memory()
    assert 0 < memory["mapped"] < memory["a"]
    monkeypatch.undo()
    gone, _ = family_in(root, folder)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    same(gone, plain, [Tailoring.whole("a", LAYERS)])
    assert gone.stitcher.memory()["mapped"] == 0
    assert not folder.exists()
    with pytest.raises(ModelError, match="folder that exists"):
        gone.share_weights(folder)


def test_a_model_that_can_t_be_computed_is_told_as_without_sharing(root, folder, tmp_path):
    write_tiny_family(tmp_path / "broken", num_layers=LAYERS, dtype=torch.bfloat16)
    from safetensors.torch import load_file, save_file

    file = tmp_path / "broken" / "a" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    family, counts = family_in(tmp_path / "broken", folder)
    with pytest.raises(ModelError, match=r"layers\.2\.mlp\.up_proj\.weight.*holds NaN"):
        family.stitch(Tailoring.whole("a", LAYERS))
    assert counts.built == 2
    family.stitch(Tailoring.whole("base", LAYERS))
    assert counts.built == 2 + GROUPS


def test_a_shared_folder_goes_with_its_process(tmp_path):
    script = """
import os, sys
from pathlib import Path
from tailorlib.models.shared import SharedFolder
folder = SharedFolder(Path(sys.argv[1]))
(folder.path / "file").write_text("content")
if os.fork() == 0:
    sys.exit()  # a child that ends removes nothing
os.wait()
print('"%s"' % folder.path, flush=True)
assert (folder.path / "file").is_file()
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
"""
    ending, killed = start(script, tmp_path / "other", ""), start(script, tmp_path, "killed")
    path = Path(result(ending))
    assert path.parent == tmp_path / "other"
    assert list(path.parent.iterdir()) == []
    path.parent.rmdir()
    left = Path(json.loads(killed.communicate(timeout=60)[0]))
    assert (left / "file").is_file()
    with SharedFolder(tmp_path) as mine:
        assert not left.exists()  # the next start removes it
        with SharedFolder(tmp_path) as other:
            assert mine.path != other.path
            assert mine.path.is_dir()  # and none whose process is alive
            assert mine.path.stat().st_mode & 0o777 == 0o700
        assert not other.path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_shared_folder_lies_in_the_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with SharedFolder() as folder:
        assert folder.path.parent == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=re.escape(f"can't be made in {str(tmp_path / 'file')!r}")):
        SharedFolder(tmp_path / "file")
