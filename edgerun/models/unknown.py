"""What is said of a file whose architecture is none of the families'."""

from __future__ import annotations

import re

from edgerun.errors import UnsupportedError
from edgerun.formats.gguf import GgufFile
from edgerun.models.families import FAMILIES

_PART = re.compile(r"blk\.[0-9]+\.([a-z0-9_.]+?)(\.weight|\.bias|\.scale)?")
_PLAIN = {  # what the layers of a llama, a Mixtral or a Qwen have
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn_q_norm", "attn_k_norm", "ffn_norm"),
    *("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
}
_MOST_PARTS = 12


def unknown_architecture(gguf: GgufFile) -> UnsupportedError:
    """Says what the file is, what its layers have beyond a plain model's, and what edgerun runs."""
    architecture = gguf.architecture
    if architecture == "clip":
        return UnsupportedError(
            f"{gguf.path} is a projector (mmproj): the part of a model that sees images or hears. Open the file of the "
            "model itself, of which edgerun runs the text"
        )
    name = gguf.metadata.get("general.name")
    called = f" ({name[:80]!r})" if isinstance(name, str) else ""
    found = (_PART.fullmatch(each) for each in gguf.tensors)
    parts = sorted({match[1] for match in found if match is not None} - _PLAIN)
    more = f" Its layers have what a llama's have not: {', '.join(parts[:_MOST_PARTS])}" if parts else ""
    more += ", ..." if len(parts) > _MOST_PARTS else "." if parts else ""
    return UnsupportedError(
        f"the architecture {architecture!r}{called} is not supported.{more} edgerun runs {', '.join(sorted(FAMILIES))}"
    )
