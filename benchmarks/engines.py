"""edgerun and llama.cpp behind the same questions, each in a process of its own, answering one at a time.

    engine = Engine("llama.cpp", "model.gguf", python="VENV/bin/python")
    engine.score(ids, 256)

runs this file in that interpreter, which needs numpy and, for llama.cpp, llama-cpp-python. Questions and answers are
lines of JSON.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
LIKELIEST = 10
AT_ONCE = 32  # rows of logits: a vocabulary can be wide


@dataclass(frozen=True)
class Scores:
    """Of some tokens that were predicted. nats: -log p, summed. divergence: from what another has saved, its sum over
    p log (p / q), in nats, 0 without it. likeliest: the ids that were thought the likeliest, one a token."""

    nats: float
    divergence: float
    likeliest: list[int]


class Engine:
    """A model in another process. Ends with this one."""

    def __init__(
        self, name: str, model: Path, *, python: str = sys.executable, kernels: str = "auto", threads: int = 2
    ) -> None:
        self._said = f"{name} with {model}"
        command = [python, __file__, name, str(model), kernels, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def score(self, ids: list[int], first: int, *, save: Path | None = None, against: Path | None = None) -> Scores:
        """Of each token after `first`: those up to there are only read."""
        return Scores(*self._ask("score", ids, first, save and str(save), against and str(against)))

    def greedy(self, ids: list[int], count: int) -> list[dict[int, float]]:
        """The logits of the likeliest tokens, falling, at each of `count` steps after `ids`. The likeliest is fed."""
        return [dict(step) for step in self._ask("greedy", ids, count)]

    def _ask(self, what: str, *given: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps([what, *given]) + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise SystemExit(f"{self._said} ended ({self._process.wait()}): see above")
        return json.loads(answer)


class Model(Protocol):
    """What an engine does here."""

    def feed(self, ids: list[int], wanted: int, *, anew: bool) -> Iterator[F32]:
        """Append `ids`, to nothing if `anew`: the logits (vocab,) after each of the last `wanted`, until the next."""


class EdgerunModel:
    """On the kernels, prompts too."""

    def __init__(self, path: str, kernels: str, threads: int) -> None:
        from edgerun.formats.gguf import open_gguf
        from edgerun.kernels import load_kernels
        from edgerun.models import Decoder, load_spec
        from edgerun.weights import ResidentStore

        loaded = load_kernels(kernels, threads=threads)
        gguf = open_gguf(path)
        spec = load_spec(gguf)
        self._decoder = Decoder(spec, ResidentStore(gguf, spec, loaded), loaded)

    def feed(self, ids: list[int], wanted: int, *, anew: bool) -> Iterator[F32]:
        if anew:
            self._cache = self._decoder.new_cache(1024)
        if len(ids) > wanted:  # the head is not computed where nobody asks
            self._decoder.forward(ids[:-wanted], self._cache, logits="none")
        for low in range(len(ids) - wanted, len(ids), AT_ONCE):
            logits = self._decoder.forward(ids[low : low + AT_ONCE], self._cache, logits="all")
            assert logits is not None
            yield from logits


class LlamaCppModel:
    """As llama.cpp's tools load a model: repacked weights, f16 keys and values, flash attention if it likes."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self._c: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._length = 0

    def feed(self, ids: list[int], wanted: int, *, anew: bool) -> Iterator[F32]:
        c = self._c
        if anew:
            c.llama_memory_clear(c.llama_get_memory(self._context), True)
            self._length = 0
        batch = c.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self._length + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= len(ids) - wanted
        failed = c.llama_decode(self._context, batch)
        c.llama_batch_free(batch)
        if failed:
            raise SystemExit(f"llama_decode: {failed}")
        self._length += len(ids)
        yield from np.ctypeslib.as_array(c.llama_get_logits(self._context), shape=(wanted, self._vocab))


def score(model: Model, ids: list[int], first: int, save: str | None, against: str | None) -> Scores:
    """See `Engine.score`."""
    rows = model.feed(ids[:-1], len(ids) - 1 - first, anew=True)
    nats = divergence = 0.0
    likeliest: list[int] = []
    for i, (row, token) in enumerate(zip(rows, ids[first + 1 :], strict=True)):
        q = log_probabilities(row)
        nats -= float(q[token])
        likeliest.append(int(q.argmax()))
        if save:
            shared(save, len(ids), len(q))[i] = q
        if against:
            p = shared(against, len(ids), len(q))[i]
            divergence += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
    return Scores(nats, divergence, likeliest)


@cache
def shared(path: str, rows: int, cols: int) -> F32:
    """Memory (rows, cols) f32 of this and other processes: the file is theirs too."""
    mode: Literal["r+", "w+"] = "r+" if Path(path).exists() else "w+"
    return np.memmap(path, np.float32, mode, shape=(rows, cols))


def log_probabilities(row: F32) -> F32:
    """Of logits (vocab,)."""
    down = row - row.max()
    normalised: F32 = down - np.float32(np.log(np.exp(down).sum(dtype=np.float64)))
    return normalised


def greedy(model: Model, ids: list[int], count: int) -> list[list[tuple[int, float]]]:
    """See `Engine.greedy`."""
    steps: list[list[tuple[int, float]]] = []
    (row,) = model.feed(ids, 1, anew=True)
    for step in range(count):
        if step:
            (row,) = model.feed([steps[-1][0][0]], 1, anew=False)
        some = np.argpartition(-row, LIKELIEST)[:LIKELIEST]
        steps.append([(int(i), float(row[i])) for i in some[np.argsort(-row[some], kind="stable")]])
    return steps


def main() -> None:
    """Answer until nobody asks any more."""
    name, path, kernels, threads = sys.argv[1:]
    model: Model = EdgerunModel(path, kernels, int(threads)) if name == "edgerun" else LlamaCppModel(path, int(threads))
    for line in sys.stdin:
        what, *given = json.loads(line)
        print(json.dumps(astuple(score(model, *given)) if what == "score" else greedy(model, *given)), flush=True)


if __name__ == "__main__":
    main()
