"""Two small transformers in PyTorch whose parameter names are the GGUF tensor names: `qwen3` (dense) and `qwen3moe`.

The mixture routes as llama.cpp's qwen3moe does: softmax over all experts, the best k, their weights scaled to sum to
one. Training adds a load-balancing loss (Switch Transformer) and a z-loss (ST-MoE) so that all experts are used.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BALANCE, Z = 0.01, 0.001  # weights of the two router losses


@dataclass(frozen=True)
class TalesConfig:
    vocab_size: int = 4096
    n_layers: int = 6
    d_model: int = 256
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    d_ff: int = 256  # of one expert, or of the dense feed-forward
    n_experts: int = 16
    n_used: int = 2
    context_length: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-6


CONFIGS = {
    "moe": TalesConfig(),
    "draft": TalesConfig(
        n_layers=4, d_model=128, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=512, n_experts=0, n_used=0
    ),
}


def rope_tables(config: TalesConfig) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (context, head_dim / 2) f32."""
    steps = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = torch.arange(config.context_length).float()[:, None] / config.rope_base**steps
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE over pairs (i, i + half) (GGUF "neox" order): x is (batch, heads, tokens, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Experts(nn.Module):
    """The gated feed-forwards of a layer; `weight` is (experts, rows, cols) as in GGUF."""

    def __init__(self, n: int, rows: int, cols: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, rows, cols))


class Block(nn.Module):
    def __init__(self, c: TalesConfig, dropout: float) -> None:
        super().__init__()
        self.c, self.dropout = c, dropout
        self.attn_norm = nn.RMSNorm(c.d_model, c.norm_eps)
        self.attn_q = nn.Linear(c.d_model, c.n_heads * c.head_dim, bias=False)
        self.attn_k = nn.Linear(c.d_model, c.n_kv_heads * c.head_dim, bias=False)
        self.attn_v = nn.Linear(c.d_model, c.n_kv_heads * c.head_dim, bias=False)
        self.attn_q_norm = nn.RMSNorm(c.head_dim, c.norm_eps)
        self.attn_k_norm = nn.RMSNorm(c.head_dim, c.norm_eps)
        self.attn_output = nn.Linear(c.n_heads * c.head_dim, c.d_model, bias=False)
        self.ffn_norm = nn.RMSNorm(c.d_model, c.norm_eps)
        if c.n_experts:
            self.ffn_gate_inp = nn.Linear(c.d_model, c.n_experts, bias=False)
            self.ffn_gate_exps = Experts(c.n_experts, c.d_ff, c.d_model)
            self.ffn_up_exps = Experts(c.n_experts, c.d_ff, c.d_model)
            self.ffn_down_exps = Experts(c.n_experts, c.d_model, c.d_ff)
        else:
            self.ffn_gate = nn.Linear(c.d_model, c.d_ff, bias=False)
            self.ffn_up = nn.Linear(c.d_model, c.d_ff, bias=False)
            self.ffn_down = nn.Linear(c.d_ff, c.d_model, bias=False)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c, (n_batch, n_tokens, _) = self.c, x.shape
        h = self.attn_norm(x)
        q, k, v = (m(h).view(n_batch, n_tokens, -1, c.head_dim) for m in (self.attn_q, self.attn_k, self.attn_v))
        q, k, v = self.attn_q_norm(q).transpose(1, 2), self.attn_k_norm(k).transpose(1, 2), v.transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = c.n_heads // c.n_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attn_output(h.transpose(1, 2).reshape(n_batch, n_tokens, -1))

    def mixture(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h (tokens, d) -> (its mixture (tokens, d), the router's losses, the experts chosen (tokens, k))."""
        c = self.c
        logits = self.ffn_gate_inp(h)
        probabilities = logits.softmax(dim=-1)
        weights, chosen = probabilities.topk(c.n_used, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=c.n_experts)
        pieces = (h[order // c.n_used]).split(counts.tolist())
        outs = [
            F.silu(piece @ gate.T) * (piece @ up.T) @ down.T
            for piece, gate, up, down in zip(
                pieces, self.ffn_gate_exps.weight, self.ffn_up_exps.weight, self.ffn_down_exps.weight, strict=True
            )
        ]
        mixed = torch.cat(outs) * weights.flatten()[order, None]
        out = torch.zeros_like(h).index_add(0, order // c.n_used, mixed)
        share = counts.float() / counts.sum()
        balance = c.n_experts * (share * probabilities.mean(dim=0)).sum()
        return out, BALANCE * balance + Z * logits.logsumexp(dim=-1).square().mean(), chosen

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | float]:
        """x: (batch, tokens, d_model) f32 in and out, and the router's losses."""
        x = x + F.dropout(self.attention(x, cos, sin), self.dropout, self.training)
        h = self.ffn_norm(x)
        extra: Tensor | float = 0.0
        if self.c.n_experts:
            mixed, extra, _ = self.mixture(h.flatten(0, 1))
            h = mixed.view_as(x)
        else:
            h = self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return x + F.dropout(h, self.dropout, self.training), extra


class TalesModel(nn.Module):
    def __init__(self, config: TalesConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocab_size, config.d_model)
        self.blk = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layers))
        self.output_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                closing = name.endswith(("attn_output.weight", "ffn_down.weight", "ffn_down_exps.weight"))
                nn.init.normal_(p, std=0.03 / (2 * config.n_layers) ** 0.5 if closing else 0.03)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor | float]:
        """ids (batch, tokens) i64 -> logits (batch, tokens, vocab) f32 and router losses; the head is the embedding."""
        x = self.token_embd(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        extra: Tensor | float = 0.0
        for block in self.blk:
            x, more = block(x, cos, sin)
            extra = extra + more
        return F.linear(self.output_norm(x), self.token_embd.weight), extra


def next_token_loss(model: TalesModel, rows: Tensor) -> tuple[Tensor, Tensor | float]:
    """Of rows (batch, tokens + 1): mean cross-entropy (nats per token), and the router losses."""
    logits, extra = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()), extra
