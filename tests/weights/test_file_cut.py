"""A file that is cut, rewritten or replaced while it is in use: an error that names it, never SIGBUS, never another
model's answer. In processes of their own, which a touched page of a cut mapping would end."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgerun
from edgerun.errors import EdgerunError, ReadError
from edgerun.formats.file_bytes import FileBytes
from edgerun.formats.gguf import open_gguf
from edgerun.formats.safetensors import open_safetensors
from edgerun.kernels import load_kernels
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore
from edgerun.weights.packing import write_pack
from tests.models.instances import INSTANCES, write

SOURCE = Path(edgerun.__file__).parent


def cut(path: Path) -> None:
    os.truncate(path, 0)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rewritten(path: Path) -> None:
    """As `cp` over it does: the same inode, the same size, other bytes."""
    data = bytes(path.stat().st_size)
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 10**9, before + 10**9))  # a clock's tick may be longer than this test


def replaced(path: Path) -> None:
    """As a careful download does: what is open stays what it was."""
    other = path.with_suffix(".other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


DAMAGES = {each.__name__: each for each in (cut, cut_in_half, rewritten, replaced)}


def outcome_of(action, path: Path) -> str:
    try:
        action()
    except ReadError as error:
        return "named" if str(path) in str(error) else f"no name in {error}"
    except EdgerunError as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def open_store(kind: str, gguf, spec, kernels, events):
    if kind == "resident":
        return ResidentStore(gguf, spec, kernels, events=events)
    if kind == "experts":
        return StreamedExpertStore(gguf, spec, kernels, slots=2, wave_tokens=256, events=events)
    slots = 8 if spec.sparse else 0
    return StreamedLayerStore(gguf, spec, kernels, pinned=[], wave_tokens=256, neuron_slots=slots, events=events)


def in_use(kind: str, name: str, folder: Path) -> dict[str, list[str]]:
    """damage -> outcomes of: a call, a prompt after it, a value of the metadata, a tensor; of a call when the file is
    whole again; and of a model that is loaded then."""
    kernels, found = load_kernels("reference"), {}
    for damage, harm in DAMAGES.items():
        path = write(INSTANCES[name], folder / f"{damage}.gguf")
        whole = path.read_bytes()
        with open_gguf(path) as gguf:
            spec = load_spec(gguf)
            store = open_store(kind, gguf, spec, kernels, lambda event: None)
            decoder = Decoder(spec, store, kernels)
            expected = decoder.forward([1, 2, 3], decoder.new_cache(64))

            def right(decoder=decoder, expected=expected):
                got = decoder.forward([1, 2, 3], decoder.new_cache(64))
                assert np.array_equal(got, expected), "another answer"

            harm(path)
            actions = [
                right,
                lambda decoder=decoder: decoder.forward(list(range(50)), decoder.new_cache(64)),
                lambda gguf=gguf: gguf.metadata["general.name"],
                lambda gguf=gguf: gguf.raw("token_embd.weight"),
            ]
            found[damage] = [outcome_of(action, path) for action in actions]
            path.write_bytes(whole)
            found[damage].append(outcome_of(right, path))
            store.close()
        with open_gguf(path) as gguf:
            store = open_store(kind, gguf, spec, kernels, lambda event: None)
            again = Decoder(spec, store, kernels)
            assert np.array_equal(again.forward([1, 2, 3], again.new_cache(64)), expected)
            store.close()
    return found


def while_loading(kind: str, name: str, folder: Path) -> dict[str, list[str]]:
    """damage -> outcomes of loading and a first call, when it comes with the n-th event of it; `pack` packs."""
    kernels, found = load_kernels("reference"), {}
    for damage, harm in DAMAGES.items():
        found[damage] = []
        for moment in (0, 3):
            path = write(INSTANCES[name], folder / f"{damage}.gguf")
            seen = []

            def events(event, seen=seen, harm=harm, path=path, moment=moment):
                seen.append(event)
                if len(seen) == moment + 1:
                    harm(path)

            with open_gguf(path) as gguf:
                spec = load_spec(gguf)

                def load(gguf=gguf, spec=spec, events=events):
                    if kind == "pack":
                        write_pack(gguf, spec, kernels, events=events)
                        return
                    store = open_store(kind, gguf, spec, kernels, events)
                    try:
                        decoder = Decoder(spec, store, kernels)
                        decoder.forward([1, 2, 3], decoder.new_cache(64))
                    finally:
                        store.close()

                outcome = outcome_of(load, path)
                if len(seen) > moment:  # else loading has fewer events, and nothing was harmed
                    found[damage].append(outcome)
    return found


def ask(what: str, kind: str, name: str, folder: Path) -> dict[str, list[str]]:
    """Of a process of its own."""
    command = [sys.executable, "-m", "tests.weights.test_file_cut", what, kind, name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=SOURCE.parent, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


KINDS = [("resident", "llama-Q4_0"), ("layers", "llama"), ("experts", "olmoe-Q8_0"), ("layers", "relu2-Q4_0")]


@pytest.mark.parametrize(("kind", "name"), [*KINDS, ("resident", "olmoe-Q8_0")])
def test_in_use(kind, name, tmp_path):
    found = ask("in_use", kind, name, tmp_path)
    for damage in ("cut", "cut_in_half", "rewritten"):
        assert found[damage][:4] == ["named"] * 4, damage
        assert found[damage][4] in ("fine", "named"), "works, or says that it changed"
    assert found["replaced"] == ["fine"] * 5, "an open file is what it was"


@pytest.mark.parametrize(("kind", "name"), [*KINDS, ("resident", "relu2-Q4_0"), ("pack", "olmoe-Q8_0")])
def test_while_loading(kind, name, tmp_path):
    found = ask("while_loading", kind, name, tmp_path)
    for damage in ("cut", "cut_in_half", "rewritten"):
        assert found[damage] and set(found[damage]) == {"named"}, damage
    assert all(each == "fine" for each in found["replaced"]) or kind == "pack"


def test_checkpoints_are_read_alike(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 1024], "data_offsets": [0, 16384]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16384))
    with open_safetensors(path) as model:
        assert model.rows("w", 1, 3).shape == (2, 1024)
        cut_in_half(path)
        with pytest.raises(ReadError, match=f"{path.name}.*cut"):
            model.rows("w", 0, 1)


def test_bytes_of_a_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(200)))
    file = FileBytes(path)
    assert file.read(3, 4) == bytes([3, 4, 5, 6]) and file.read(200, 0) == b""
    assert file.read_array(196, 4).tolist() == [196, 197, 198, 199]
    with pytest.raises(ReadError, match="ends at byte 200"):
        file.read(198, 4)
    os.utime(path, ns=(0, 0))
    with pytest.raises(ReadError, match="was changed while in use"):
        file.read(0, 1)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(0, 1)


def test_nothing_maps_a_file():
    """Only anonymous memory is mapped: `mmap.mmap(-1, ...)`."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                maps = name.endswith("memmap") or any(each.arg == "mmap_mode" for each in node.keywords)
                if maps or (name in ("mmap.mmap", "mmap") and ast.unparse(node.args[0]) != "-1"):
                    found.append(f"{path.name}:{node.lineno}")
    assert not found


if __name__ == "__main__":
    run = {"in_use": in_use, "while_loading": while_loading}[sys.argv[1]]
    sys.stdout.write(json.dumps(run(sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
