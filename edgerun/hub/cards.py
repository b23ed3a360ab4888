"""Model cards: the aliases that edgerun knows, as YAML in the package (`edgerun/embedded/*.yaml`).

alias: qwen3-0.6b
repo: Qwen/Qwen3-0.6B-GGUF:Q8_0     # or `file:`, a GGUF that lies beside the card
summary: one line
architecture: qwen3                 # may be left out
licence: Apache-2.0
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from edgerun.errors import FormatError, NotFoundError

DEFAULT_ALIAS = "default"


@dataclass(frozen=True)
class Card:
    """A short name for a model: in a repository (`repo`, with its quantisation) or packaged (`file`). `architecture`:
    as GGUF calls it."""

    alias: str
    summary: str
    licence: str
    repo: str | None = None
    file: str | None = None
    architecture: str | None = None


def cards_dir() -> Path:
    """Where the cards and the packaged model lie."""
    return Path(__file__).parents[1] / "embedded"


def load_cards(directory: Path | None = None) -> dict[str, Card]:
    """All cards by alias. FormatError for a card that is not as described above."""
    cards: dict[str, Card] = {}
    for path in sorted((directory or cards_dir()).glob("*.yaml")):
        card = _read(path)
        if card.alias in cards:
            raise FormatError(f"{path}: the alias {card.alias!r} is taken by another card")
        cards[card.alias] = card
    return cards


def find_card(alias: str, directory: Path | None = None) -> Card | None:
    """The card of an alias, also as others write it (`GPT-OSS:20b`, `gpt-oss-20b`, `qwen3.6:latest`); the others are
    read only where no file has its name. FormatError as of `load_cards`."""
    directory = directory or cards_dir()
    wanted = _written_plainly(alias)
    for path in directory.glob("*.yaml"):
        if path.stem in (alias, wanted):
            card = _read(path)
            if card.alias == alias or _written_plainly(card.alias) == wanted:
                return card
    cards = load_cards(directory)
    others = {_written_plainly(name): card for name, card in cards.items()}
    return cards.get(alias) or others.get(wanted)


def _written_plainly(alias: str) -> str:
    """What is the same of all ways to write a name."""
    return alias.lower().removesuffix(":latest").replace(":", "-")


def embedded_model(directory: Path | None = None) -> Path | None:
    """The model that is packaged as `default`, or None when this build has none."""
    directory = directory or cards_dir()
    card = find_card(DEFAULT_ALIAS, directory)
    if card is None or card.file is None:
        return None
    path = directory / card.file
    return path if path.is_file() else None


def packaged_file(card: Card, directory: Path | None = None) -> Path:
    """The file of a card that has one. NotFoundError when this build does not have it."""
    path = (directory or cards_dir()) / (card.file or "")
    if card.file is None or not path.is_file():
        raise NotFoundError(
            f"the model {card.alias!r} is not packaged with this build of edgerun; "
            "name another: a path of a GGUF file, org/repo:quant, or an alias (see `edgerun list --aliases`)"
        )
    return path


def _read(path: Path) -> Card:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise FormatError(f"{path}: not YAML: {error}") from error
    known = {f.name for f in fields(Card)}
    if not isinstance(content, dict) or set(content) - known or not all(isinstance(v, str) for v in content.values()):
        raise FormatError(f"{path}: a card maps {', '.join(sorted(known))} to texts")
    if not {"alias", "summary", "licence"} <= set(content) or ("repo" in content) == ("file" in content):
        raise FormatError(f"{path}: a card needs alias, summary, licence and either repo or file")
    return Card(**content)
