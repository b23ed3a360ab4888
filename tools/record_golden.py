"""Record llama.cpp's logits for the tiny instances of tests/models: run in an environment with llama-cpp-python.

    python tools/record_golden.py [NAME ...]

Two environments may be needed (llama-cpp-python is an extra): `--make DIR` writes the model files with edgerun,
`--from DIR` reads them with llama.cpp alone. Each row is the logits after one more token; every fourth is kept.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "models" / "golden"


def make(directory: Path, names: list[str]) -> None:
    """Write the model files and the tokens to feed."""
    sys.path.insert(0, str(ROOT))
    from tests.models.instances import INSTANCES, tokens_of, write

    directory.mkdir(parents=True, exist_ok=True)
    for name in names or INSTANCES:
        write(INSTANCES[name], directory / f"{name}.gguf")
        (directory / f"{name}.json").write_text(json.dumps(tokens_of(INSTANCES[name])))


def logits_of(path: Path, ids: list[int], kv: int = 0) -> np.ndarray:
    """(tokens, vocab) f32 from llama.cpp, one token at a time. kv: the type of keys and values, F32 or 1 for F16."""
    import llama_cpp as L

    quiet = L.llama_log_callback(lambda level, text, data: None)
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    params = L.llama_model_default_params()
    params.use_extra_bufts = False  # other kernels, for weights packed anew: AMX units round activations otherwise
    model = L.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    context_params = L.llama_context_default_params()
    context_params.n_ctx = 128
    context_params.n_threads = context_params.n_threads_batch = 1
    # llama.cpp's most exact attention: its default rounds queries and accumulates values in f16
    context_params.type_k = context_params.type_v = kv
    context_params.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = L.llama_init_from_model(model, context_params)
    vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    rows = []
    for token in ids:
        array = (L.llama_token * 1)(token)  # must outlive the batch
        if L.llama_decode(context, L.llama_batch_get_one(array, 1)):
            raise SystemExit(f"{path}: llama_decode failed")
        rows.append(np.ctypeslib.as_array(L.llama_get_logits_ith(context, -1), shape=(vocab,)).copy())
    L.llama_free(context)
    L.llama_model_free(model)
    return np.stack(rows)


def record(directory: Path) -> None:
    """Write one .npy of every model in `directory`."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for path in sorted(directory.glob("*.gguf")):
        ids = json.loads(path.with_suffix(".json").read_text())
        np.save(GOLDEN / f"{path.stem}.npy", logits_of(path, ids)[3::4].astype(np.float32))
        print(f"recorded {path.stem}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--make", type=Path)
    parser.add_argument("--from", dest="source", type=Path)
    a = parser.parse_args()
    if a.make:
        make(a.make, a.names)
    elif a.source:
        record(a.source)
    else:
        parser.error("say --make DIR, then --from DIR")
