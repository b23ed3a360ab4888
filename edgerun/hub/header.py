"""A model's header without the model: the first bytes of its files at the hub, in sparse files of the real size.

Whoever opens such a file sees every tensor where it will be; only the weights are holes. For planning, never to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerun.errors import EdgerunError, NetworkError
from edgerun.events import EventSink, Progress, ignore
from edgerun.formats.gguf import open_gguf
from edgerun.hub.download import at_hub, headers_for, list_files
from edgerun.hub.names import RepoName, candidates, choose
from edgerun.hub.ranges import read_range

_FIRST_BYTES, _MOST_BYTES = 1 << 20, 1 << 28  # a vocabulary of 150,000 takes 6 MB


def fetch_header(
    wanted: RepoName, folder: Path, *, endpoint: str | None = None, events: EventSink = ignore
) -> tuple[Path, int]:
    """The (first) file of the model in `folder`, its header whole, its weights holes; and the bytes to download.

    Raises NotFoundError, UsageError (several models), NetworkError, and FormatError for what is no model.
    """
    with at_hub(wanted.repo, endpoint):
        chosen = choose(candidates(list_files(wanted.repo, endpoint)), wanted)
        parts = [_Part(wanted.repo, file, folder, endpoint) for file in chosen.files]
        n_bytes = _FIRST_BYTES
        while True:
            for part in parts:
                part.fetch(n_bytes)
                events(Progress("header", part.have, max(part.have, n_bytes), "bytes"))
            whole = all(part.have == part.size for part in parts)
            try:
                with open_gguf(parts[0].path) as gguf:
                    starts = {info.path: info.offset for info in reversed(list(gguf.tensors.values()))}
                    if all(starts.get(part.path, 0) <= part.have for part in parts):
                        return parts[0].path, sum(part.size for part in parts)
            except EdgerunError:  # the header goes on beyond what is here, or is wrong
                if whole or n_bytes >= _MOST_BYTES:
                    raise
            n_bytes *= 4


class _Part:
    """One file of a model, of which the beginning is here."""

    def __init__(self, repo: str, file: str, folder: Path, endpoint: str | None) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import get_hf_file_metadata

        source = hf_hub_url(repo, file, endpoint=endpoint)
        metadata = get_hf_file_metadata(source, endpoint=endpoint)
        if not metadata.size:
            raise NetworkError(f"the hub does not say how large {repo}/{file} is")
        self.size: int = metadata.size
        self.have = 0
        self.path = folder / Path(file).name
        self._name = f"{repo}/{file}"
        self._location: Any = metadata.location
        self._headers = headers_for(metadata.location, source)
        with self.path.open("wb") as out:
            out.truncate(self.size)

    def fetch(self, n_bytes: int) -> None:
        """Have the first `n_bytes`."""
        end = min(n_bytes, self.size)
        if end <= self.have:
            return
        with self.path.open("r+b") as out:
            out.seek(self.have)
            for chunk in read_range(self._location, self._headers, self.have, end, self._name):
                out.write(chunk)
        self.have = end
