"""Little stories of our own, told from the plots of fables/plots.txt: endless, coherent, and about what was asked for.

1.5 MB of TinyStories teach a small model to write sentences but not to stay with a story. A plot is written by hand as
a sequence of beats, each told in a few ways; heroes, friends, things and places are drawn from fables/words.yaml and
stay the same to the end. The request names some of them, so that the model learns to tell what it was asked for.
"""

import functools
import random
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent / "fables"
OPENINGS = ("Once upon a time", "Once upon a time", "Once", "Long ago", "In a small village", "Far away")
LITTLE = ("little", "little", "small", "young", "kind", "clever", "happy", "curious", "brave", "funny", "")
WEATHER = ("sunny", "warm", "bright", "fine", "cold", "quiet", "lovely")
PARAGRAPH_BEATS = (1, 2, 2, 3)


@dataclass(frozen=True)
class Plot:
    name: str
    thing: str  # the word list its thing comes from
    place: str
    beats: tuple[tuple[str, ...], ...]  # each beat: the ways of telling it


@dataclass(frozen=True)
class Fable:
    asked: tuple[str, ...]  # what a request may name, e.g. "a fox named Milo", "a lantern"
    text: str


@functools.cache
def words() -> dict[str, list[str]]:
    lists: dict[str, list[str]] = yaml.safe_load((HERE / "words.yaml").read_text(encoding="utf-8"))
    return lists


@functools.cache
def plots() -> tuple[Plot, ...]:
    text = re.sub(r"^#.*\n", "", (HERE / "plots.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = []
    for part in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        name, roles = head.split(":")
        role = dict(re.findall(r"(\w+)\((\w+)\)", roles))
        beats = tuple(
            tuple(way.strip() for way in beat.splitlines() if way.strip())
            for beat in body.split("\n\n")
            if beat.strip()
        )
        found.append(Plot(name, role.get("thing", "things"), role.get("place", "places"), beats))
    return tuple(found)


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class Cast:
    """Who and what is in one telling; `fill` writes a sentence with them."""

    def __init__(self, plot: Plot, rng: random.Random) -> None:
        lists, self.rng = words(), rng
        child = rng.random() < 0.3
        girl = rng.random() < 0.5
        self.kind = ("girl" if girl else "boy") if child else rng.choice(lists["animals"] * 4 + lists["people"])
        if self.kind in ("queen", "princess", "fairy", "old woman", "witch", "hen"):
            girl = True
        elif self.kind in ("king", "prince", "old man", "wizard"):
            girl = False
        self.name = rng.choice(lists["girls" if girl else "boys"])
        self.named = child or plot.name == "new" or rng.random() < 0.6
        friends = lists["animals"] * 4 + lists["people"]
        if plot.name == "afraid":
            friends = lists["fearsome"]
        friends = [w for w in friends if w != self.kind]
        self.friend, self.friend2 = rng.sample(friends, 2)
        things = lists[plot.thing]
        if plot.thing == "things":  # sometimes what other plots are about
            things = things + lists["shine"] + lists["loud"] + lists["ride"] + lists["food"]
        self.thing = rng.choice([w for w in things if w not in (self.kind, self.friend)])
        self.place = rng.choice(lists[plot.place])
        self.adjective = rng.choice([a for a in lists["adjectives"] if a not in self.thing])
        he, him, his = ("she", "her", "her") if girl else ("he", "him", "his")
        little = rng.choice(LITTLE)
        self.strand = rng.choice("12")
        self.fixed = {
            "kind": self.kind,
            "name": self.name,
            "named": f"{rng.choice(('named', 'named', 'called'))} {self.name}" if self.named else "",
            "a_little": with_article(f"{little} {self.kind}".strip()).removesuffix(self.kind).strip(),
            "he": he,
            "him": him,
            "his": his,
            "call": self.name if self.named else f"little {self.kind}",
            "himself": him + "self",
            "a_friend": with_article(self.friend),
            "a_friend2": with_article(self.friend2),
            "fkind": self.friend,
            "fkind2": self.friend2,
            "elder": rng.choice(("mom", "grandma", "grandpa", "dad")),
            "thing": self.thing,
            "a_thing": with_article(self.thing),
            "a_adj": with_article(f"{self.adjective} {self.thing}").removesuffix(self.thing).strip(),
            "place": self.place,
        }

    def value(self, slot: str) -> str:
        if slot.lower() == "hero":
            return self.name if self.named and self.rng.random() < 0.7 else f"the {self.kind}"
        if slot in ("sunny", "windy"):
            return self.rng.choice(WEATHER) if slot == "sunny" else "windy"
        if slot == "Opening":
            opening = self.rng.choice(OPENINGS)
            return opening + ("" if opening == "Once" else ",")
        return self.fixed[slot.lower()]

    def tell(self, beat: tuple[str, ...]) -> str:
        """The beat in one of the ways of this telling's strand."""
        ways = [way for way in beat if way[:3] not in ("1: ", "2: ") or way[0] == self.strand]
        return self.fill(re.sub(r"^[12]: ", "", self.rng.choice(ways)))

    def fill(self, way: str) -> str:
        way = re.sub(r"\[([^\]]*)\]", lambda m: self.fill(self.rng.choice(m[1].split("|"))), way)

        def slot(match: re.Match[str]) -> str:
            value = self.value(match[1])
            return capital(value) if match[1][0].isupper() else value

        return re.sub(r"\s+", " ", re.sub(r"\{(\w+)\}", slot, way)).replace(" ,", ",").replace(" .", ".").strip()

    def asked(self) -> tuple[str, ...]:
        """One to three of hero, thing, friend and place, in the order in which a request names them."""
        hero = with_article(self.kind)
        if self.named and self.rng.random() < 0.3:
            hero += f" named {self.name}"
        every = [hero, with_article(self.thing), with_article(self.friend), with_article(self.place)]
        picked = self.rng.choice(((0, 1), (0, 1), (0, 1), (0,), (1,), (0, 2), (0, 1, 2), (0, 3), (1, 2), (0, 1, 3)))
        return tuple(every[i] for i in picked)


def tell(rng: random.Random) -> Fable:
    """One story from a plot drawn at random, in paragraphs of one to three beats."""
    plot = rng.choice(plots())
    cast = Cast(plot, rng)
    lines, beats = [], [cast.tell(beat) for beat in plot.beats]
    while beats:
        n = rng.choice(PARAGRAPH_BEATS)
        lines.append(" ".join(beats[:n]))
        beats = beats[n:]
    return Fable(cast.asked(), "\n".join(lines))
