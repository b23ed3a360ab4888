"""Measure the embedded models on the held-out stories: the figures of docs/models.md.

    python tools/train/measure_tales.py --corpora ../shared/data/corpora [--models edgerun/embedded]

Reads the shipped GGUF files into the PyTorch model (so the weights are the quantised ones, the activations f32).
Needs torch, tokenizers and edgerun. With the --seed and --held-out of the training run, no story measured here was
trained on. The n-gram's figure comes from ngram_baseline.py.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from fables import tell as tell_fable
from ngram_baseline import NgramModel
from tales_data import (
    IM_END,
    SPECIALS,
    Topics,
    fable_stream,
    read_passages,
    read_stories,
    split_stories,
    token_stream,
    windows,
)
from tales_model import TalesConfig, TalesModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgerun.api import LLM
from edgerun.formats.gguf import GgufFile, open_gguf
from edgerun.formats.quants import dequantize
from edgerun.weights.eviction import DecayedFrequency, LeastRecentlyUsed, hit_rate

DECAY = 0.9
CACHE_SHARES = (0.1, 0.2, 0.4)
TRACE_TOKENS, TRACE_SKIP = 2560, 256
N_DRAFTED = 4
N_ASKED = 100


def config_of(gguf: GgufFile) -> TalesConfig:
    def value(key: str, default: float = 0) -> float:
        return gguf.get(f"{gguf.architecture}.{key}", default)

    return TalesConfig(
        vocab_size=int(value("vocab_size")),
        n_layers=int(value("block_count")),
        d_model=int(value("embedding_length")),
        n_heads=int(value("attention.head_count")),
        n_kv_heads=int(value("attention.head_count_kv")),
        head_dim=int(value("attention.key_length")),
        d_ff=int(value("feed_forward_length")),
        n_experts=int(value("expert_count")),
        n_used=int(value("expert_used_count")),
        context_length=int(value("context_length")),
        rope_base=value("rope.freq_base"),
        norm_eps=value("attention.layer_norm_rms_epsilon"),
    )


def load_model(gguf: GgufFile) -> TalesModel:
    model = TalesModel(config_of(gguf))
    weights = {name: dequantize(gguf.raw(name), info.type) for name, info in gguf.tensors.items()}
    model.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in weights.items()})
    return model.eval()


def load_tokenizer(gguf: GgufFile) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(gguf.metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(m.split(" ")) for m in gguf.metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIALS])
    return tokenizer


@torch.no_grad()
def loss_of(model: TalesModel, rows: list[np.ndarray]) -> float:
    """Mean nats per token over windows (batch, tokens + 1)."""
    total, n = 0.0, 0
    for row in rows:
        ids = torch.from_numpy(row)
        logits, _ = model(ids[:, :-1])
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
        n += ids[:, 1:].numel()
    return total / n


@torch.no_grad()
def routes(model: TalesModel, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of one window (tokens,): the experts chosen (layers, tokens, k), and the whole ranking of the next layer's
    experts, best first, made one layer early (layers - 1, tokens, experts).

    "Early": the residual stream that layer i's own router reads (after its attention, before its experts) goes
    through layer i + 1's ffn_norm and router.
    """
    x = model.token_embd(torch.from_numpy(row)[None])
    cos, sin = model.cos[: len(row)], model.sin[: len(row)]
    chosen, early = [], []
    for i, block in enumerate(model.blk):
        x = x + block.attention(x, cos, sin)
        if i + 1 < len(model.blk):
            after = model.blk[i + 1]
            early.append(after.ffn_gate_inp(after.ffn_norm(x))[0].argsort(dim=-1, descending=True).numpy())
        mixed, _, ids = block.mixture(block.ffn_norm(x).flatten(0, 1))
        chosen.append(ids.numpy())
        x = x + mixed.view_as(x)
    return np.stack(chosen), np.stack(early)


def share_found(chosen: np.ndarray, guessed: np.ndarray) -> float:
    """Of chosen (tokens, k), the share that is among guessed (tokens, n)."""
    return float((chosen[:, :, None] == guessed[:, None, :]).any(axis=2).mean())


def print_routing(model: TalesModel, held: np.ndarray) -> None:
    c = model.config
    pieces = [routes(model, held[i : i + 256]) for i in range(0, len(held) - 256, 256)]
    chosen = np.concatenate([p[0] for p in pieces], axis=1)  # (layers, tokens, k)
    early = np.concatenate([p[1] for p in pieces], axis=1)
    print(f"\nexpert use over {chosen.shape[1]} held-out tokens (an even share is {1 / c.n_experts:.3f})")
    print("layer | least | most | effective number of experts (exp of entropy) | repeats from token to token")
    for i, ids in enumerate(chosen):
        share = np.bincount(ids.flatten(), minlength=c.n_experts) / ids.size
        effective = np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())
        repeats = share_found(ids[1:], ids[:-1])
        print(f"{i} | {share.min():.3f} | {share.max():.3f} | {effective:.1f} | {repeats:.3f}")
    print(
        f"\nof a layer's {c.n_used} experts, the share that is predicted one layer early, and by the layer's favourites"
    )
    print(
        f"layer | best {c.n_used} early | best {2 * c.n_used} early | {c.n_used} most used | {2 * c.n_used} most used"
    )
    for i in range(1, c.n_layers):
        order = np.argsort(-np.bincount(chosen[i].flatten(), minlength=c.n_experts))
        often = np.broadcast_to(order, (chosen.shape[1], c.n_experts))
        found = [share_found(chosen[i], g[:, :n]) for g in (early[i - 1], often) for n in (c.n_used, 2 * c.n_used)]
        print(f"{i} | " + " | ".join(f"{f:.3f}" for f in found))
    trace = chosen.transpose(1, 0, 2)[:TRACE_TOKENS].tolist()
    n_all = c.n_layers * c.n_experts
    print(f"\nhit rate of a cache over all layers' {n_all} experts, token by token, the first {TRACE_SKIP} not counted")
    print(f"slots | least recently used | frequency decayed by {DECAY} a token")
    for part in CACHE_SHARES:
        slots = round(part * n_all)
        lru, decayed = (
            hit_rate(policy, trace, slots, c.n_experts, TRACE_SKIP)
            for policy in (
                LeastRecentlyUsed(c.n_layers, c.n_experts),
                DecayedFrequency(c.n_layers, c.n_experts, decay=DECAY),
            )
        )
        print(f"{slots} ({part:.0%}) | {lru:.3f} | {decayed:.3f}")


@torch.no_grad()
def tell(model: TalesModel, ids: list[int], n: int, temperature: float, rng: torch.Generator, stop: int) -> list[int]:
    """Up to `n` tokens after `ids`: the likeliest (temperature 0), or drawn from the whole distribution."""
    out = list(ids)
    while len(out) < len(ids) + n:
        row = model(torch.tensor([out]))[0][0, -1]
        if temperature:
            token = int(torch.multinomial((row / temperature).softmax(-1), 1, generator=rng))
        else:
            token = int(row.argmax())
        if token == stop:
            break
        out.append(token)
    return out


@torch.no_grad()
def print_acceptance(big: TalesModel, draft: TalesModel, prompts: list[list[int]], stop: int, seed: int) -> None:
    """How often the draft's token is taken, along texts that the big model tells."""
    rng = torch.Generator().manual_seed(seed)
    print(
        f"\nacceptance of the draft along what tales-moe tells: {len(prompts)} held-out requests, up to 120 tokens each"
    )
    print(f"temperature | accepted a drafted token | tokens a pass of tales-moe, {N_DRAFTED} drafted")
    for temperature in (0.0, 0.8):
        per_token, per_pass = [], []
        for ids in prompts:
            text = tell(big, ids, 120, temperature, rng, stop)
            rows = torch.tensor([text[:-1]])
            p, q = (m(rows)[0][0, len(ids) - 1 :] for m in (big, draft))  # (tokens, vocab) of each told token
            if temperature:
                accepted = torch.minimum((p / temperature).softmax(-1), (q / temperature).softmax(-1)).sum(-1).numpy()
            else:
                accepted = (p.argmax(-1) == q.argmax(-1)).double().numpy()
            per_token.extend(accepted.tolist())
            runs = np.stack([accepted[i : len(accepted) - N_DRAFTED + i] for i in range(N_DRAFTED)])
            per_pass.extend((1 + np.cumprod(runs, axis=0).sum(axis=0)).tolist())  # one more token from the pass itself
        print(f"{temperature} | {np.mean(per_token):.3f} | {np.mean(per_pass):.2f}")


def print_asked(path: Path, seed: int) -> None:
    """How many of the things that a request names occur in the story."""
    rng = random.Random(seed + 1)
    there, asked, stories = 0, 0, 0
    with LLM(path) as llm:
        for turn in range(N_ASKED):
            named = [name.split(" named ")[0].split(" ", 1)[1] for name in tell_fable(rng).asked]
            request = "Tell me a story about " + " and ".join(f"a {name}" for name in named) + "."
            story = llm.chat([{"role": "user", "content": request}], temperature=0.8, seed=turn, max_tokens=300).text
            found = [name for name in named if name in story.lower()]
            there, asked, stories = there + len(found), asked + len(named), stories + (len(found) == len(named))
    print(
        f"\nof {asked} things asked for in {N_ASKED} requests (temperature 0.8) {there / asked:.0%} occur in the story;"
    )
    print(f"{stories / N_ASKED:.0%} of the stories have all of theirs")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--corpora", type=Path, required=True)
    p.add_argument("--models", type=Path, default=Path(__file__).parents[2] / "edgerun" / "embedded")
    p.add_argument("--held-out", type=float, default=0.05)
    p.add_argument("--seed", type=int, default=20)
    p.add_argument("--prompts", type=int, default=20)
    args = p.parse_args()
    torch.set_num_threads(1)

    with (
        open_gguf(args.models / "tales-moe.gguf") as moe_file,
        open_gguf(args.models / "tales-draft.gguf") as draft_file,
    ):
        tokenizer, moe, draft = load_tokenizer(moe_file), load_model(moe_file), load_model(draft_file)
    train_stories, held_stories = split_stories(read_stories(args.corpora), args.held_out, args.seed)
    topics = Topics(train_stories)
    held = token_stream(held_stories, topics, tokenizer, random.Random(args.seed))
    rows = list(windows(held, 4, 256))

    fables = fable_stream(100, tokenizer, random.Random(args.seed))
    fable_rows = list(windows(fables, 4, 256))
    print(f"held-out loss, nats per token over {sum(r[:, 1:].size for r in rows)} tokens in windows of 256")
    print("model | parameters | held-out stories | new tellings of the fables")
    for name, model in (("tales-moe", moe), ("tales-draft", draft)):
        n = sum(x.numel() for x in model.parameters())
        print(f"{name} | {n} | {loss_of(model, rows):.4f} | {loss_of(model, fable_rows):.4f}")
    ngram = NgramModel(5, moe.config.vocab_size)
    train_rng, passages = random.Random(args.seed * 1000), read_passages(args.corpora)
    n_fables = len(train_stories)
    ngram.learn(token_stream(train_stories, topics, tokenizer, train_rng, passages, n_fables).tolist())
    print(f"5-gram | | {ngram.loss(held.tolist()):.4f} | {ngram.loss(fables.tolist()):.4f}")
    print_asked(args.models / "tales-moe.gguf", args.seed)

    print_routing(moe, held)
    chats = [
        c for c in tokenizer.decode(held.tolist(), skip_special_tokens=False).split("<|endoftext|>") if "<|im_" in c
    ]
    opening = "<|im_start|>assistant\n"
    requests = [c[: c.index(opening) + len(opening)] for c in chats if opening in c][: args.prompts]
    prompts = [tokenizer.encode("<|endoftext|>" + r).ids for r in requests]
    print_acceptance(moe, draft, prompts, tokenizer.token_to_id(IM_END), args.seed)


if __name__ == "__main__":
    main()
