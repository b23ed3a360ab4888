"""A header without its model: planned before a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.errors import FormatError, NetworkError, NotFoundError
from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.hub import header
from edgerun.hub.header import fetch_header
from edgerun.hub.names import RepoName
from hub.fake_hub import MOST, FakeHub, serve
from tests.models.instances import INSTANCES, write

REPO = RepoName("org/big-GGUF", None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(INSTANCES["llama-Q4_0"], tmp_path / "big-Q4_0.gguf")


def serve_file(path: Path, **options: Any) -> Any:
    return serve(FakeHub({REPO.repo: {path.name: path.read_bytes()}}, **options))


@pytest.mark.parametrize("first", [300, 5000, 1 << 20])
def test_the_header_is_whole_and_the_weights_are_not_fetched(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(header, "_FIRST_BYTES", first)
    folder = tmp_path / "headers"
    folder.mkdir()
    with serve_file(model) as hub, open_gguf(model) as real:
        path, n_bytes = fetch_header(REPO, folder, endpoint=hub.endpoint)
        with open_gguf(path) as gguf:
            assert n_bytes == model.stat().st_size == path.stat().st_size
            assert {k: (v.shape, v.type, v.offset) for k, v in gguf.tensors.items()} == {
                k: (v.shape, v.type, v.offset) for k, v in real.tensors.items()
            }
            assert dict(gguf.metadata).keys() == dict(real.metadata).keys()
        asked = [each for each in hub.ranges() if each]
        last = max(int(each.split("-")[1]) for each in asked)
        assert last < min(4 * max(first, min(info.offset for info in real.tensors.values())), n_bytes)


def test_signed_addresses_elsewhere_get_no_token(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve_file(model) as cdn, serve_file(model, cdn=cdn.endpoint) as hub:
        fetch_header(REPO, tmp_path, endpoint=hub.endpoint)
        assert not cdn.authorised


def test_what_can_go_wrong(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "headers"
    folder.mkdir()
    with serve_file(model, whole_only=True) as hub, pytest.raises(NetworkError, match="does not give parts"):
        fetch_header(REPO, folder, endpoint=hub.endpoint)
    with serve_file(model, down=True) as hub, pytest.raises(NetworkError):
        fetch_header(REPO, folder, endpoint=hub.endpoint)
    with serve_file(model) as hub, pytest.raises(NotFoundError):
        fetch_header(RepoName("org/none", None), folder, endpoint=hub.endpoint)
    model.write_bytes(b"GGUF" + bytes(1000))
    with serve_file(model) as hub, pytest.raises(FormatError):
        fetch_header(REPO, folder, endpoint=hub.endpoint)


def test_a_server_that_ignores_ranges_is_not_read_to_its_end(model: Path, tmp_path: Path) -> None:
    with serve_file(model, endless=True) as hub, pytest.raises(NetworkError, match="does not give parts"):
        fetch_header(REPO, tmp_path, endpoint=hub.endpoint)
    assert hub.sent < MOST // 8, "what the connection holds, and no more"


def test_the_page_of_a_login_is_no_header(model: Path, tmp_path: Path) -> None:
    with serve_file(model, portal=r"GET /.*\.gguf") as hub, pytest.raises(NetworkError):
        fetch_header(REPO, tmp_path, endpoint=hub.endpoint)
    with serve_file(model, portal=".") as hub, pytest.raises(NetworkError, match="does not answer as"):
        fetch_header(REPO, tmp_path, endpoint=hub.endpoint)


def test_a_large_vocabulary(tmp_path: Path) -> None:
    """Longer than the first request: more is asked for."""
    path = tmp_path / "vocabulary.gguf"
    with GgufWriter(path, "llama") as w:
        w.add("tokenizer.ggml.tokens", [b"token %d" % i * 5 for i in range(60_000)])
        w.add_tensor("token_embd.weight", np.zeros((64, 4096), np.float32), GgmlType.F32)
    folder = tmp_path / "headers"
    folder.mkdir()
    with serve_file(path) as hub:
        found, _ = fetch_header(REPO, folder, endpoint=hub.endpoint)
        with open_gguf(found) as gguf:
            assert len(gguf.metadata["tokenizer.ggml.tokens"]) == 60_000
        assert len([each for each in hub.ranges() if each]) == 2
