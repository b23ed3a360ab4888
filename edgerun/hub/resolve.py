"""A model's name, as the user writes it -> the file to open."""

from __future__ import annotations

from pathlib import Path

from edgerun.errors import NotFoundError, UsageError
from edgerun.events import EventSink, ignore
from edgerun.hub.cache import find_cached
from edgerun.hub.cards import find_card, load_cards, packaged_file
from edgerun.hub.download import pull
from edgerun.hub.names import RepoName, parse_repo_name
from edgerun.paths import kind_of, user_path


def resolve(
    name: str | Path,
    *,
    download: bool = True,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
    events: EventSink = ignore,
) -> Path:
    """The GGUF file that `name` means: a path, an alias, or `org/repo:quant` from the cache or the hub.

    Asks the hub only when the model is not here and `download` is true. Raises NotFoundError, UsageError (a
    name that means several models), NetworkError.
    """
    found = locate(name)
    if isinstance(found, Path):
        return found
    cached = find_cached(found, cache_dir=cache_dir)
    if cached is not None:
        return cached.paths[0]
    if not download:
        raise NotFoundError(f"{found} is not downloaded; `edgerun pull {name}` fetches it")
    return pull(found, cache_dir=cache_dir, endpoint=endpoint, events=events)


def locate(name: str | Path) -> Path | RepoName:
    """What `name` means, without looking into the cache or at the hub. NotFoundError when it is nothing."""
    path = user_path(name)
    kind = kind_of(path)
    if kind == "directory":
        return _in_directory(path)
    if isinstance(name, Path) or kind:
        return path
    card = find_card(name)
    if card is not None:
        if card.repo is None:
            return packaged_file(card)
        name = card.repo
    repo = parse_repo_name(name)
    looks_like_path = name.lower().endswith(".gguf") and ":" not in name
    if repo is None or looks_like_path or name.startswith((".", "/", "~")):
        aliases = sorted(load_cards())
        known = ", ".join([alias for alias in aliases if alias.startswith(name.lower())] or aliases)
        raise NotFoundError(
            f"{name[:300]}: no such file, and no alias of that name; "
            f"give the path of a GGUF file, org/repo:quant, or one of: {known}"
        )
    return repo


def _in_directory(path: Path) -> Path:
    from edgerun.hub.names import candidates

    found = candidates(file.name for file in path.glob("*.gguf"))
    if not found:
        raise NotFoundError(f"{path}: a directory without a GGUF file; `edgerun convert` makes one from a checkpoint")
    if len(found) > 1:
        raise UsageError(f"{path}: has several models; name one: {', '.join(c.files[0] for c in found)}")
    return path / found[0].files[0]
