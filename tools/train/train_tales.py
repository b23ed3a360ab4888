"""Train the embedded models on a CPU: tales-moe, a mixture of experts, and tales-draft, a small dense model.

    python tools/train/train_tales.py --model moe --corpora ../shared/data/corpora --out build/tales-moe

Needs torch==2.13.0, numpy, tokenizers and pyyaml. Writes to --out: tokenizer.json (or takes --tokenizer), losses.csv,
last.pt (to resume from) and best.pt (lowest held-out loss; what export_tales.py reads). The same command again resumes.
The learning rate warms up, stays constant, and falls linearly to zero over the last part of --steps, so that a
stopped run (SIGTERM or Ctrl-C saves first) may be resumed with another --steps without a jump. The same seed
and number of threads give the same losses on the same machine.
"""

import argparse
import csv
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tales_data import (
    CHAT_SHARE,
    Topics,
    fable_stream,
    read_passages,
    read_stories,
    split_stories,
    token_stream,
    train_tokenizer,
    windows,
)
from tales_model import CONFIGS, TalesModel, next_token_loss
from tokenizers import Tokenizer


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", choices=CONFIGS, required=True)
    p.add_argument("--corpora", type=Path, required=True)
    p.add_argument("--tokenizer", type=Path, help="take this one, so that two models share it")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--begin-with", type=Path, help="weights to begin with: another run's best.pt")
    p.add_argument("--fables", type=float, default=0.0, help="stories told by fables.py for every story of the corpus")
    p.add_argument("--chat-share", type=float, default=CHAT_SHARE, help="of the corpus' stories, told as answers")
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--stop-at", type=int, help="stop after this step of --steps, to compare losses or to go on later")
    p.add_argument("--batch-tokens", type=int, default=2048)
    p.add_argument("--peak-rate", type=float, default=2e-3)
    p.add_argument("--warmup-steps", type=int, default=60)
    p.add_argument("--decay-share", type=float, default=0.4, help="last share of the steps, rate falling to 0")
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--held-out", type=float, default=0.05)
    p.add_argument("--eval-every", type=int, default=100)
    p.add_argument("--save-every-s", type=float, default=90.0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=20)
    return p.parse_args()


def learning_rate(step: int, args: argparse.Namespace) -> float:
    warm = min(1.0, (step + 1) / args.warmup_steps)
    fall = min(1.0, (args.steps - step) / (args.decay_share * args.steps))
    return args.peak_rate * warm * max(fall, 0.0)


def training_rows(
    stories: list[str], passages: list[str], topics: Topics, tokenizer: Tokenizer, args: argparse.Namespace
) -> Iterator[np.ndarray]:
    """Endless batches. Each epoch reorders the stories and draws anew which are chats and what they ask.

    Every third epoch uses windows of 512 tokens, the others 256: cheaper, and long contexts are still learnt.
    """
    epoch, n_fables, share = 0, int(args.fables * len(stories)), args.chat_share
    while True:
        stream = token_stream(
            stories, topics, tokenizer, random.Random(args.seed * 1000 + epoch), passages, n_fables, share
        )
        length = 512 if epoch % 3 == 2 else 256
        yield from windows(stream, args.batch_tokens // length, length)
        epoch += 1


@torch.no_grad()
def held_out_loss(model: TalesModel, rows: list[np.ndarray]) -> float:
    model.eval()
    losses = [next_token_loss(model, torch.from_numpy(r))[0].item() for r in rows]
    model.train()
    return sum(losses) / len(losses)


def make_optimizer(model: TalesModel, args: argparse.Namespace) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.peak_rate, betas=(0.9, 0.97), fused=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader never sees half a file."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def open_log(path: Path, step: int) -> TextIO:
    """The loss file, ready for the row after `step`; later rows, of lost steps, are dropped."""
    lines = ["step,train_loss,held_out_loss,fable_loss,learning_rate,step_s"]
    if step:
        lines = path.read_text(encoding="utf-8").splitlines()[: step + 1]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.open("a", newline="", encoding="utf-8")


def prepare_tokenizer(path: Path, given: Path | None, texts: list[str], vocab_size: int) -> Tokenizer:
    if given is not None:
        path.write_bytes(given.read_bytes())
    elif not path.exists():
        train_tokenizer(texts, vocab_size).save(str(path))
    return Tokenizer.from_file(str(path))


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[args.model]

    train_stories, held_stories = split_stories(read_stories(args.corpora), args.held_out, args.seed)
    passages = read_passages(args.corpora)
    tokenizer = prepare_tokenizer(
        args.out / "tokenizer.json", args.tokenizer, train_stories * 2 + passages, config.vocab_size
    )
    topics = Topics(train_stories)
    held_stream = token_stream(held_stories, topics, tokenizer, random.Random(args.seed))
    held_rows = list(windows(held_stream, 4, 256))
    fable_rows = list(windows(fable_stream(100, tokenizer, random.Random(args.seed)), 4, 256)) if args.fables else []
    print(f"{len(train_stories)} stories, {len(held_stories)} held out ({len(held_stream)} tokens)", flush=True)
    print(f"{len(passages)} passages of books", flush=True)

    model = TalesModel(config, args.dropout)
    optimizer = make_optimizer(model, args)
    step, best = 0, float("inf")
    last = args.out / "last.pt"
    if last.exists():
        state = torch.load(last, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, best = state["step"], state["best"]
    elif args.begin_with is not None:
        model.load_state_dict(torch.load(args.begin_with, weights_only=True)["model"])
    rows_of = training_rows(train_stories, passages, topics, tokenizer, args)
    for _ in range(step):
        next(rows_of)

    stopping = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log = open_log(args.out / "losses.csv", step)
    writer = csv.writer(log)

    saved_at = time.monotonic()
    last_step = min(args.steps, args.stop_at or args.steps)
    while step < last_step and not stopping:
        started = time.monotonic()
        torch.manual_seed(args.seed * 1_000_003 + step)  # dropout depends on the step alone, resumed or not
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        loss, extra = next_token_loss(model, torch.from_numpy(next(rows_of)))
        optimizer.zero_grad()
        (loss + extra).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        step_s = time.monotonic() - started

        held, fable = None, None
        if step % args.eval_every == 0 or step == args.steps:
            held = held_out_loss(model, held_rows)
            fable = held_out_loss(model, fable_rows) if fable_rows else None
            report = f"held out {held:.3f}" + (f", fables {fable:.3f}" if fable is not None else "")
            print(f"step {step}: train {loss.item():.3f}, {report}, {step_s:.2f} s a step", flush=True)
            if held + (fable or 0.0) < best:
                best = held + (fable or 0.0)
                weights = {
                    "model": model.state_dict(),
                    "config": asdict(config),
                    "step": step,
                    "held_out": held,
                }
                save(args.out / "best.pt", weights)
        rate = f"{optimizer.param_groups[0]['lr']:.6f}"
        measured = ["" if x is None else f"{x:.5f}" for x in (held, fable)]
        writer.writerow([step, f"{loss.item():.5f}", *measured, rate, f"{step_s:.3f}"])
        log.flush()
        if time.monotonic() - saved_at > args.save_every_s or step == last_step or stopping:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "best": best,
            }
            save(last, state)
            saved_at = time.monotonic()
    log.close()


if __name__ == "__main__":
    main()
