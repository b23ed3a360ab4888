"""Held-out loss of a 5-gram model on the tokens of a training run: what counting alone achieves.

    python tools/train/ngram_baseline.py --run build/tales-moe --corpora ../shared/data/corpora

Interpolated absolute discounting (each order leans on the next lower one), trained on the same stories and passages and
measured on the same held-out tokens as train_tales.py with the same --seed and --held-out.
"""

import argparse
import collections
import math
import random
from pathlib import Path

from tales_data import Topics, read_passages, read_stories, split_stories, token_stream
from tokenizers import Tokenizer

DISCOUNT = 0.8


class NgramModel:
    """Counts of every context of 0 to order - 1 tokens and of the tokens after it."""

    def __init__(self, order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        self.following: dict[tuple[int, ...], collections.Counter[int]] = {}

    def learn(self, ids: list[int]) -> None:
        for i, token in enumerate(ids):
            for n in range(min(self.order - 1, i) + 1):
                self.following.setdefault(tuple(ids[i - n : i]), collections.Counter())[token] += 1

    def probability(self, context: tuple[int, ...], token: int) -> float:
        lower = self.probability(context[1:], token) if context else 1.0 / self.vocab_size
        counts = self.following.get(context)
        if counts is None:
            return lower
        total = counts.total()
        return (max(counts[token] - DISCOUNT, 0.0) + DISCOUNT * len(counts) * lower) / total

    def loss(self, ids: list[int]) -> float:
        """Mean nats per token of ids[1:]."""
        logs = [
            math.log(self.probability(tuple(ids[max(0, i - self.order + 1) : i]), ids[i])) for i in range(1, len(ids))
        ]
        return -sum(logs) / len(logs)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", type=Path, required=True)
    p.add_argument("--corpora", type=Path, required=True)
    p.add_argument("--order", type=int, default=5)
    p.add_argument("--held-out", type=float, default=0.05)
    p.add_argument("--seed", type=int, default=20)
    args = p.parse_args()

    train_stories, held_stories = split_stories(read_stories(args.corpora), args.held_out, args.seed)
    tokenizer = Tokenizer.from_file(str(args.run / "tokenizer.json"))
    topics = Topics(train_stories)
    model = NgramModel(args.order, tokenizer.get_vocab_size())
    train_rng, held_rng = random.Random(args.seed * 1000), random.Random(args.seed)
    model.learn(token_stream(train_stories, topics, tokenizer, train_rng, read_passages(args.corpora)).tolist())
    held = token_stream(held_stories, topics, tokenizer, held_rng).tolist()
    print(f"{args.order}-gram held-out loss {model.loss(held):.4f} nats per token")


if __name__ == "__main__":
    main()
