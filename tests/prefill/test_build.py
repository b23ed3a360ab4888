"""A folder of graphs is whole or not there, whatever stops its making."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgerun.errors import EdgerunError, ReadError, UnsupportedError
from edgerun.events import Progress
from edgerun.prefill import build as build_module
from edgerun.prefill.build import build_model
from edgerun.prefill.layer_files import GraphFile
from edgerun.prefill.providers import device_named
from edgerun.prefill.schemes import SCHEMES
from edgerun.prefill.sessions import Sessions
from edgerun.weights.identity import content_digest
from tests.models.instances import INSTANCES, write
from tests.prefill.making import attached, build, load, ort_backend, ranges_of, tokens

# a build that says where it is and stays there: before its nth file gets its name
_CHILD = """
import os, sys, time
from pathlib import Path
from edgerun.formats.gguf import open_gguf
from edgerun.models import load_spec
from edgerun.prefill.build import build_model
from edgerun.prefill.ranges import LayerRanges
from edgerun.prefill.schemes import SCHEMES
from edgerun.weights.identity import content_digest

model, root, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
count, sync = 0, os.fsync

def slow(fd):
    global count
    sync(fd)
    count += 1
    if count == last:
        print("here", flush=True)
        time.sleep(600)

gguf = open_gguf(model)
spec = load_spec(gguf)
content_digest(gguf, root)  # found out and kept already
os.fsync = slow
build_model(root, gguf, spec, SCHEMES["fp32"], [LayerRanges()] * spec.n_layers, (0,))
"""
_FILES = 4  # of a layer here: weights, two graphs, a record


def folder_in(root: Path) -> Path:
    """The only one with graphs."""
    (folder,) = (each for each in root.iterdir() if each.name not in ("digests", "home"))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"build.lock"}


@pytest.mark.parametrize(
    "stopped_at", [1, _FILES, _FILES + 2, 3 * _FILES + 1], ids=["first", "record", "graph", "last"]
)
def test_killed_and_begun_again(models, tmp_path, stopped_at):
    model, root = models("llama"), tmp_path / "root"
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(model.gguf.path), str(root), str(stopped_at)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"here\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    folder = folder_in(root)
    left = names(folder)
    assert len(left) == stopped_at and sum(name.endswith(".edgerun-tmp") for name in left) == 1
    assert "model.json" not in left
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    said: list[Progress] = []
    built = build_model(
        root, model.gguf, model.spec, SCHEMES["fp32"], ranges_of(model, SCHEMES["fp32"]), (0,), events=said.append
    )
    assert built.folder == folder
    assert len(names(folder)) == 3 * _FILES + 1 and not any(name.endswith(".edgerun-tmp") for name in names(folder))
    for layer in range((stopped_at - 1) // _FILES):
        for path in folder.glob(f"layer-{layer:03d}*"):
            assert path.stat().st_mtime_ns == times[path.name], "whole layers are not made again"
    assert (said[0].done, said[-1].done, said[-1].total) == (0, 3, 3)
    check(model, built)


def check(model, built) -> None:
    """It computes what the kernels do."""
    want = model.logits(tokens(40))
    with attached(ort_backend(model, built), model.decoder):
        np.testing.assert_allclose(model.logits(tokens(40)), want, atol=1e-3)


def test_a_whole_folder_is_used_as_it_is(models, tmp_path):
    model = models("llama")
    first = build(model, tmp_path, "w8a8")
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    again = build(model, tmp_path, "w8a8")
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == times


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "layer-001.json").write_text("{"),
        lambda folder: (folder / "layer-001.json").write_bytes(b"\xff\x00"),
        lambda folder: (folder / "layer-001.json").write_text("[]"),
        lambda folder: (folder / "layer-001.json").write_text(
            '{"ranges": {"kept": {}, "outliers": {"x": [1]}}, "stored": {}}'
        ),
        lambda folder: (folder / "layer-001.json").write_text('{"ranges": {"kept": {}, "outliers": {}}, "stored": {}}'),
        lambda folder: (folder / "layer-001.json").unlink(),
        lambda folder: (folder / "layer-001.weights").unlink(),
        lambda folder: os.truncate(folder / "layer-001.weights", 5000),
        lambda folder: os.truncate(folder / "layer-001.weights", 0),
        lambda folder: (folder / "layer-001.weights").write_bytes((folder / "layer-001.weights").read_bytes() + b"1"),
    ],
    ids=["json", "bytes", "list", "product", "empty", "gone", "no-weights", "cut", "nothing", "longer"],
)
def test_damage_is_found_and_mended(models, tmp_path, damage):
    model = models("qwen2")
    built = build(model, tmp_path)
    before = (built.folder / "layer-000.weights").stat().st_mtime_ns
    whole = {path.name: path.read_bytes() for path in built.folder.iterdir()}
    damage(built.folder)
    again = build(model, tmp_path)
    assert again == built
    assert {path.name: path.read_bytes() for path in built.folder.iterdir()} == whole
    assert (built.folder / "layer-000.weights").stat().st_mtime_ns == before, "the other layers are kept"
    check(model, again)


def test_a_graph_that_is_gone(models, tmp_path):
    model = models("llama")
    built = build(model, tmp_path)
    gone = built.graphs(model.spec)[3]
    (built.folder / gone.name).unlink()
    backend = ort_backend(model, built)
    with pytest.raises(ReadError, match=gone.name):
        backend._sessions.open_all(model.spec)
    with attached(backend, model.decoder), pytest.raises(ReadError, match=gone.name):
        model.logits(tokens(40))
    shutil.rmtree(built.folder)  # as the message says
    check(model, build(model, tmp_path))


def test_a_later_layer_is_refused_before_any_prompt(models, tmp_path):
    """Also where only one layer's sessions are kept open."""
    model = models("llama")
    built = build(model, tmp_path)
    last = built.graphs(model.spec)[-1]
    (built.folder / last.name).write_bytes(b"no graph")
    sessions = Sessions(built, device_named("ort"), threads=2, keep_layers=1)
    with pytest.raises(UnsupportedError, match=f"refuses {last.name}"):
        sessions.open_all(model.spec)


def test_a_graph_that_is_damaged(models, tmp_path):
    model = models("llama")
    built = build(model, tmp_path)
    path = built.folder / built.graphs(model.spec)[0].name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(EdgerunError, match=path.name):
        ort_backend(model, built)._sessions.open_all(model.spec)


def test_weights_cut_while_nobody_looks(models, tmp_path):
    """After the folder was checked, before a session is opened: an error, not other numbers."""
    model = models("llama")
    built = build(model, tmp_path)
    os.truncate(built.folder / "layer-001.weights", 4096)
    with pytest.raises(EdgerunError, match="layer-001"):
        ort_backend(model, built)._sessions.open_all(model.spec)


def test_what_differs_has_another_folder(models, tmp_path):
    llama, other = models("llama"), models("llama3-rope")
    folders = [
        build(model, tmp_path, scheme, sizes, **more).folder
        for model, scheme, sizes, more in (
            (llama, "fp32", (0,), {}),
            (llama, "fp32", (32,), {}),
            (llama, "fp32", (32, 128), {}),
            (llama, "fp32", (0,), {"rotated": True}),
            (llama, "fp16", (0,), {}),
            (llama, "w8a8", (0,), {}),
            (llama, "w7a8", (0,), {}),
            (other, "fp32", (0,), {}),
        )
    ]
    assert len(set(folders)) == len(folders)
    same_grid = ranges_of(llama, SCHEMES["w8a8"])
    wider = [type(each)({k: (2 * a, 2 * b) for k, (a, b) in each.kept.items()}, each.outliers) for each in same_grid]
    builds = [build_model(tmp_path, llama.gguf, llama.spec, SCHEMES["w8a8"], r, (0,)) for r in (same_grid, wider)]
    assert builds[0].folder != builds[1].folder, "ranges lie in the graphs"


def test_another_model_under_the_same_name(tmp_path, kernels):
    """Same path, shapes and size, other weights."""
    path = tmp_path / "model.gguf"
    first = load(INSTANCES["llama"], path, kernels)
    folder = build(first, tmp_path / "root").folder
    first.gguf.close()
    path.unlink()
    write(INSTANCES["llama"], path)
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(0.5).tobytes()  # the last tensor is longer than what is sampled of it
    at = len(data) - len(data) // 4
    data[at : at + 40_000] = np.random.default_rng(0).standard_normal(10_000).astype(np.float32).tobytes()
    path.write_bytes(data)
    second = load(INSTANCES["llama"], path, kernels)
    assert build(second, tmp_path / "root").folder != folder


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_lie_on_pages(models, tmp_path, scheme):
    model = models("llama")
    built = build(model, tmp_path, scheme)
    for index, layer in enumerate(built.layers):
        parts = sorted(layer.stored.values(), key=lambda each: each.offset)
        assert all(each.offset % 4096 == 0 for each in parts)
        assert all(a.offset + a.n_bytes <= b.offset for a, b in zip(parts, parts[1:], strict=False))
        assert (built.folder / f"layer-{index:03d}.weights").stat().st_size == parts[-1].offset + parts[-1].n_bytes
    sizes = [(built.folder / f"layer-{index:03d}.weights").stat().st_size for index in range(3)]
    assert built.n_bytes == sum(sizes)
    graphs = built.graphs(model.spec)
    assert {each.name for each in graphs} == {name for name in names(built.folder) if name.endswith(".onnx")}
    assert all((built.folder / each.name).stat().st_size < 20_000 for each in graphs), "weights are beside graphs"


@pytest.mark.parametrize("locks", [True, False])
def test_two_builders_at_once(models, tmp_path, monkeypatch, locks):
    """The second comes while the first is in the middle of a file. It waits and makes nothing; where nothing can be
    locked it begins and ends, and both get the whole."""
    if not locks:
        monkeypatch.setattr(build_module, "one_at_a_time", lambda *args, **more: contextlib.nullcontext())
    model, started, go_on = models("llama"), threading.Event(), threading.Event()
    content_digest(model.gguf, tmp_path)  # found out and kept already
    sync, results, errors = os.fsync, [], []

    def slow(fd: int) -> None:
        sync(fd)
        if threading.current_thread().name == "first" and not started.is_set():
            started.set()
            assert go_on.wait(20)

    def first() -> None:
        try:
            results.append(build(model, tmp_path))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    monkeypatch.setattr(os, "fsync", slow)
    thread = threading.Thread(target=first, name="first")
    thread.start()
    assert started.wait(20)
    if locks:
        folder = folder_in(tmp_path)
        before = names(folder)
        with monkeypatch.context() as impatient:
            impatient.setattr(build_module, "_MOST_WAIT_S", 0.3)
            with pytest.raises(EdgerunError, match="another edgerun is making it"):
                build(model, tmp_path)
        assert names(folder) == before, "the second made nothing"
        go_on.set()
        results.append(build(model, tmp_path))
    else:
        results.append(build(model, tmp_path))
        go_on.set()
    thread.join(20)
    assert not errors
    assert results[0] == results[1]
    assert not [name for name in names(results[0].folder) if name.endswith(".edgerun-tmp")]
    check(model, results[0])


def test_no_room_is_an_error_and_leaves_no_rubbish(models, tmp_path, monkeypatch):
    model = models("llama")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            build(model, tmp_path)
    (folder,) = tmp_path.glob("llama-fp32-*")
    assert not names(folder)
    check(model, build(model, tmp_path))


def test_records_say_what_was_built(models, tmp_path):
    model = models("llama")
    built = build(model, tmp_path, "w8a8", (32,))
    said = json.loads((built.folder / "layer-002.json").read_text())
    assert set(said) == {"ranges", "stored", "experts"}
    assert said["stored"]["down.t"]["type"] == "INT8"
    assert built.graphs(model.spec)[-1] == GraphFile(2, built.graphs(model.spec)[-1].segment, 32)
