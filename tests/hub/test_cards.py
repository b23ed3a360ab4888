from __future__ import annotations

from pathlib import Path

import pytest

from edgerun.errors import FormatError, NotFoundError
from edgerun.hub.cards import embedded_model, find_card, load_cards, packaged_file
from edgerun.hub.names import parse_repo_name
from edgerun.hub.resolve import locate
from edgerun.models.families import FAMILIES

CARD = "alias: default\nfile: model.gguf\nsummary: ours\nlicence: Apache-2.0\n"


def test_the_cards_of_this_package() -> None:
    cards = load_cards()
    assert "default" in cards
    for card in cards.values():
        assert card.repo is None or parse_repo_name(card.repo) is not None, card.alias
        assert card.summary and card.licence
        assert card.architecture is None or card.architecture in FAMILIES, card.alias
    assert {"qwen3.5:4b", "lfm2.5"} <= set(cards)


def test_the_packaged_model(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text(CARD)
    assert embedded_model(tmp_path) is None
    with pytest.raises(NotFoundError, match="not packaged"):
        packaged_file(load_cards(tmp_path)["default"], tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert embedded_model(tmp_path) == tmp_path / "model.gguf"


def test_one_card_is_found_without_the_others(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text(CARD)
    (tmp_path / "broken.yaml").write_text("- a list")
    assert find_card("default", tmp_path) is not None
    with pytest.raises(FormatError):
        find_card("no such alias", tmp_path)


def test_a_card_whose_file_has_another_name(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(CARD)
    (tmp_path / "other.yaml").write_text(CARD.replace("default", "ours"))
    for alias in ("default", "ours"):
        card = find_card(alias, tmp_path)
        assert card is not None and card.alias == alias
    assert find_card("../ours", tmp_path) is None


@pytest.mark.parametrize("name", ["gpt-oss:20b", "gpt-oss-20b", "GPT-OSS-20B", "gpt-oss:20b:latest"])
def test_an_alias_as_others_write_it(name: str) -> None:
    card = find_card(name)
    assert card is not None and card.alias == "gpt-oss:20b"
    plain = find_card("Qwen3:4B")
    assert plain is not None and plain.alias == "qwen3-4b"


def test_a_family_alone_names_its_models() -> None:
    with pytest.raises(NotFoundError, match="one of: gemma4:e2b, gemma4:e4b$"):
        locate("Gemma4")


@pytest.mark.parametrize(
    "text",
    [
        "- a list",
        "alias: [a",
        CARD + "colour: red\n",
        CARD + "repo: org/repo\n",
        "alias: x\nsummary: y\nlicence: z\n",
        "alias: 3\nfile: a.gguf\nsummary: y\nlicence: z\n",
        '!!python/object/apply:os.system ["true"]',
    ],
)
def test_a_card_that_is_wrong(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(FormatError, match="card.yaml"):
        load_cards(tmp_path)


def test_an_alias_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CARD)
    (tmp_path / "b.yaml").write_text(CARD)
    with pytest.raises(FormatError, match="taken"):
        load_cards(tmp_path)
