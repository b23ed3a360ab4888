"""The corpora as training text: cleaning, splitting, topic words, chats, passages of fairy tales, token windows."""

import collections
import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from fables import Fable, tell
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END, IM_START, IM_END = SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
DETERMINERS = frozenset({"a", "an", "the", "his", "her", "their"})
AFTER_NOUN = frozenset(
    re.findall(
        r"\w+",
        "and was is had to in on that with of for but at from who said were it did could wanted would",
    )
)
REQUESTS = (
    "Tell me a story about {}.",
    "Tell me a story about {}.",
    "Write a short story about {}.",
    "Can you tell me a story about {}?",
    "Please tell me about {}.",
)
CHAT_SHARE = 0.4
FABLE_CHAT_SHARE = 0.9
BOOKS = (  # public-domain tales for children, beside the stories
    "Hans_Christian_Andersen_Andersen_s_Fairy_Tales",
    "Hans_Christian_Andersen_The_Little_Mermaid",
    "Aesop_Aesop_s_Fables",
    "L._Frank_Baum_The_Wonderful_Wizard_of_Oz",
    "L._Frank_Baum_The_Marvelous_Land_of_Oz",
    "L._Frank_Baum_Ozma_of_Oz",
    "L._Frank_Baum_Dorothy_and_the_Wizard_in_Oz",
    "L._Frank_Baum_The_Life_and_Adventures_of_Santa_Claus",
    "L._Frank_Baum_A_Kidnapped_Santa_Claus",
    "Lewis_Carroll_Alice_s_Adventures_in_Wonderland",
    "Lewis_Carroll_Through_the_Looking-Glass",
    "Oscar_Wilde_The_Happy_Prince_Other_Tales",
    "Robert_Louis_Stevenson_Treasure_Island",
)
PASSAGE_CHARS = 1200
PASSAGES_PER_STORY = 0.35  # of an epoch


def plain_text(path: Path) -> str:
    """A text file with typewriter quotes, in ASCII."""
    text = path.read_text(encoding="utf-8").translate(PLAIN_QUOTES)
    return "".join(c for c in text if c == "\n" or " " <= c <= "~")


def read_stories(corpora: Path) -> list[str]:
    """The complete stories of the TinyStories file, with single line breaks."""
    text = plain_text(corpora / "tinystories_valid_1.6MB.txt")
    stories = (re.sub(r"\s*\n\s*", "\n", s.strip()) for s in text.split(END)[1:-1])
    return [s for s in stories if len(s) > 100]


def read_passages(corpora: Path) -> list[str]:
    """The books' paragraphs, some neighbours together at a time."""
    passages = []
    for name in BOOKS:
        text = re.sub(r"[_*]", "", plain_text(corpora / "books" / f"{name}.md"))
        part = ""
        for paragraph in text.split("\n\n"):
            line = re.sub(r"\s+", " ", paragraph).strip()
            if not line or line.startswith(("#", "---")):
                continue
            part += line + "\n"
            if len(part) > PASSAGE_CHARS:
                passages.append(part.strip())
                part = ""
    return passages


def split_stories(stories: list[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    """(training stories, held-out stories), split by a seeded shuffle."""
    order = list(stories)
    random.Random(seed).shuffle(order)
    n_held = int(len(order) * held_out)
    return order[n_held:], order[:n_held]


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with GPT-2's byte alphabet and word pattern; specials have ids 0, 1, 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    chats = [f"user\n{request}" for request in REQUESTS] + ["assistant\n"]
    tokenizer.train_from_iterator(texts + chats * 50, trainer)
    return tokenizer


class Topics:
    """Finds the concrete nouns that a story is about, by word statistics of a corpus (no tagger needed)."""

    def __init__(self, stories: list[str]) -> None:
        self.n_stories = len(stories)
        self.in_stories: collections.Counter[str] = collections.Counter()
        seen: collections.Counter[str] = collections.Counter()
        as_noun: collections.Counter[str] = collections.Counter()
        self.countable: set[str] = set()
        for story in stories:
            words = re.findall(r"[A-Za-z']+|[.,!?]", story)
            self.in_stories.update(set(words))
            seen.update(words)
            for before, word, after in zip(words, words[1:], words[2:], strict=False):
                if before.lower() in DETERMINERS and (after in AFTER_NOUN or after in ".,!?"):
                    as_noun[word] += 1
                    if before.lower() in ("a", "an"):
                        self.countable.add(word)
        self.nouns = {
            w
            for w, n in as_noun.items()
            if n >= 2 and n >= 0.2 * seen[w] and w.islower() and len(w) > 2 and w in self.countable
        } - {"day", "lot", "bit", "while", "time", "way", "idea", "story", "one", "end", "moral"}

    def of(self, story: str, most: int) -> list[str]:
        """Up to `most` nouns of the story, the most over-represented first."""
        counts = collections.Counter(w for w in re.findall(r"[a-z']+", story) if w in self.nouns)
        score = {w: n * math.log(self.n_stories / self.in_stories[w]) for w, n in counts.items()}
        return sorted(score, key=lambda w: (-score[w], w))[:most]


def chat_text(story: str, topics: Topics, rng: random.Random) -> str:
    """The story as the answer to a request that names one to three of its own things."""
    words = topics.of(story, rng.choice((1, 2, 2, 3)))
    rng.shuffle(words)
    return answered([f"{'an' if w[0] in 'aeiou' else 'a'} {w}" for w in words], story, rng)


def answered(named: Sequence[str], story: str, rng: random.Random) -> str:
    """A chat: a request that names these things, and the story."""
    if not named or rng.random() < 0.05:
        request = "Tell me a story."
    else:
        listed = named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]
        request = rng.choice(REQUESTS).format(listed)
    return f"{IM_START}user\n{request}{IM_END}\n{IM_START}assistant\n{story}{IM_END}\n"


def fable_stream(n: int, tokenizer: Tokenizer, rng: random.Random) -> np.ndarray:
    """`n` fables as token_stream gives them: (tokens,) i64."""
    ids = [i for e in tokenizer.encode_batch(fable_texts(n, rng)) for i in e.ids]
    return np.array([*ids, tokenizer.token_to_id(END)], dtype=np.int64)


def fable_texts(n: int, rng: random.Random) -> list[str]:
    fables: list[Fable] = [tell(rng) for _ in range(n)]
    return [END + (answered(f.asked, f.text, rng) if rng.random() < FABLE_CHAT_SHARE else f.text) for f in fables]


def token_stream(
    stories: list[str],
    topics: Topics,
    tokenizer: Tokenizer,
    rng: random.Random,
    passages: list[str] | None = None,
    fables: int = 0,
    chat_share: float = CHAT_SHARE,
) -> np.ndarray:
    """All stories, plain or as chats, some passages, and new fables, each opened by END, shuffled: (tokens,) i64."""
    texts = [END + (chat_text(s, topics, rng) if rng.random() < chat_share else s) for s in stories]
    if passages:
        texts += [END + p for p in rng.sample(passages, min(len(passages), int(PASSAGES_PER_STORY * len(stories))))]
    texts += fable_texts(fables, rng)
    rng.shuffle(texts)
    ids = [i for e in tokenizer.encode_batch(texts) for i in e.ids]
    return np.array([*ids, tokenizer.token_to_id(END)], dtype=np.int64)


def windows(stream: np.ndarray, batch: int, length: int) -> Iterator[np.ndarray]:
    """Consecutive (batch, length + 1) pieces of a stream; neighbours share the one border token."""
    size = batch * length
    for start in range(0, len(stream) - size, size):
        rows = [stream[start + i * length : start + (i + 1) * length + 1] for i in range(batch)]
        yield np.stack(rows)
