"""The models that are already here: what lies in the Hugging Face cache.

Layout: `models--org--repo/{blobs/<etag>, refs/main (a commit), snapshots/<commit>/<file> -> blob}`, shared
with every other program that uses huggingface_hub.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgerun.errors import EdgerunError, NotFoundError, UsageError
from edgerun.hub.names import Candidate, RepoName, candidates, choose


@dataclass(frozen=True)
class CachedModel:
    """A downloaded model. `name` is what `resolve`, `show` and `remove` take for it."""

    name: str
    repo: str
    quant: str | None
    paths: tuple[Path, ...]  # the parts in order; one unless split
    n_bytes: int
    modified_s: float  # since the epoch


def default_cache_dir() -> Path:
    """Where huggingface_hub keeps its files (it reads HF_HOME and HF_HUB_CACHE itself)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def list_models(*, cache_dir: Path | None = None) -> list[CachedModel]:
    """All downloaded GGUF models, by name."""
    root = cache_dir or default_cache_dir()
    models = []
    for folder in sorted(root.glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        models += _of_repo(repo, folder)
    return sorted(models, key=lambda model: model.name.lower())


def find_cached(name: RepoName, *, cache_dir: Path | None = None) -> CachedModel | None:
    """The downloaded model that `name` means, without asking the hub; None when it is not here."""
    folder = _folder(name.repo, cache_dir)
    models = _of_repo(name.repo, folder)
    if not models:
        return None
    by_files = {tuple(_relative(folder, path) for path in model.paths): model for model in models}
    found = [Candidate(model.quant, files) for files, model in by_files.items()]
    try:
        return by_files[choose(found, name).files]
    except NotFoundError:
        return None


def remove(name: RepoName, *, cache_dir: Path | None = None) -> CachedModel:
    """Delete a downloaded model; other models of its repository stay. NotFoundError when it is not here,
    UsageError when the name means several."""
    model = find_cached(name, cache_dir=cache_dir)
    if model is None:
        raise NotFoundError(f"{name} is not downloaded; `edgerun list` shows what is")
    folder = _folder(name.repo, cache_dir)
    try:
        for path in model.paths:
            _remove_file(folder, _relative(folder, path))
        if not any(path.is_file() for path in (folder / "snapshots").rglob("*")):
            shutil.rmtree(folder)
    except OSError as error:
        raise EdgerunError(f"{name} cannot be removed: {error}") from error
    return model


def _of_repo(repo: str, folder: Path) -> list[CachedModel]:
    here: dict[str, Path] = {}
    for snapshot in _snapshots(folder):
        for path in sorted(snapshot.rglob("*.gguf")):
            if path.exists():  # a link whose blob is gone does not count
                here.setdefault(_relative(folder, path), path)
    found = candidates(here)
    quants = [c.quant for c in found]
    models = []
    for c in found:
        paths = tuple(here[file] for file in c.files)
        label = c.quant if c.quant is not None and quants.count(c.quant) == 1 else c.files[0]
        stats = [path.stat() for path in paths]
        size, modified = sum(s.st_size for s in stats), max(s.st_mtime for s in stats)
        models.append(CachedModel(f"{repo}:{label}", repo, c.quant, paths, size, modified))
    return models


def _snapshots(folder: Path) -> list[Path]:
    """Newest first, the one that `main` stands for before all others."""
    snapshots = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    snapshots.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    ref = folder / "refs" / "main"
    current = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
    return sorted(snapshots, key=lambda path: path.name != current)


def _remove_file(folder: Path, file: str) -> None:
    """In every snapshot, with its blob when no other file of the repository is the same blob."""
    blobs = set()
    for path in folder.glob("snapshots/*"):
        link = path / file
        if link.is_symlink():
            blobs.add(Path(os.path.normpath(link.parent / link.readlink())))
        link.unlink(missing_ok=True)
    used = {
        Path(os.path.normpath(path.parent / path.readlink()))
        for path in (folder / "snapshots").rglob("*")
        if path.is_symlink()
    }
    for blob in blobs - used:
        if blob.parent == folder / "blobs":
            blob.unlink(missing_ok=True)


def _folder(repo: str, cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()) / ("models--" + repo.replace("/", "--"))


def _relative(folder: Path, path: Path) -> str:
    """The path in the repository: what comes after `snapshots/<commit>/`."""
    return "/".join(path.relative_to(folder).parts[2:])


def as_repo_name(name: str) -> RepoName:
    """`name` as that of a repository's model. UsageError when it is none."""
    from edgerun.hub.names import parse_repo_name

    parsed = parse_repo_name(name)
    if parsed is None:
        raise UsageError(f"{name!r} does not name a model on a hub; write org/repo or org/repo:quant")
    return parsed
