"""Awaited calls; cancelling a task stops the work in its thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from engine.fakes import VOCAB, FakeDecoder, fake_engine

from edgerun.api import LLM, AsyncLLM
from edgerun.errors import ContextLengthError, UsageError

ASCII_ONLY = [*range(32), *range(127, VOCAB)]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, 30))


def make(decoder: FakeDecoder | None = None, **more: Any) -> AsyncLLM:
    return AsyncLLM.wrap(LLM.from_engine(fake_engine(decoder, **more)))


async def quiet(decoder: FakeDecoder) -> bool:
    """Whether the decoder stops within 0.3 s."""
    for _ in range(6):
        before = len(decoder.fed)
        await asyncio.sleep(0.05)
        if len(decoder.fed) == before:
            return True
    return False


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

        async def read(stream: AsyncIterator[Any]) -> None:
            async for _ in stream:
                pass

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
