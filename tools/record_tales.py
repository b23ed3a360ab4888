"""Record what llama.cpp computes with the embedded models: run in an environment with llama-cpp-python.

    python tools/record_tales.py [--models DIR] [--output DIR]

For tales-moe and tales-draft: the tokens of a prompt and the logits after every eighth of them, the greedy text of
prompts, and the perplexity of tests/models/tales/held_out.txt, which was written for this and is in no corpus.
tests/models/test_tales.py compares edgerun with it. Where two tokens are all but equally likely, rounding decides the
text, so the lead of each token over the second is recorded too.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
from pathlib import Path
from typing import Any

import llama_cpp as L
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TALES = ROOT / "tests" / "models" / "tales"
REQUESTS = (
    "Tell me a story about a fox and a lantern.",
    "Write a short story about a dog and a ball.",
    "Can you tell me a story about a bird?",
    "Tell me a story about a boat, a girl and a fish.",
    "Please tell me about a cat.",
    "Tell me a story.",
    "Tell me a story about a tree and a rabbit.",
    "Write a short story about a train.",
    "Please tell me about a princess and a dragon.",
    "Can you tell me a story about a frog and a pond?",
    "Tell me a story about an apple.",
    "Write a short story about a bear, a cake and a box.",
)
OPENINGS = (
    "Once upon a time, there was a little",
    "Tom and his mom went to the park. They saw a big",
    "The old king had three sons, and the youngest",
    "One day, a small mouse found",
    "Lily was sad because",
    "The bear looked at the moon and",
    "In the forest lived an old owl who",
    "Mom said it was time to",
    "A boy named Ben had a red kite. He",
    "It was raining, and the children",
    "The wolf came to the door and said,",
    "There was once a poor woodcutter",
)
N_GREEDY = 100
N_LOGITS = 64
N_CONTEXT = 512  # what the models were trained for


def chat(request: str) -> str:
    return f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"


class Oracle:
    """One model in llama.cpp, with its most exact attention (the default rounds queries and values to f16)."""

    def __init__(self, path: Path, n_context: int = 2 * N_CONTEXT) -> None:
        self.quiet = L.llama_log_callback(lambda level, text, data: None)
        L.llama_log_set(self.quiet, ctypes.c_void_p(0))
        self.model = L.llama_model_load_from_file(str(path).encode(), L.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = L.llama_model_get_vocab(self.model)
        self.n_vocab = L.llama_vocab_n_tokens(self.vocab)
        params = L.llama_context_default_params()
        params.n_ctx = n_context
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = 0  # GGML_TYPE_F32
        params.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = L.llama_init_from_model(self.model, params)

    def tokens(self, text: str) -> list[int]:
        raw = text.encode()
        ids = (L.llama_token * (len(raw) + 8))()
        n = L.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), True, True)
        return list(ids[:n])

    def text(self, ids: list[int]) -> str:
        out = b""
        for token in ids:
            piece = ctypes.create_string_buffer(256)
            n = L.llama_token_to_piece(self.vocab, token, piece, 256, 0, True)
            out += piece.raw[:n]
        return out.decode(errors="replace")

    def feed(self, token: int) -> np.ndarray:
        """(vocab,) f32 logits after one more token."""
        array = (L.llama_token * 1)(token)  # must outlive the batch
        if L.llama_decode(self.context, L.llama_batch_get_one(array, 1)):
            raise SystemExit("llama_decode failed")
        return np.ctypeslib.as_array(L.llama_get_logits_ith(self.context, -1), shape=(self.n_vocab,)).copy()

    def reset(self) -> None:
        L.llama_memory_clear(L.llama_get_memory(self.context), True)

    def logits(self, ids: list[int]) -> np.ndarray:
        """(tokens, vocab) f32."""
        self.reset()
        return np.stack([self.feed(token) for token in ids])

    def greedy(self, ids: list[int], n: int) -> tuple[list[int], list[float]]:
        """(the next `n` most likely tokens, or fewer where the text ends; the lead of each over the second)."""
        self.reset()
        for token in ids:
            row = self.feed(token)
        out: list[int] = []
        leads: list[float] = []
        while len(out) < n:
            second, first = np.partition(row, -2)[-2:]
            token = int(row.argmax())
            if L.llama_vocab_is_eog(self.vocab, token):
                break
            out.append(token)
            leads.append(float(first - second))
            row = self.feed(token)
        return out, leads

    def perplexity(self, ids: list[int]) -> float:
        """exp of the mean loss of ids[1:], in one context."""
        rows = self.logits(ids[:-1]).astype(np.float64)
        top = rows.max(axis=1)
        losses = np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top - rows[np.arange(len(rows)), ids[1:]]
        return float(np.exp(losses.mean()))


def record(path: Path, output: Path) -> None:
    oracle = Oracle(path)
    held_out = oracle.tokens((TALES / "held_out.txt").read_text(encoding="utf-8"))[:N_CONTEXT]
    texts: list[dict[str, Any]] = []
    for prompt in [*map(chat, REQUESTS), *OPENINGS]:
        ids, leads = oracle.greedy(oracle.tokens(prompt), N_GREEDY)
        case = {"prompt": prompt, "leads": [round(lead, 4) for lead in leads]}
        texts.append(case | {"text": oracle.text(ids), "ids": ids})
        print(f"{path.stem}: {len(ids)} tokens, smallest lead {min(leads):.4f}: {prompt!r}")
    rows = oracle.logits(held_out[:N_LOGITS])[7::8].astype(np.float32)
    np.save(output / f"{path.stem}.npy", rows)
    golden = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "held_out_tokens": held_out,
        "perplexity": oracle.perplexity(held_out),
        "greedy": texts,
    }
    (output / f"{path.stem}.json").write_text(json.dumps(golden) + "\n", encoding="utf-8")
    print(f"{path.stem}: perplexity {golden['perplexity']:.4f} over {len(held_out) - 1} tokens")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=Path, default=ROOT / "edgerun" / "embedded")
    p.add_argument("--output", type=Path, default=TALES)
    a = p.parse_args()
    for name in ("tales-moe", "tales-draft"):
        if (a.models / f"{name}.gguf").exists():
            record(a.models / f"{name}.gguf", a.output)
