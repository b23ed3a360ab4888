"""The engines that `edgerun bench` measures in one session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgerun.api import LLM
    from edgerun.profiling.energy import EnergyMeter
    from edgerun.profiling.peers.client import Stream
    from edgerun.profiling.session import BenchEngine

ENGINES = ("edgerun", "llamacpp", "endpoint", "ollama")


@dataclass(frozen=True)
class Peers:
    """Which engines, and where they are. names: some of ENGINES, the first being compared with the others."""

    names: tuple[str, ...]
    endpoint: str | None = None
    peer_model: str = ""
    llamacpp_python: str | None = None

    @property
    def by_text(self) -> bool:
        """Whether some are servers, which are given texts: then all are."""
        return bool({"endpoint", "ollama"} & set(self.names))


def chosen_peers(engine: str, endpoint: str | None, peer_model: str | None, llamacpp_python: str | None) -> Peers:
    """Of the command's options. UsageError."""
    from edgerun.errors import UsageError

    names = [name.strip() for name in engine.split(",")]
    if endpoint is not None and "endpoint" not in names:
        names.append("endpoint")
    unknown = [name for name in names if name not in ENGINES]
    if unknown or len(set(names)) != len(names):
        raise UsageError(f"--engine must be some of {', '.join(ENGINES)}, each once, got {engine!r}")
    if "endpoint" in names and endpoint is None:
        raise UsageError("--engine endpoint needs --endpoint URL")
    peers = Peers(tuple(names), endpoint, peer_model or "", llamacpp_python)
    if peers.by_text and "llamacpp" in names:
        raise UsageError(
            "servers are measured with texts and llamacpp with token ids: compare them one after the other"
        )
    return peers


def open_engines(
    peers: Peers,
    path: Path,
    llm: LLM | None,
    *,
    context: int,
    threads: int,
    limit_s: float,
    meter: EnergyMeter | None,
    stack: ExitStack,
) -> Sequence[BenchEngine]:
    """In the order of their names; the stack closes those that were opened here. llm: where edgerun is one of them."""
    from edgerun.profiling.peers import EndpointEngine, LlamaCppEngine, OllamaEngine, TextEngine
    from edgerun.profiling.session import DecoderEngine

    engines: list[BenchEngine] = []
    for name in peers.names:
        engine: BenchEngine
        if name == "edgerun":
            assert llm is not None  # it is loaded where edgerun is measured
            decoder = llm.engine.decoder
            if peers.by_text:
                engine = TextEngine("edgerun", decoder.kernels.name, _answers(llm))
            else:
                engine = DecoderEngine(decoder, llm.vocab_size, limit_s=limit_s, meter=meter)
        elif name == "llamacpp":
            short = llm is not None and llm.engine.plan is not None and llm.engine.plan.mode != "resident"
            python = {} if peers.llamacpp_python is None else {"python": peers.llamacpp_python}
            engine = LlamaCppEngine(path, context=context, threads=threads, mapped=short, limit_s=limit_s, **python)
        elif name == "endpoint":
            engine = EndpointEngine(peers.endpoint or "", peers.peer_model, limit_s=limit_s)
        else:
            engine = OllamaEngine(peers.peer_model, limit_s=limit_s)
        stack.callback(engine.close)
        engines.append(engine)
    return engines


def _answers(llm: LLM) -> Stream:
    def stream(text: str, most: int) -> Iterator[int]:
        for chunk in llm.stream(text, max_tokens=most, temperature=0):
            if chunk.text:
                yield 1

    return stream
