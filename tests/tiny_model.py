"""A tiny random model as a real GGUF file, made in milliseconds: to test what is above the decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgerun.formats.gguf import GgmlType, GgufWriter

D_MODEL, D_FF, N_LAYERS, N_HEADS, N_KV_HEADS, CONTEXT = 64, 128, 2, 4, 2, 512
HEAD_DIM = D_MODEL // N_HEADS

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = (
    "Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r", "o n", "Ġ w", "r e", "Ġ s", "a t", "n d", "Ġa nd", "o u",
    "Ġ b", "i t", "Ġ h", "e n", "Ġ o", "e s", "o r", "in g", "Ġ c", "i s", "Ġ l", "l l", "a n", "Ġ f",
    "a r", "Ġ m", "e d", "Ġt o", "Ġ d", "o m", "Ġ p", "Ġw as", "a s", "l e", "Ġ n", "v e", "Ġ in",
)  # fmt: skip


def byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes with, by byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    for offset, byte in enumerate(byte for byte in range(256) if byte not in letters):
        letters[byte] = chr(256 + offset)
    return [letters[byte] for byte in range(256)]


def tiny_vocabulary() -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and token types (1 normal, 3 control) of a byte-level BPE with about 300 tokens."""
    tokens = byte_letters()
    merges = []
    for merge in _MERGES:
        left, right = merge.split(" ")
        if left in tokens and right in tokens and left + right not in tokens:
            tokens.append(left + right)
            merges.append(merge)
    types = [1] * len(tokens) + [3] * len(_SPECIAL)
    return [*tokens, *_SPECIAL], merges, types


def make_tiny_model(
    path: str | Path,
    *,
    arch: str = "llama",
    seed: int = 0,
    chat: bool = True,
    tokenizer: bool = True,
    context: int = CONTEXT,
    name: str = "tiny",
    layers: int = N_LAYERS,
    head_dim: int = HEAD_DIM,
    more_tokens: int = 0,
) -> Path:
    """Write a random F32 model of `layers` layers and 64 dimensions with a byte-level BPE vocabulary to `path`.

    arch: "llama", "qwen2" (biases on q, k, v) or "qwen3" (normed q and k). `chat`: with a ChatML template.
    `tokenizer=False`: no vocabulary at all. Greedy text is printable ASCII and never ends by itself: the
    output rows of all other tokens are zero, of the `more_tokens` too, which no text has. The same arguments give
    the same bytes.
    """
    path = Path(path)
    rng = np.random.default_rng(seed)
    tokens, merges, types = tiny_vocabulary()
    more = [f"<more {i}>" for i in range(more_tokens)]
    tokens, types = [*tokens[:-3], *more, *tokens[-3:]], [*types[:-3], *[4] * more_tokens, *types[-3:]]
    n_vocab = len(tokens)

    def normal(rows: int, cols: int) -> NDArray[np.float32]:
        return (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)

    with GgufWriter(path, arch) as w:
        w.add("general.name", name)
        w.add("general.file_type", 0)
        w.add(f"{arch}.block_count", layers)
        w.add(f"{arch}.context_length", context)
        w.add(f"{arch}.embedding_length", D_MODEL)
        w.add(f"{arch}.feed_forward_length", D_FF)
        w.add(f"{arch}.attention.head_count", N_HEADS)
        w.add(f"{arch}.attention.head_count_kv", N_KV_HEADS)
        w.add(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
        w.add(f"{arch}.rope.dimension_count", head_dim)
        w.add(f"{arch}.rope.freq_base", 10000.0)
        w.add(f"{arch}.vocab_size", n_vocab)
        if arch == "qwen3" or head_dim != HEAD_DIM:
            w.add(f"{arch}.attention.key_length", head_dim)
            w.add(f"{arch}.attention.value_length", head_dim)
        if tokenizer:
            w.add("tokenizer.ggml.model", "gpt2")
            w.add("tokenizer.ggml.pre", "gpt-2")
            w.add("tokenizer.ggml.tokens", tokens)
            w.add("tokenizer.ggml.token_type", types)
            w.add("tokenizer.ggml.merges", merges)
            w.add("tokenizer.ggml.bos_token_id", n_vocab - 3)
            w.add("tokenizer.ggml.eos_token_id", n_vocab - 1)
            w.add("tokenizer.ggml.add_bos_token", False)
            if chat:
                w.add("tokenizer.chat_template", CHATML)

        def add(name: str, data: NDArray[np.float32]) -> None:
            w.add_tensor(name, data, GgmlType.F32)

        add("token_embd.weight", normal(n_vocab, D_MODEL) * np.float32(8))
        for layer in range(layers):
            prefix = f"blk.{layer}."
            kv = N_KV_HEADS * head_dim
            add(prefix + "attn_norm.weight", np.ones(D_MODEL, np.float32))
            for part, rows in (("q", N_HEADS * head_dim), ("k", kv), ("v", kv)):
                add(prefix + f"attn_{part}.weight", normal(rows, D_MODEL) * np.float32(2))
                if arch == "qwen2":
                    add(prefix + f"attn_{part}.bias", normal(1, rows)[0])
            if arch == "qwen3":
                add(prefix + "attn_q_norm.weight", np.ones(head_dim, np.float32))
                add(prefix + "attn_k_norm.weight", np.ones(head_dim, np.float32))
            add(prefix + "attn_output.weight", normal(D_MODEL, N_HEADS * head_dim))
            add(prefix + "ffn_norm.weight", np.ones(D_MODEL, np.float32))
            add(prefix + "ffn_gate.weight", normal(D_FF, D_MODEL))
            add(prefix + "ffn_up.weight", normal(D_FF, D_MODEL))
            add(prefix + "ffn_down.weight", normal(D_MODEL, D_FF))
        add("output_norm.weight", np.ones(D_MODEL, np.float32))
        head = normal(n_vocab, D_MODEL) * np.float32(4)
        silent = [i for i, token in enumerate(tokens) if types[i] != 1 or not _printable(token)]
        head[silent] = 0
        add("output.weight", head)
    return path


def _printable(token: str) -> bool:
    return all(33 <= ord(letter) < 127 or letter == "Ġ" for letter in token)
