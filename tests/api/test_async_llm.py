"""Awaited calls; cancelling a task stops the work in its thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from engine.fakes import VOCAB, FakeDecoder, fake_engine

from edgerun.api import LLM, AsyncLLM, async_llm
from edgerun.errors import ContextLengthError, NotFoundError, UsageError

ASCII_ONLY = [*range(32), *range(127, VOCAB)]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, 30))


def make(decoder: FakeDecoder | None = None, **more: Any) -> AsyncLLM:
    return AsyncLLM.wrap(LLM.from_engine(fake_engine(decoder, **more)))


async def read(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def quiet(decoder: FakeDecoder) -> bool:
    """Whether the decoder stops within 0.3 s."""
    for _ in range(6):
        before = len(decoder.fed)
        await asyncio.sleep(0.05)
        if len(decoder.fed) == before:
            return True
    return False


@dataclass
class SlowModels:
    """Models that take 0.2 s to load."""

    loaded: int = 0
    released: int = 0

    def load(self, model: str, **options: Any) -> LLM:
        time.sleep(0.2)
        self.loaded += 1
        return LLM.from_engine(fake_engine(), release=self.release)

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def slow_models(monkeypatch: pytest.MonkeyPatch) -> SlowModels:
    """What an `AsyncLLM` loads."""
    models = SlowModels()
    monkeypatch.setattr(async_llm, "LLM", models.load)
    return models


def test_calls_give_what_the_llm_gives() -> None:
    sync = LLM.from_engine(fake_engine())

    async def main() -> None:
        async with make() as llm:
            done = await llm.complete("Once", max_tokens=5, temperature=0)
            assert done.text == sync.complete("Once", max_tokens=5, temperature=0).text
            chunks = [chunk async for chunk in llm.stream("Once", max_tokens=5, temperature=0)]
            assert "".join(chunk.text for chunk in chunks) == done.text
            assert chunks[-1].completion is not None
            chat = await llm.chat("Hi", max_tokens=5, temperature=0)
            assert chat.text == sync.chat("Hi", max_tokens=5, temperature=0).text
            said = [chunk.text async for chunk in llm.stream_chat("Hi", max_tokens=5, temperature=0)]
            assert "".join(said) == chat.text
            assert (await llm.embed(["a"])).shape == (1, 8)
            assert len((await llm.score("abc")).logprobs) == 3
            assert (await llm.logits([1])).shape == (1, VOCAB)

    run(main())


def test_calls_run_side_by_side() -> None:
    async def main() -> None:
        async with make(FakeDecoder(layer_s=0.0005)) as llm:
            texts = [llm.complete(f"p{i}", max_tokens=5, temperature=0, ignore_eos=True) for i in range(6)]
            together = await asyncio.gather(*texts)
            for i, done in enumerate(together):
                assert done.text == (await llm.complete(f"p{i}", max_tokens=5, temperature=0, ignore_eos=True)).text

    run(main())


def test_errors_come_through() -> None:
    async def main() -> None:
        async with make(context=10) as llm:
            with pytest.raises(ContextLengthError):
                await llm.complete("x" * 20)
            with pytest.raises(ContextLengthError):
                async for _ in llm.stream("x" * 20):
                    pass

    run(main())


def test_cancelling_the_task_stops_a_prompt() -> None:
    async def main() -> None:
        decoder = FakeDecoder(layer_s=0.01)
        async with make(decoder, context=8000) as llm:
            task = asyncio.create_task(llm.complete("x" * 7000))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await quiet(decoder)
            assert sum(decoder.fed) < 7000

    run(main())


def test_leaving_a_stream_stops_it() -> None:
    async def main() -> None:
        decoder = FakeDecoder(layer_s=0.002, forbid=ASCII_ONLY)
        async with make(decoder, context=5000) as llm:
            stream = llm.stream("Once")
            async for _ in stream:
                break
            await stream.aclose()  # type: ignore[attr-defined]
            assert await quiet(decoder)

    run(main())


def test_cancelling_the_reading_task_stops_the_stream() -> None:
    async def main() -> None:
        decoder = FakeDecoder(layer_s=0.002, forbid=ASCII_ONLY)

        async with make(decoder, context=5000) as llm:
            task = asyncio.create_task(read(llm.stream("Once")))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await quiet(decoder)

    run(main())


def test_openai_calls() -> None:
    async def main() -> None:
        async with make() as llm:
            answer = await llm.create_completion("Once", max_tokens=4, temperature=0)
            pieces = await llm.create_completion("Once", max_tokens=4, temperature=0, stream=True)
            text = "".join([piece["choices"][0]["text"] async for piece in pieces])
            assert text == answer["choices"][0]["text"]
            chat = await llm.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=4)
            assert chat["object"] == "chat.completion"

    run(main())


def test_not_loaded() -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="not loaded"):
            await AsyncLLM("x.gguf").complete("x")

    run(main())


def test_after_close_every_call_is_refused() -> None:
    async def main() -> None:
        llm = make()
        await llm.load()
        await llm.close()
        await llm.close()
        awaited = (
            llm.complete("x"),
            llm.chat("x"),
            llm.create_completion("x"),
            llm.create_chat_completion([{"role": "user", "content": "x"}]),
            llm.embed("x"),
            llm.score("x"),
            llm.logits([1]),
            llm.load(),
            read(llm.stream("x")),
            read(llm.stream_chat("x")),
        )
        for call in awaited:
            with pytest.raises(UsageError, match="closed"):
                await call

    run(main())


def test_loads_at_the_same_time_load_once(slow_models: SlowModels) -> None:
    async def main() -> None:
        llm = AsyncLLM("x.gguf")
        first = asyncio.create_task(llm.load())
        await asyncio.sleep(0.05)
        first.cancel()  # takes nobody else's model away
        await asyncio.gather(*(llm.load() for _ in range(20)))
        await llm.load()
        assert slow_models.loaded == 1
        assert (await llm.complete("Once", max_tokens=2)).usage.completion_tokens == 2
        await llm.close()

    run(main())
    assert slow_models.loaded == 1


def test_a_load_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def failing(model: str, **options: Any) -> LLM:
        tries.append(model)
        if len(tries) == 1:
            raise NotFoundError("not yet")
        return LLM.from_engine(fake_engine())

    monkeypatch.setattr(async_llm, "LLM", failing)

    async def main() -> None:
        llm = AsyncLLM("x.gguf")
        with pytest.raises(NotFoundError):
            await llm.load()
        await llm.load()
        await llm.close()

    run(main())
    assert len(tries) == 2


def test_closing_while_it_loads_frees_what_was_loaded(slow_models: SlowModels) -> None:
    async def main() -> None:
        llm = AsyncLLM("x.gguf")
        loading = asyncio.create_task(llm.load())
        await asyncio.sleep(0.05)
        loading.cancel()
        await llm.close()
        assert (slow_models.loaded, slow_models.released) == (1, 1)
        with pytest.raises(UsageError, match="closed"):
            await llm.load()

    run(main())


def test_two_event_loops_share_one_loading(slow_models: SlowModels) -> None:
    llm = AsyncLLM("x.gguf")
    threads = [threading.Thread(target=lambda: asyncio.run(llm.load())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slow_models.loaded == 1
    run(llm.close())
