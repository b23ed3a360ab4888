"""The same model for asyncio: work happens in threads, cancelling a task stops its generation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from edgerun.api.llm import LLM
from edgerun.api.loading import model_path
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
from edgerun.options import Flag, LoadKeywords, load_options, refused

T = TypeVar("T")

_MOST_CALLS = 32  # at a time; more wait for their turn
_MOST_UNREAD = 16  # chunks of a stream that wait for whoever iterates
_POLL_S = 0.05


class AsyncLLM:
    """An `LLM` whose calls are awaited; arguments and results are the same.

        async with AsyncLLM("model.gguf") as llm:
            async for chunk in llm.stream("Once upon a time"):
                print(chunk.text, end="")

    The model is loaded on entering the `async with` block (or by `await llm.load()`). When the task that
    awaits or iterates is cancelled, or the iterator is closed, the generation stops within a step. One that is not
    iterated pauses.
    """

    def __init__(self, model: str | Path, **options: Unpack[LoadKeywords]) -> None:
        model_path(model)  # what cannot be is refused here already
        load_options(options)
        self._setup(partial(LLM, model, **options))

    def _setup(self, make: Callable[[], LLM], llm: LLM | None = None) -> None:
        self._make = make
        self._llm = llm
        self._workers = ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="edgerun-call")
        self._lock = threading.Lock()  # of the two below; nobody waits for anything while holding it
        self._loading: Future[LLM] | None = None
        self._closed = False

    @classmethod
    def wrap(cls, llm: LLM) -> AsyncLLM:
        """Asynchronous calls on an LLM that is loaded; `close` closes it."""
        if not isinstance(llm, LLM):
            raise refused("llm", "an LLM", llm)
        wrapped = cls.__new__(cls)
        wrapped._setup(lambda: llm, llm)
        return wrapped

    @property
    def llm(self) -> LLM:
        """The model, for its ordinary properties. UsageError before `load`."""
        if self._llm is None:
            raise UsageError("the model is not loaded: use `async with AsyncLLM(...)` or `await llm.load()`")
        return self._llm

    async def load(self) -> None:
        """Load the model, once: calls that come meanwhile, from whatever event loop, wait for the same loading.
        After one that failed the next call tries again. UsageError after `close`."""
        if self._llm is not None:
            self._check_open()
            return
        with self._lock:
            self._check_open()
            loading = self._loading
            if loading is None or _failed(loading):
                loading = self._loading = self._workers.submit(self._make)
        # Shielded: a waiter that is cancelled must not take the others' model away.
        self._llm = await asyncio.shield(asyncio.wrap_future(loading))

    async def close(self) -> None:
        """Wait for running calls and a loading, then free the model; later calls are UsageErrors."""
        with self._lock:
            self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._workers.shutdown)
        loading = self._loading
        if self._llm is None and loading is not None and not _failed(loading):
            self._llm = loading.result()  # whoever asked for it was cancelled
        if self._llm is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._llm.close)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this AsyncLLM is closed")

    def _submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Run it on a thread; cancelling the answer does not stop it. UsageError after `close`."""
        with self._lock:
            self._check_open()
            return asyncio.wrap_future(self._workers.submit(call))

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
        stream = Flag().check("stream", stream)
        call = partial(self.llm.create_completion, prompt, stream=stream, **arguments)
        return self._iterate(call) if stream else await self._call(call)

    async def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **arguments: Any
    ) -> Any:
        """See `LLM.create_chat_completion`; with `stream`, awaiting it gives an asynchronous iterator."""
        stream = Flag().check("stream", stream)
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
        try:
            return await self._submit(partial(call, cancel=cancel))
        finally:
            cancel.cancel()  # of no effect when the work is done

    async def _iterate(self, call: Callable[..., Iterable[T] | Any]) -> AsyncIterator[T]:
        loop = asyncio.get_running_loop()
        cancel = CancelToken()
        queue: asyncio.Queue[T | None] = asyncio.Queue()
        room = threading.Semaphore(_MOST_UNREAD)

        def wait_for_room() -> None:
            """Wait until the queue is read, unless nobody will."""
            while not room.acquire(timeout=_POLL_S) and not (cancel.is_set() or self._closed):
                pass

        def work() -> None:
            try:
                items: Iterator[T] = iter(call(cancel=cancel))
                for item in items:
                    loop.call_soon_threadsafe(queue.put_nowait, item)
                    wait_for_room()
            finally:
                loop.call_soon_threadsafe(queue.put_nowait, None)

        running = self._submit(work)
        try:
            while (item := await queue.get()) is not None:
                room.release()
                yield item
            await running
        finally:
            cancel.cancel()


def _failed(loading: Future[LLM]) -> bool:
    return loading.done() and (loading.cancelled() or loading.exception() is not None)
