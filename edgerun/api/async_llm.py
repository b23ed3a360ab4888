"""The same model for asyncio: work happens in threads, cancelling a task stops its generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from edgerun.api.llm import LLM
from edgerun.engine import (
    CancelToken,
    Chunk,
    Completion,
    Messages,
    Prompt,
    SamplingOptions,
    SamplingParams,
    Score,
)
from edgerun.errors import UsageError
from edgerun.events import EventSink, ignore

T = TypeVar("T")

_MOST_CALLS = 32  # at a time; more wait for their turn


class AsyncLLM:
    """An `LLM` whose calls are awaited; arguments and results are the same.

        async with AsyncLLM("model.gguf") as llm:
            async for chunk in llm.stream("Once upon a time"):
                print(chunk.text, end="")

    The model is loaded on entering the `async with` block (or by `await llm.load()`). When the task that
    awaits or iterates is cancelled, or the iterator is closed, the generation stops within a layer.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        context: int | None = None,
        threads: int | Literal["auto"] = "auto",
        memory: int | str = "auto",
        prefetch: bool = True,
        kernels: str = "auto",
        prefill: str = "auto",
        tpot_s: float | None = None,
        seed: int | None = None,
        events: EventSink = ignore,
    ) -> None:
        self._make: Callable[[], LLM] = partial(
            LLM,
            model,
            context=context,
            threads=threads,
            memory=memory,
            prefetch=prefetch,
            kernels=kernels,
            prefill=prefill,
            tpot_s=tpot_s,
            seed=seed,
            events=events,
        )
        self._llm: LLM | None = None
        self._workers = ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="edgerun-call")

    @classmethod
    def wrap(cls, llm: LLM) -> AsyncLLM:
        """Asynchronous calls on an LLM that is loaded; `close` closes it."""
        wrapped = cls(llm.name)
        wrapped._llm = llm
        return wrapped

    @property
    def llm(self) -> LLM:
        """The model, for its ordinary properties. UsageError before `load`."""
        if self._llm is None:
            raise UsageError("the model is not loaded: use `async with AsyncLLM(...)` or `await llm.load()`")
        return self._llm

    async def load(self) -> None:
        """Load the model, once."""
        if self._llm is None:
            self._llm = await asyncio.get_running_loop().run_in_executor(self._workers, self._make)

    async def close(self) -> None:
        """Wait for running calls, then free the model."""
        await asyncio.get_running_loop().run_in_executor(None, self._workers.shutdown)
        if self._llm is not None:
            self._llm.close()

    async def __aenter__(self) -> Self:
        await self.load()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Completion:
        """See `LLM.complete`."""
        return await self._call(partial(self.llm.complete, prompt, params, **options))

    async def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """See `LLM.chat`."""
        chat = partial(self.llm.chat, messages, params, tools=tools, template_variables=template_variables)
        return await self._call(partial(chat, **options))

    def stream(
        self,
        prompt: Prompt | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncIterator[Chunk]:
        """See `LLM.stream`."""
        return self._iterate(partial(self.llm.stream, prompt, params, **options))

    def stream_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncIterator[Chunk]:
        """See `LLM.stream_chat`."""
        chat = partial(self.llm.stream_chat, messages, params)
        return self._iterate(partial(chat, tools=tools, template_variables=template_variables, **options))

    async def create_completion(self, prompt: str | Sequence[int], *, stream: bool = False, **arguments: Any) -> Any:
        """See `LLM.create_completion`; with `stream`, awaiting it gives an asynchronous iterator."""
        call = partial(self.llm.create_completion, prompt, stream=stream, **arguments)
        return self._iterate(call) if stream else await self._call(call)

    async def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **arguments: Any
    ) -> Any:
        """See `LLM.create_chat_completion`; with `stream`, awaiting it gives an asynchronous iterator."""
        call = partial(self.llm.create_chat_completion, messages, stream=stream, **arguments)
        return self._iterate(call) if stream else await self._call(call)

    async def embed(self, texts: str | Iterable[str]) -> NDArray[np.float32]:
        """See `LLM.embed`."""
        return await self._call(partial(self.llm.embed, texts))

    async def score(self, text: Prompt) -> Score:
        """See `LLM.score`."""
        return await self._call(partial(self.llm.score, text))

    async def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See `LLM.logits`."""
        return await self._call(partial(self.llm.logits, ids))

    async def _call(self, call: Callable[..., T]) -> T:
        cancel = CancelToken()
        work = asyncio.get_running_loop().run_in_executor(self._workers, partial(call, cancel=cancel))
        try:
            return await work
        finally:
            cancel.cancel()  # of no effect when the work is done

    async def _iterate(self, call: Callable[..., Iterable[T] | Any]) -> AsyncIterator[T]:
        loop = asyncio.get_running_loop()
        cancel = CancelToken()
        queue: asyncio.Queue[T | None] = asyncio.Queue()

        def work() -> None:
            try:
                items: Iterator[T] = iter(call(cancel=cancel))
                for item in items:
                    loop.call_soon_threadsafe(queue.put_nowait, item)
            finally:
                loop.call_soon_threadsafe(queue.put_nowait, None)

        running = loop.run_in_executor(self._workers, work)
        try:
            while (item := await queue.get()) is not None:
                yield item
            await running
        finally:
            cancel.cancel()
