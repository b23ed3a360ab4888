"""Turn a checkpoint of train_tales.py into a GGUF file with tokenizer, chat template and description.

    python tools/train/export_tales.py --run build/tales-moe --output edgerun/embedded/tales-moe.gguf

Needs torch and tokenizers (reading the checkpoint) and edgerun (writing the file).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tales_data import END, IM_END, SPECIALS
from tales_model import TalesConfig

from edgerun.formats.gguf import GgmlType, GgufWriter
from edgerun.formats.quants import quantize

DESCRIPTION = (
    "A small storyteller, trained from scratch for edgerun on TinyStories texts and public-domain tales. "
    "It tells very short children's stories and does nothing else."
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3  # the token types of llama.cpp
MOSTLY_Q8_0 = 7  # the file type of llama.cpp


def add_description(w: GgufWriter, arch: str, config: TalesConfig, name: str, n_parameters: int) -> None:
    w.add("general.type", "model")
    w.add("general.name", name)
    w.add("general.basename", name)
    w.add("general.description", DESCRIPTION)
    w.add("general.license", "Apache-2.0")
    w.add("general.languages", ["en"])
    w.add("general.size_label", f"{n_parameters / 1e6:.1f}M")
    w.add("general.file_type", MOSTLY_Q8_0)
    w.add("general.quantization_version", 2)
    w.add(f"{arch}.block_count", config.n_layers)
    w.add(f"{arch}.context_length", config.context_length)
    w.add(f"{arch}.embedding_length", config.d_model)
    w.add(f"{arch}.feed_forward_length", config.d_ff)
    w.add(f"{arch}.attention.head_count", config.n_heads)
    w.add(f"{arch}.attention.head_count_kv", config.n_kv_heads)
    w.add(f"{arch}.attention.key_length", config.head_dim)
    w.add(f"{arch}.attention.value_length", config.head_dim)
    w.add(f"{arch}.attention.layer_norm_rms_epsilon", config.norm_eps)
    w.add(f"{arch}.rope.freq_base", config.rope_base)
    w.add(f"{arch}.vocab_size", config.vocab_size)
    if config.n_experts:
        w.add(f"{arch}.expert_count", config.n_experts)
        w.add(f"{arch}.expert_used_count", config.n_used)
        w.add(f"{arch}.expert_feed_forward_length", config.d_ff)


def add_tokenizer(w: GgufWriter, tokenizer: dict[str, Any], vocab_size: int) -> None:
    """`tokenizer`: the parsed tokenizer.json."""
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    if len(tokens) != vocab_size or [ids[t] for t in tokens] != list(range(vocab_size)):
        raise SystemExit(f"the tokenizer has {len(tokens)} tokens, the model {vocab_size}")
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    w.add("tokenizer.ggml.model", "gpt2")
    w.add("tokenizer.ggml.pre", "gpt-2")
    w.add("tokenizer.ggml.tokens", tokens)
    kinds = [CONTROL_TOKEN if t in SPECIALS else NORMAL_TOKEN for t in tokens]
    w.add("tokenizer.ggml.token_type", np.array(kinds, dtype=np.int32))
    w.add("tokenizer.ggml.merges", merges)
    w.add("tokenizer.ggml.bos_token_id", ids[END])
    w.add("tokenizer.ggml.eos_token_id", ids[IM_END])
    w.add("tokenizer.ggml.eot_token_id", ids[IM_END])
    w.add("tokenizer.ggml.add_bos_token", True)
    w.add("tokenizer.chat_template", CHAT_TEMPLATE)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", type=Path, required=True, help="the --out directory of train_tales.py")
    p.add_argument("--output", type=Path, required=True)
    args = p.parse_args()

    state = torch.load(args.run / "best.pt", weights_only=True, map_location="cpu")
    config = TalesConfig(**state["config"])
    weights = {name: tensor.float().numpy() for name, tensor in state["model"].items()}
    tokenizer = json.loads((args.run / "tokenizer.json").read_text(encoding="utf-8"))
    arch = "qwen3moe" if config.n_experts else "qwen3"
    with GgufWriter(args.output, arch) as w:
        add_description(w, arch, config, args.output.stem, sum(x.size for x in weights.values()))
        add_tokenizer(w, tokenizer, config.vocab_size)
        for name, x in weights.items():
            if x.ndim == 1 or "ffn_gate_inp" in name:
                w.add_tensor(name, x, GgmlType.F32)
            else:
                w.add_tensor(name, quantize(x, GgmlType.Q8_0), GgmlType.Q8_0)
    size = args.output.stat().st_size
    print(f"{args.output}: {size} bytes, step {state['step']}, held-out loss {state['held_out']:.4f}")


if __name__ == "__main__":
    main()
