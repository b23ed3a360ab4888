"""Runs in an interpreter that has llama-cpp-python: a model is loaded, then every line asks for a measurement.

python llamacpp_worker.py MODEL CONTEXT THREADS MAPPED; a line in is {"prompt", "decode", "depth", "batch", "limit_s"},
a line out what it took, in seconds: {"prompt_s", "steps_s"}. The first line out says {"load_s", "version"}. Imports
nothing of edgerun.
"""

import ctypes
import json
import sys
import time

import llama_cpp as L

_BATCH = 512


def main() -> None:
    """Load, then measure until nobody asks any more."""
    model_path, context, threads, mapped = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
    quiet = L.llama_log_callback(lambda level, text, data: None)
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    model_params = L.llama_model_default_params()
    model_params.use_extra_bufts = not mapped  # repacking copies the weights: not where memory is short
    began = time.perf_counter()
    model = L.llama_model_load_from_file(model_path.encode(), model_params)
    if not model:
        raise SystemExit("llama.cpp cannot load it")
    params = L.llama_context_default_params()
    params.n_ctx = max(256, context + 8)
    params.n_batch = params.n_ubatch = _BATCH
    params.n_threads = params.n_threads_batch = threads
    state = L.llama_init_from_model(model, params)
    vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    tell({"load_s": time.perf_counter() - began, "version": str(L.__version__)})

    def feed(ids: list[int]) -> None:
        array = (L.llama_token * len(ids))(*ids)  # must outlive the batch
        if L.llama_decode(state, L.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama_decode failed")
        L.llama_get_logits_ith(state, -1)[0]

    for line in sys.stdin:
        asked = json.loads(line)
        first = asked["depth"] + asked["prompt"]
        ids = [i % vocab for i in range(first + asked["decode"])]
        L.llama_memory_clear(L.llama_get_memory(state), False)
        for low in range(0, asked["depth"], _BATCH):
            feed(ids[low : min(low + _BATCH, asked["depth"])])
        batch = min(asked["batch"] or _BATCH, _BATCH)
        began = time.perf_counter()
        for low in range(asked["depth"], first, batch):
            feed(ids[low : min(low + batch, first)])
        prompt_s = time.perf_counter() - began
        steps = []
        for token in ids[first:]:
            before = time.perf_counter()
            feed([token])
            steps.append(time.perf_counter() - before)
            if time.perf_counter() - began > asked["limit_s"]:
                break
        tell({"prompt_s": prompt_s, "steps_s": steps})


def tell(value: dict[str, object]) -> None:
    """A line of JSON for who started this."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


main()
