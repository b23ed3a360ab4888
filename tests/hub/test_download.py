from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgerun.errors import NetworkError, NotFoundError, UsageError
from edgerun.events import Event, Progress
from edgerun.hub import find_cached, list_models, pull, remove, resolve
from edgerun.hub.names import RepoName
from hub.fake_hub import LOGIN, MOST, FakeHub, serve

REPO = "org/tiny-GGUF"
ONE = b"GGUF" + bytes(range(256)) * 4000
PARTS = {f"tiny-Q8_0-0000{i}-of-00002.gguf": b"GGUF part%d" % i * 1000 for i in (1, 2)}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve(FakeHub({REPO: {"tiny-Q4_K_M.gguf": ONE, **PARTS}, "org/none": {}})) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub-cache"


def test_pull_then_everything_is_local(hub: FakeHub, cache: Path) -> None:
    events: list[Event] = []
    path = pull(f"hf.co/{REPO}:Q4_K_M", cache_dir=cache, endpoint=hub.endpoint, events=events.append)
    assert path.read_bytes() == ONE
    assert path.is_symlink() and path.resolve().name == hashlib.sha256(ONE).hexdigest()
    assert events[0] == Progress("download tiny-Q4_K_M.gguf", 0, len(ONE), "bytes")
    assert events[-1] == Progress("download tiny-Q4_K_M.gguf", len(ONE), len(ONE), "bytes")
    hub.down = True
    assert resolve(f"{REPO}:q4_k_m", cache_dir=cache, endpoint=hub.endpoint) == path
    assert resolve(REPO, cache_dir=cache, endpoint=hub.endpoint) == path
    [model] = list_models(cache_dir=cache)
    assert (model.name, model.n_bytes, model.paths) == (f"{REPO}:Q4_K_M", len(ONE), (path,))


def test_a_second_pull_fetches_nothing(hub: FakeHub, cache: Path) -> None:
    first = pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    n = len(hub.ranges())
    assert pull(REPO, cache_dir=cache, endpoint=hub.endpoint) == first
    assert len(hub.ranges()) == n


def test_split_files(hub: FakeHub, cache: Path) -> None:
    path = pull(f"{REPO}:Q8_0", cache_dir=cache, endpoint=hub.endpoint)
    assert path.name == "tiny-Q8_0-00001-of-00002.gguf"
    model = find_cached(RepoName(REPO, "Q8_0"), cache_dir=cache)
    assert model is not None
    assert [p.read_bytes() for p in model.paths] == list(PARTS.values())


def test_an_interrupted_download_goes_on(hub: FakeHub, cache: Path) -> None:
    hub.break_after = 300_000
    with pytest.raises(NetworkError):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    assert list_models(cache_dir=cache) == []
    [part] = cache.rglob("*.edgerun-part")
    have = part.stat().st_size
    assert 0 < have <= 300_000
    hub.down = False
    events: list[Event] = []
    path = pull(REPO, cache_dir=cache, endpoint=hub.endpoint, events=events.append)
    assert path.read_bytes() == ONE
    assert hub.ranges()[-1] == f"bytes={have}-"
    assert events[0] == Progress("download tiny-Q4_K_M.gguf", have, len(ONE), "bytes")
    assert not list(cache.rglob("*.edgerun-part"))


def test_redirects_as_the_real_hub_does(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.cdn = hub.endpoint.replace("127.0.0.1", "localhost")
    hub.break_after = 300_000
    with pytest.raises(NetworkError):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    hub.down = False
    path = pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    assert path.read_bytes() == ONE
    assert path.resolve().name == hashlib.sha256(ONE).hexdigest()
    assert str(hub.ranges()[-1]).startswith("bytes=")
    assert hub.authorised, "the hub itself gets the token"
    assert not any(host.startswith("localhost") for host in hub.authorised)


def test_a_mirror_that_lists_files_as_a_tree(hub: FakeHub, cache: Path) -> None:
    hub.only_tree = True
    assert pull(REPO, cache_dir=cache, endpoint=hub.endpoint).read_bytes() == ONE
    with pytest.raises(NotFoundError):
        pull("org/absent", cache_dir=cache, endpoint=hub.endpoint)


def test_a_hub_cannot_write_elsewhere(hub: FakeHub, cache: Path) -> None:
    hub.repos[REPO] = {"../../../evil-Q4_0.gguf": ONE}
    with pytest.raises(NotFoundError, match="no GGUF"):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    hub.repos[REPO], hub.commit = {"m-Q4_0.gguf": ONE}, "../../../evil"
    with pytest.raises(NetworkError, match="no ETag or commit"):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    assert not list(cache.parent.rglob("*evil*"))


def test_ctrl_c_keeps_what_came(hub: FakeHub, cache: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.done > len(ONE) // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint, events=interrupt)
    [part] = cache.rglob("*.edgerun-part")
    have = part.stat().st_size
    assert pull(REPO, cache_dir=cache, endpoint=hub.endpoint).read_bytes() == ONE
    assert hub.ranges()[-1] == f"bytes={have}-"


def test_offline(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        resolve(REPO, cache_dir=cache, endpoint=hub.endpoint)
    assert hub.seen == []


def test_a_damaged_download_is_not_kept(hub: FakeHub, cache: Path) -> None:
    hub.damaged = True
    with pytest.raises(NetworkError, match="damaged"):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    hub.damaged = False
    assert pull(REPO, cache_dir=cache, endpoint=hub.endpoint).read_bytes() == ONE


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("org/absent", NotFoundError, "no such repository"),
        ("org/none", NotFoundError, "no GGUF"),
        (f"{REPO}:Q2_K", NotFoundError, "there are Q4_K_M, Q8_0"),
        ("nonsense", UsageError, "org/repo"),
    ],
)
def test_what_is_not_there(hub: FakeHub, cache: Path, name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        pull(name, cache_dir=cache, endpoint=hub.endpoint)


def test_a_gated_repository(hub: FakeHub, cache: Path) -> None:
    hub.gated.add(REPO)
    with pytest.raises(NetworkError, match="gated"):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)


def test_nobody_answers(cache: Path) -> None:
    with pytest.raises(NetworkError, match="127.0.0.1:9"):
        pull(REPO, cache_dir=cache, endpoint="http://127.0.0.1:9")


def test_remove_leaves_the_others(hub: FakeHub, cache: Path) -> None:
    for quant in ("Q4_K_M", "Q8_0"):
        pull(f"{REPO}:{quant}", cache_dir=cache, endpoint=hub.endpoint)
    removed = remove(RepoName(REPO, "Q8_0"), cache_dir=cache)
    assert removed.n_bytes == sum(map(len, PARTS.values()))
    assert [model.name for model in list_models(cache_dir=cache)] == [f"{REPO}:Q4_K_M"]
    assert len(list(cache.rglob("blobs/*"))) == 1
    remove(RepoName(REPO), cache_dir=cache)
    assert list(cache.glob("models--*")) == []
    with pytest.raises(NotFoundError, match="not downloaded"):
        remove(RepoName(REPO), cache_dir=cache)


def test_resolve_does_not_download_unasked(hub: FakeHub, cache: Path) -> None:
    with pytest.raises(NotFoundError, match="edgerun pull"):
        resolve(REPO, download=False, cache_dir=cache, endpoint=hub.endpoint)
    assert hub.seen == []
    assert resolve(REPO, cache_dir=cache, endpoint=hub.endpoint).read_bytes() == ONE


def test_resolve_of_paths(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert resolve(str(file)) == file
    assert resolve(str(tmp_path)) == file
    for name in (str(tmp_path / "absent.gguf"), "./absent", "models/absent.gguf", "no-such-alias"):
        with pytest.raises(NotFoundError, match="no such file"):
            resolve(name)
    (tmp_path / "n.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="several"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("resumed", [False, True], ids=["from the start", "resumed"])
def test_the_page_of_a_login_is_not_kept(hub: FakeHub, cache: Path, resumed: bool) -> None:
    """Neither as a beginning nor in place of one; the next download is right, and goes on where it was."""
    have = 0
    if resumed:
        hub.break_after = 300_000
        with pytest.raises(NetworkError):
            pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
        hub.down = False
        [part] = cache.rglob("*.edgerun-part")
        have = part.stat().st_size
    hub.portal = r"GET /.*\.gguf"
    with pytest.raises(NetworkError, match="no GGUF file.*login page"):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    assert sum(part.stat().st_size for part in cache.rglob("*.edgerun-part")) == have
    hub.portal = ""
    assert pull(REPO, cache_dir=cache, endpoint=hub.endpoint).read_bytes() == ONE
    assert hub.ranges()[-1] == (f"bytes={have}-" if resumed else None)


def test_a_page_that_an_older_version_kept_is_forgotten(hub: FakeHub, cache: Path) -> None:
    blob = cache / f"models--{REPO.replace('/', '--')}" / "blobs" / hashlib.sha256(ONE).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(blob.name + ".edgerun-part").write_bytes(LOGIN)
    assert pull(REPO, cache_dir=cache, endpoint=hub.endpoint).read_bytes() == ONE


def test_a_server_that_begins_anew_when_asked_to_resume(hub: FakeHub, cache: Path) -> None:
    hub.break_after = 300_000
    with pytest.raises(NetworkError):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    hub.down, hub.whole_only = False, True
    assert pull(REPO, cache_dir=cache, endpoint=hub.endpoint).read_bytes() == ONE


def test_more_than_there_should_be_is_not_written(hub: FakeHub, cache: Path) -> None:
    hub.endless = True
    with pytest.raises(NetworkError):
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    assert sum(part.stat().st_size for part in cache.rglob("*.edgerun-part")) <= len(ONE)
    assert hub.sent < MOST // 2


@pytest.mark.parametrize("answer", [LOGIN, b"[]", b"{", b'{"siblings": 5}', b'{"siblings": [7]}', b"\xff\xfe", b"null"])
def test_what_answers_is_no_hub(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr("hub.fake_hub.LOGIN", answer)
    hub.portal = "."
    with pytest.raises((NetworkError, NotFoundError)) as caught:
        pull(REPO, cache_dir=cache, endpoint=hub.endpoint)
    if not isinstance(caught.value, NotFoundError):
        assert "does not answer as a Hugging Face hub does" in str(caught.value)


def test_control_characters_of_a_hub_reach_no_terminal(hub: FakeHub, cache: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J-Q4_0.gguf"
    hub.repos[REPO] = {evil: ONE, "fine-Q8_0.gguf": ONE, "\x9b2J-Q6_K.gguf": ONE, "\u202eevil-Q5_0.gguf": ONE}
    with pytest.raises(NotFoundError) as caught:
        pull(f"{REPO}:Q2_K", cache_dir=cache, endpoint=hub.endpoint)
    assert str(caught.value).isprintable() and "Q8_0" in str(caught.value)
    with pytest.raises(NotFoundError):
        pull(f"{REPO}:{evil}", cache_dir=cache, endpoint=hub.endpoint)
    said: list[Event] = []
    assert pull(REPO, cache_dir=cache, endpoint=hub.endpoint, events=said.append).name == "fine-Q8_0.gguf"
    assert all(event.task.isprintable() for event in said if isinstance(event, Progress))
