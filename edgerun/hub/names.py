"""How models on a hub are called: `org/repo`, `org/repo:Q4_K_M`, `hf.co/org/repo:file.gguf`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgerun.errors import NotFoundError, UsageError

_HOSTS = re.compile(r"^(?:https?://)?(?:hf\.co|huggingface\.co)/|^hf://", re.IGNORECASE)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANT = re.compile(r"(?:^|[-._])(I?Q\d[A-Z0-9_]*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32|FP16|FP32)$", re.IGNORECASE)
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0")  # when the name asks for none


@dataclass(frozen=True)
class RepoName:
    """A repository and what is wanted of it: a quantisation (`Q4_K_M`), a file; None: the usual one."""

    repo: str
    wanted: str | None = None

    def __str__(self) -> str:
        return self.repo if self.wanted is None else f"{self.repo}:{self.wanted}"


@dataclass(frozen=True)
class Candidate:
    """One model of a repository: its files (several when split, in order) and its quantisation's name."""

    quant: str | None
    files: tuple[str, ...]  # paths in the repository, with slashes

    @property
    def stem(self) -> str:
        """The file's name without extension and split numbers."""
        return _stem(self.files[0])


def parse_repo_name(name: str) -> RepoName | None:
    """A `RepoName`, or None when `name` cannot be one (an alias, a path)."""
    rest = _HOSTS.sub("", name, count=1)
    repo, colon, wanted = rest.rstrip("/").partition(":")
    if not _REPO.fullmatch(repo) or (colon and not wanted):
        return None
    return RepoName(repo, wanted or None)


def candidates(files: Iterable[str]) -> list[Candidate]:
    """The models among a repository's files: whole GGUFs, projectors and importance data left out."""
    groups: dict[str, list[str]] = {}
    for file in sorted(files):
        path = PurePosixPath(file)
        if path.suffix.lower() != ".gguf" or "mmproj" in path.name.lower() or "imatrix" in path.name.lower():
            continue
        groups.setdefault(str(path.parent / _stem(file)), []).append(file)
    return [Candidate(quant_name(group[0]), tuple(group)) for group in groups.values() if _whole(group)]


def choose(found: Sequence[Candidate], name: RepoName) -> Candidate:
    """The one that `name` means. NotFoundError when there is none, UsageError when there are several."""
    if not found:
        raise NotFoundError(f"{name.repo} has no GGUF model; look for a repository whose name ends in -GGUF")
    if name.wanted is None:
        for quant in _PREFERRED:
            matching = [c for c in found if c.quant == quant]
            if matching:
                return _single(matching, name)
        return _single(found, name)
    by_file = [c for c in found if name.wanted in (*c.files, c.stem, PurePosixPath(c.files[0]).name)]
    if by_file:
        return _single(by_file, name)
    wanted = name.wanted.upper()
    matching = [c for c in found if c.quant == wanted or re.search(rf"[-._]{re.escape(wanted)}$", c.stem.upper())]
    if not matching:
        raise NotFoundError(f"{name.repo} has no {name.wanted}; there are {_listed(found)}")
    return _single(matching, name)


def quant_name(file: str) -> str | None:
    """`model-Q4_K_M-00001-of-00002.gguf` -> `Q4_K_M`; None when the name does not say."""
    match = _QUANT.search(_stem(file))
    return None if match is None else match[1].upper()


def _single(matching: Sequence[Candidate], name: RepoName) -> Candidate:
    if len(matching) > 1:  # "UD-Q4_K_M" is another model than "Q4_K_M"
        plain = [c for c in matching if not re.search(r"-UD-[^-]+$", c.stem, re.IGNORECASE)]
        matching = plain or matching
    if len(matching) > 1:
        raise UsageError(
            f"{name} means several models; name one: " + ", ".join(f"{name.repo}:{c.files[0]}" for c in matching)
        )
    return matching[0]


def _listed(found: Sequence[Candidate]) -> str:
    return ", ".join(sorted({c.quant or c.files[0] for c in found}))


def _stem(file: str) -> str:
    return _SPLIT.sub("", PurePosixPath(file).stem)


def _whole(files: Sequence[str]) -> bool:
    split = _SPLIT.search(PurePosixPath(files[0]).stem)
    return len(files) == (1 if split is None else int(split[2]))
