"""A model's identity is all of it; found out once for a file as it is."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edgerun.events import Progress
from edgerun.formats.gguf import open_gguf
from edgerun.weights.identity import ContentDigest, content_digest, file_stamp, known_digest
from tests.models.instances import INSTANCES, write


@pytest.fixture
def path(tmp_path):
    return write(INSTANCES["llama-Q4_0"], tmp_path / "model.gguf")


def test_found_out_once_and_again_when_the_file_was_touched(path, tmp_path):
    root, said = tmp_path / "cache", []
    with open_gguf(path) as gguf:
        assert known_digest(gguf, root) is None
        digest = content_digest(gguf, root, said.append)
        assert isinstance(said[-1], Progress) and said[-1].done == said[-1].total == gguf.n_bytes
        said.clear()
        assert content_digest(gguf, root, said.append) == known_digest(gguf, root) == digest
        assert not said, "nothing was read"
        stamp = file_stamp(gguf)
        info = gguf.tensors["blk.1.ffn_up.weight"]
    os.utime(path, ns=(1, 1))
    with open_gguf(path) as gguf:
        assert file_stamp(gguf) != stamp and known_digest(gguf, root) is None
        assert content_digest(gguf, root) == digest
    with path.open("r+b") as file:
        file.seek(info.offset + info.n_bytes - 1)
        file.write(b"\x5a")
    with open_gguf(path) as gguf:
        assert content_digest(gguf, root) != digest
        (root / "digests" / file_stamp(gguf)).write_text("../../nonsense")
        assert known_digest(gguf, root) is None


def test_in_whatever_order_it_is_given(path):
    with open_gguf(path) as gguf:
        expected = ContentDigest(gguf).finish()
        rng = np.random.default_rng(0)
        names = list(gguf.tensors)
        for _ in range(5):
            digest, rng_order = ContentDigest(gguf), rng.permutation(len(names))
            for index in rng_order[: rng.integers(0, len(names))]:
                info = gguf.tensors[names[index]]
                rows = info.n_bytes // info.row_bytes
                for low in range(0, rng.integers(0, rows + 1), 7):  # some of them are not finished
                    digest.feed(info, gguf.rows(info.name, low, min(rows, low + 7)))
            assert digest.finish() == expected


def test_where_nothing_can_be_kept(path, tmp_path):
    (tmp_path / "in the way").touch()
    with open_gguf(path) as gguf:
        assert content_digest(gguf, tmp_path / "in the way") == ContentDigest(gguf).finish()
