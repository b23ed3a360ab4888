"""Fetching models from a Hugging Face hub into its cache.

huggingface_hub forgets what it had when a download is interrupted (it writes to a file of a random name).
Here the bytes go to `blobs/<etag>.edgerun-part`, the next attempt goes on where that ends, and the whole,
checked file is then handed to huggingface_hub, which finds its blob in place and links it.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from edgerun.errors import DoesNotFitError, EdgerunError, NetworkError, NotFoundError
from edgerun.events import EventSink, Progress, ignore
from edgerun.formats.gguf.types import MAGIC
from edgerun.hub.cache import as_repo_name, default_cache_dir
from edgerun.hub.names import RepoName, candidates, choose
from edgerun.units import format_size

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"\w[\w.-]*")  # of an ETag or commit: they become file names
_HASH_CHUNK_BYTES = 1 << 22
_CHUNK_BYTES = 1 << 17  # of a download: at most this much is fetched again after an interruption


def pull(
    name: str | RepoName,
    *,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
    events: EventSink = ignore,
) -> Path:
    """Download the model that `name` (`org/repo:quant`) means -> its (first) file in the cache.

    Files that are there and current are not fetched again; an interrupted download goes on where it stopped.
    `events` get `Progress` in bytes. Raises NotFoundError (repository, model), UsageError (several models),
    NetworkError, DoesNotFitError (disk full).
    """
    wanted = as_repo_name(name) if isinstance(name, str) else name
    root = cache_dir or default_cache_dir()
    with at_hub(wanted.repo, endpoint), _our_way():
        chosen = choose(candidates(list_files(wanted.repo, endpoint)), wanted)
        paths = [_fetch(wanted.repo, file, root, endpoint, events) for file in chosen.files]
    return paths[0]


def list_files(repo: str, endpoint: str | None) -> list[str]:
    """Paths in the repository, without those that lead out of it or hold control characters. NetworkError when what
    answers is no hub."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    try:
        files = _listed(repo, endpoint)
    except HFValidationError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NetworkError(
            f"{endpoint or constants.ENDPOINT} does not answer as a Hugging Face hub does ({_first_line(error)}): "
            "is it the login page of a network, or a proxy's?"
        ) from error
    return [file for file in files if file.isprintable() and not file.startswith("/") and ".." not in file.split("/")]


def _listed(repo: str, endpoint: str | None) -> list[str]:
    """Mirrors of the hub may lack one of the two ways to ask."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi(endpoint=endpoint)
    try:
        siblings = api.model_info(repo, timeout=30).siblings
    except RepositoryNotFoundError:
        raise
    except HfHubHTTPError as error:
        if _status(error) != 404:
            raise
        siblings = None
    return [str(sibling.rfilename) for sibling in siblings] if siblings else list(api.list_repo_files(repo))


def _fetch(repo: str, file: str, root: Path, endpoint: str | None, events: EventSink) -> Path:
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import get_hf_file_metadata

    metadata = get_hf_file_metadata(hf_hub_url(repo, file, endpoint=endpoint), endpoint=endpoint)
    etag, commit = metadata.etag or "", metadata.commit_hash or ""
    if not _NAME.fullmatch(etag) or not _NAME.fullmatch(commit):
        raise NetworkError(f"the hub's answer for {repo}/{file} has no ETag or commit: is it a Hugging Face hub?")
    folder = root / ("models--" + repo.replace("/", "--"))
    blob = folder / "blobs" / etag
    pointer = folder / "snapshots" / commit / file
    if not pointer.exists() and not blob.exists():
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock = root / ".locks" / folder.name / f"{etag}.edgerun.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with hub_utils().WeakFileLock(lock):
            if not blob.exists():
                _fetch_blob(repo, file, metadata, blob, endpoint, events)
    return Path(hf_hub_download(repo, file, cache_dir=root, endpoint=endpoint))


def _fetch_blob(repo: str, file: str, metadata: Any, blob: Path, endpoint: str | None, events: EventSink) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get

    part = blob.with_name(blob.name + ".edgerun-part")
    headers = headers_for(metadata.location, hf_hub_url(repo, file, endpoint=endpoint))
    with part.open("a+b") as raw:
        sink = _Sink(raw, f"download {Path(file).name}", metadata.size, events)
        if metadata.size is not None and sink.n_bytes > metadata.size:
            sink.clear()
        _check_space(blob.parent, file, metadata.size, sink.n_bytes)
        http_get(
            metadata.location,
            sink,  # type: ignore[arg-type]
            resume_size=sink.n_bytes,
            headers=headers,
            expected_size=metadata.size,
        )
        digest = sink.sha256()
    if _SHA256.fullmatch(metadata.etag) and digest != metadata.etag:
        part.unlink()
        raise NetworkError(f"{repo}/{file} arrived damaged (its SHA-256 is another); pull it again")
    part.replace(blob)


def headers_for(location: str, source: str) -> dict[str, Any]:
    """Of a request to where the hub at `source` says that a file lies."""
    headers: dict[str, Any] = hub_utils().build_hf_headers()
    if urlsplit(location).netloc != urlsplit(source).netloc:
        headers.pop("authorization", None)  # a signed address elsewhere: the token is not for it
    return headers


class _Sink:
    """The file that a download is appended to: hashes what it has and what comes, and says how far it is.

    It holds the beginning of a GGUF file of `total` bytes or nothing: what cannot be that (the page of a login or a
    proxy) is refused with NetworkError before a byte of it is written, and what was there stays.
    """

    def __init__(self, file: IO[bytes], task: str, total: int | None, events: EventSink) -> None:
        self._file, self._task, self._total, self._events = file, task, total, events
        self._hash = hashlib.sha256()
        self._anew = False
        self.n_bytes = 0
        file.seek(0)
        if not MAGIC.startswith(file.read(len(MAGIC))):
            file.truncate(0)
        file.seek(0)
        while chunk := file.read(_HASH_CHUNK_BYTES):
            self._hash.update(chunk)
            self.n_bytes += len(chunk)
        self._say()

    def write(self, data: bytes) -> int:
        begins = self._anew or not self.n_bytes
        if begins and data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise NetworkError(
                f"{self._task}: what comes is no GGUF file, it begins with {data[:16]!r}: is it the login page of a "
                "network, or a proxy's? Nothing of it was kept"
            )
        if self._total is not None and (0 if self._anew else self.n_bytes) + len(data) > self._total:
            raise NetworkError(f"{self._task}: more comes than the {self._total} bytes that it should have")
        if self._anew:
            self.clear()
        self._file.write(data)
        self._hash.update(data)
        self.n_bytes += len(data)
        self._say()
        return len(data)

    def tell(self) -> int:
        return 0 if self._anew else self.n_bytes

    def seek(self, position: int, whence: int = 0) -> int:
        """Only to the end or to the beginning (to `truncate` when a server does not resume)."""
        if (position, whence) not in ((0, 0), (0, 2), (self.n_bytes, 0)):
            raise EdgerunError(f"{self._task}: the download wants to rewrite what it has")
        return self.n_bytes if whence == 2 else position

    def truncate(self, size: int | None = None) -> int:
        """Begin anew, with the first bytes that come: a server does not resume."""
        self._anew = True
        return 0

    def clear(self) -> None:
        """Forget what is there."""
        self._file.truncate(0)
        self._file.seek(0)
        self._hash = hashlib.sha256()
        self._anew = False
        self.n_bytes = 0

    def flush(self) -> None:
        self._file.flush()

    def sha256(self) -> str:
        """Of all that was written."""
        self._file.flush()
        return self._hash.hexdigest()

    def _say(self) -> None:
        self._events(Progress(self._task, self.n_bytes, max(self._total or 0, self.n_bytes), "bytes"))


def _check_space(folder: Path, file: str, size: int | None, have: int) -> None:
    import shutil

    free = shutil.disk_usage(folder).free
    if size is not None and size - have > free:
        raise DoesNotFitError(
            f"{file} needs {format_size(size - have)} more on disk, {folder} has {format_size(free)} free; "
            "make room (`edgerun list`, `edgerun rm`) or set HF_HOME to another disk"
        )


@contextmanager
def _our_way() -> Iterator[None]:
    """huggingface_hub draws bars of its own on stderr, where ours come from the events; and it writes 10 MiB
    at a time, which on a slow line is too much to lose and too long without progress."""
    from huggingface_hub import constants

    utils = hub_utils()
    chunk, constants.DOWNLOAD_CHUNK_SIZE = constants.DOWNLOAD_CHUNK_SIZE, _CHUNK_BYTES
    shown, verbosity = not utils.are_progress_bars_disabled(), utils.logging.get_verbosity()
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = chunk
        utils.logging.set_verbosity(verbosity)
        if shown:
            utils.enable_progress_bars()


def hub_utils() -> Any:
    """huggingface_hub.utils; what is public there is not marked as exported for type checkers."""
    return import_module("huggingface_hub.utils")


@contextmanager
def at_hub(repo: str, endpoint: str | None) -> Iterator[None]:
    """huggingface_hub's errors, and those of the HTTP library under it, as ours."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = endpoint or constants.ENDPOINT
    # The HTTP library differs between versions (requests, httpx): its base error is a base of the hub's.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except EdgerunError:
        raise
    except GatedRepoError as error:
        raise NetworkError(
            f"{repo} is gated: accept its terms on {hub}/{repo}, then log in with `hf auth login`"
        ) from error
    except OfflineModeIsEnabled as error:
        raise NetworkError(f"{repo} is not here, and HF_HUB_OFFLINE forbids to ask {hub}") from error
    except LocalEntryNotFoundError as error:
        raise NetworkError(f"{hub} cannot be reached; check the connection and try again") from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"{repo}: no such repository on {hub}, or it is private (then log in with `hf auth login`)"
        ) from error
    except (RevisionNotFoundError, EntryNotFoundError) as error:
        raise NotFoundError(f"{repo}: the hub has no such file: {_first_line(error)}") from error
    except HFValidationError as error:
        raise NotFoundError(f"{repo}: not a possible repository name: {_first_line(error)}") from error
    except HfHubHTTPError as error:
        if _status(error) == 404:
            raise NotFoundError(f"{repo}: {hub} does not have it") from error
        raise NetworkError(f"{hub} refuses: {_first_line(error)}") from error
    except (http_error, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DoesNotFitError(f"{repo}: the disk is full; what came is kept, make room and try again") from error
        if isinstance(error, OSError) and error.filename is not None:
            raise EdgerunError(f"{error.filename}: {error.strerror}") from error
        raise NetworkError(
            f"the connection to {hub} failed: {_first_line(error)}; try again, it goes on where it stopped"
        ) from error


def _status(error: Any) -> int | None:
    return getattr(error.response, "status_code", None)


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..." if text else type(error).__name__
