"""Several sequences of one model that decode together: tokens a second of all, beside one alone and beside llama.cpp.

python benchmarks/together.py MODEL.gguf [--sequences 1 2 4 8] [-n 64] [-p 16] [-r 3]
    [--memory 2G [--capped] [--places 8]] [--traced] [--llamacpp-python VENV/bin/python]

A token of every sequence in one `Decoder.step`, or in one `llama_decode`; then the likeliest token of each goes in. The
engines take turns; medians.

--memory: edgerun streams what does not fit. --capped: in a control group of this size, too (root). --places 8: loaded
for eight sequences, however many there are, so that pages for their keys and values leave as many experts in memory.
--traced, for files of `random_model.py --routing`: tokens whose experts the trace knows go in, the sequences as far
from each other in it as can be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

from side_by_side import last_object
from streaming import report_of

from edgerun import LLM
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.models.batch import Batch, Stretch
from edgerun.units import parse_size_bytes

TRACED = 200  # tokens of `random_model.py --routing` files to go round in: as many as the recorded OLMoE's steps
LLAMA_CPP = """
import ctypes, json, sys, time
import numpy as np
import llama_cpp as L
model_path, sequences, prompt, decode, threads, repack = sys.argv[1], *map(int, sys.argv[2:7])
quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, ctypes.c_void_p(0))
model_params = L.llama_model_default_params()
model_params.use_extra_bufts = bool(repack)
model = L.llama_model_load_from_file(model_path.encode(), model_params)
params = L.llama_context_default_params()
params.n_ctx = sequences * (256 + prompt + decode)
params.n_batch = params.n_ubatch = 512
params.n_seq_max = sequences
params.n_threads = params.n_threads_batch = threads
context = L.llama_init_from_model(model, params)
if not context:
    raise SystemExit("llama.cpp cannot load it")
n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
batch = L.llama_batch_init(512, 0, 1)
def feed(rows):
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
        batch.seq_id[i][0] = sequence
    if L.llama_decode(context, batch):
        raise SystemExit("llama_decode failed")
def likeliest(i):
    return int(np.ctypeslib.as_array(L.llama_get_logits_ith(context, i), (n_vocab,)).argmax())
tokens = []
for sequence in range(sequences):
    ids = [(1 + 7 * sequence + i) % n_vocab for i in range(prompt)]
    feed([(token, i, sequence, i == prompt - 1) for i, token in enumerate(ids)])
    tokens.append(likeliest(prompt - 1))
start = time.perf_counter()
for step in range(decode):
    feed([(token, prompt + step, sequence, True) for sequence, token in enumerate(tokens)])
    tokens = [likeliest(i) for i in range(sequences)]
print(json.dumps({"tok_s": sequences * decode / (time.perf_counter() - start)}))
"""


def ours(
    model: str, sequences: int, prompt: int, decode: int, threads: int, memory: str, traced: bool, places: int
) -> dict[str, float]:
    """Tokens a second of all sequences, a token of each in one step of the decoder, the likeliest (traced: the trace's
    next) fed again; and what was read for each."""

    def known(sequence: int, position: int) -> int:
        return (sequence * TRACED // sequences + position) % TRACED

    pages = max(sequences, places) * -(-(prompt + decode + 8) // KEYS_PER_PAGE)  # whole ones of each sequence
    with LLM(model, threads=threads, context=pages * KEYS_PER_PAGE, memory=memory) as llm:
        decoder, counted = llm._engine.decoder, llm._engine.decoder.store.statistics
        caches = [decoder.new_cache(prompt + decode + 8) for _ in range(sequences)]
        tokens = []
        for index, cache in enumerate(caches):
            ids = [known(index, i) if traced else 1 + 7 * index + i for i in range(prompt)]
            (logits,) = decoder.step(Batch([Stretch(cache, ids)]))
            tokens.append(int(logits.argmax()))
        for step in range(-3, decode):
            if step == 0:  # before, launches were recorded
                before, begin = counted(), time.perf_counter()
            if traced:
                tokens = [known(index, prompt + step) for index in range(sequences)]
            found = decoder.step(Batch([Stretch(*each) for each in zip(caches, ([t] for t in tokens), strict=True)]))
            tokens = [int(logits.argmax()) for logits in found]
        took_s, count = time.perf_counter() - begin, sequences * decode
        read_bytes = counted().get("read_n_bytes", 0) - before.get("read_n_bytes", 0)
        return {"tok_s": count / took_s, "mb_a_token": read_bytes / count / 1e6}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("-p", "--prompt", type=int, default=16)
    parser.add_argument("-n", "--decode", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--memory", default="auto", help="that edgerun may take")
    parser.add_argument("--capped", action="store_true", help="in a control group of --memory")
    parser.add_argument("--places", type=int, default=0, help="sequences that the model is loaded for, at least")
    parser.add_argument("--traced", action="store_true", help="feed the tokens of a file with --routing")
    parser.add_argument("--llamacpp-python", help="interpreter with llama-cpp-python")
    parser.add_argument("--no-repack", action="store_true", help="llama.cpp's weights as they lie in the file")
    parser.add_argument("--once", action="store_true", help="measure edgerun once, print JSON (for this script itself)")
    a = parser.parse_args()
    if a.once:
        sizes = (a.prompt, a.decode, a.threads)
        print(json.dumps(ours(a.model, a.sequences[0], *sizes, a.memory, a.traced, a.places)))
        return
    if a.capped and a.memory == "auto":
        parser.error("--capped needs --memory")
    words = [str(each) for each in (a.prompt, a.decode, a.threads)]
    alone = 0.0
    for count in a.sequences:
        mine = [sys.executable, __file__, a.model, "--once", "--sequences", str(count)]
        commands = {"edgerun": [*mine, *("-p", words[0], "-n", words[1], "-t", words[2]), "--memory", a.memory]}
        commands["edgerun"] += ["--places", str(a.places), *["--traced"] * a.traced]
        if a.llamacpp_python:
            repack = str(int(not a.no_repack))
            commands["llama.cpp"] = [a.llamacpp_python, "-c", LLAMA_CPP, a.model, str(count), *words, repack]
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(a.repetitions):
            for name, command in commands.items():
                capped = a.capped and name == "edgerun"
                runs[name].append(report_of(command, parse_size_bytes(a.memory)) if capped else last_object(command))
        rate = {name: statistics.median(each["tok_s"] for each in found) for name, found in runs.items()}
        alone = alone or rate["edgerun"]
        line = f"{count:2d} sequences  edgerun {rate['edgerun']:7.1f} tok/s, {rate['edgerun'] / alone:.2f} of the first"
        if a.memory != "auto":
            line += f", {statistics.median(each['mb_a_token'] for each in runs['edgerun']):.0f} MB read a token"
        if "llama.cpp" in rate:
            line += f"; llama.cpp {rate['llama.cpp']:7.1f}, ratio {rate['edgerun'] / rate['llama.cpp']:.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
