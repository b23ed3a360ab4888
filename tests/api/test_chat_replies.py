"""From a file's chat template to replies taken apart, in this process, asynchronously, and on the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import make_tiny_model

from edgerun import LLM, AsyncLLM
from edgerun.errors import UsageError

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "thinks.gguf", template=THINKING)


def saying(llm: LLM, text: str) -> Any:
    """A processor that lets the model say nothing but `text`, and then end."""
    said = [*llm.tokenize(text, add_special=False), min(llm.engine.tokenizer.eog_ids)]
    begun: list[int] = []

    def processor(ids: Any, logits: Any) -> Any:
        begun.append(len(ids))
        logits[:] = -np.inf
        logits[said[len(ids) - begun[0]]] = 0
        return logits

    return [processor]


def test_a_model_that_thinks_and_calls(model: Path) -> None:
    reply = 'hm\n</think>\n\nLook.\n<tool_call>{"name": "f", "arguments": {"a": "x"}}</tool_call>'
    with LLM(model, context=512) as llm, llm.session() as session:
        done = session.chat("hi", tools=TOOLS, processors=saying(llm, reply))
        assert (done.reasoning, done.text) == ("hm", "Look.")
        assert [(call.name, json.loads(call.arguments)) for call in done.tool_calls] == [("f", {"a": "x"})]
        result = {"role": "tool", "tool_call_id": done.tool_calls[0].id, "content": "7"}
        again = session.chat([result], tools=TOOLS, processors=saying(llm, "easy</think>Seven."))
        assert (again.reasoning, again.text) == ("easy", "Seven.")
        silent = llm.chat("hi", template_variables={"enable_thinking": False}, processors=saying(llm, "Hi."))
        assert (silent.reasoning, silent.text) == ("", "Hi.")
        with pytest.raises(UsageError, match="replies"):
            LLM(model, replies="other")
    with LLM(model, context=512, replies="plain") as llm:
        assert llm.chat("hi", tools=TOOLS, processors=saying(llm, reply)).text == reply


def test_the_same_asynchronously(model: Path) -> None:
    async def chunks() -> list[Any]:
        async with AsyncLLM(model, context=512) as llm:
            processors = saying(llm.llm, "hm</think>Hi.")
            return [chunk async for chunk in llm.stream_chat("hi", processors=processors)]

    found = asyncio.run(chunks())
    assert "".join(chunk.reasoning for chunk in found) == "hm"
    assert "".join(chunk.text for chunk in found) == found[-1].completion.text == "Hi."
