"""A small llama-architecture transformer in PyTorch whose parameter names are the GGUF tensor names."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class StoryConfig:
    vocab_size: int = 1024
    n_layers: int = 6
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    d_ff: int = 384
    context_length: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-5


def rope_tables(config: StoryConfig) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (context, head_dim / 2) f32."""
    steps = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = torch.arange(config.context_length).float()[:, None] / config.rope_base**steps
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE over neighbouring pairs (GGUF "norm" order): x is (batch, heads, tokens, head_dim)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Block(nn.Module):
    def __init__(self, c: StoryConfig, dropout: float) -> None:
        super().__init__()
        self.c, self.dropout = c, dropout
        self.attn_norm = nn.RMSNorm(c.d_model, c.norm_eps)
        self.attn_q = nn.Linear(c.d_model, c.n_heads * c.head_dim, bias=False)
        self.attn_k = nn.Linear(c.d_model, c.n_kv_heads * c.head_dim, bias=False)
        self.attn_v = nn.Linear(c.d_model, c.n_kv_heads * c.head_dim, bias=False)
        self.attn_output = nn.Linear(c.n_heads * c.head_dim, c.d_model, bias=False)
        self.ffn_norm = nn.RMSNorm(c.d_model, c.norm_eps)
        self.ffn_gate = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.ffn_up = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.ffn_down = nn.Linear(c.d_ff, c.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: (batch, tokens, d_model) f32 in and out."""
        c, (n_batch, n_tokens, _) = self.c, x.shape
        h = self.attn_norm(x)
        q, k, v = (
            m(h).view(n_batch, n_tokens, -1, c.head_dim).transpose(1, 2)
            for m in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = c.n_heads // c.n_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = self.attn_output(h.transpose(1, 2).reshape(n_batch, n_tokens, -1))
        x = x + F.dropout(h, self.dropout, self.training)
        h = self.ffn_norm(x)
        h = self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return x + F.dropout(h, self.dropout, self.training)


class StoryModel(nn.Module):
    def __init__(self, config: StoryConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(config.vocab_size, config.d_model)
        self.blk = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layers))
        self.output_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                closing = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(p, std=0.02 / (2 * config.n_layers) ** 0.5 if closing else 0.04)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, tokens) i64 -> logits (batch, tokens, vocab) f32; the head is the embedding."""
        x = self.token_embd(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.blk:
            x = block(x, cos, sin)
        return F.linear(self.output_norm(x), self.token_embd.weight)


def next_token_loss(model: StoryModel, rows: Tensor) -> Tensor:
    """Mean cross-entropy (nats per token) of rows (batch, tokens + 1)."""
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
