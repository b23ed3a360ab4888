"""Chats with functions in OpenAI's shape, from each family's tokens and template to its replies and back into its
template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine.fakes import FakeDecoder, fake_engine

from edgerun import LLM
from edgerun.text import ChatTemplate, load_tokenizer
from edgerun.text.replies import find_reply_format
from edgerun.text.template_process import TemplateProcess
from tests.api.families import FAMILIES, GIVEN, TOOLS, Family
from tests.text.test_llama_templates import FOLDERS
from tests.text.vocabularies import CONTROL, bpe

ASK = [{"role": "user", "content": "Weather in Ulm?"}]
REAL = next((folder for folder in FOLDERS if folder.is_dir()), Path("nowhere"))


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess()
    yield process
    process.close()


def model(family: Family, template: str, process: TemplateProcess) -> LLM:
    """One that has this family's control tokens and template, and says what it is made to say."""
    metadata = bpe(added=dict.fromkeys((*family.tokens, "<|endoftext|>"), CONTROL), add_bos_token=False)
    end = metadata["tokenizer.ggml.tokens"].index(family.tokens[0])
    tokenizer = load_tokenizer(metadata | {"tokenizer.ggml.eot_token_id": end})
    engine = fake_engine(
        FakeDecoder(tokenizer.vocab_size),
        context=8192,
        tokenizer=tokenizer,
        template=ChatTemplate(template, process=process),
        reply_format=find_reply_format(template, lambda text: tokenizer.token_id(text) is not None),
    )
    return LLM.from_engine(engine)


def saying(llm: LLM, text: str, end: str, prompts: list[str]) -> dict[str, Any]:
    """Options that let the model say nothing but `text`; prompts: gets what was asked."""
    tokenizer = llm.engine.tokenizer
    said = [*llm.tokenize(text, add_special=False), tokenizer.token_id(end)]
    begun: list[int] = []

    def processor(ids: Any, logits: Any) -> Any:
        if not begun:
            prompts.append(tokenizer.decode(ids))
        begun.append(len(ids))
        logits[:] = -np.inf
        logits[said[len(ids) - begun[0]]] = 0
        return logits

    return {"logits_processor": [processor], "temperature": 0.0, "tools": TOOLS, "reasoning_effort": "on"}


def streamed(chunks: Iterator[dict[str, Any]]) -> tuple[dict[str, Any], str, int]:
    """The message that a stream's deltas make, its finish reason, and in how many pieces its arguments came."""
    message: dict[str, Any] = {"role": "", "content": "", "reasoning_content": "", "tool_calls": []}
    reason, n = "", 0
    for chunk in chunks:
        (choice,) = chunk["choices"]
        for key, value in choice["delta"].items():
            if key != "tool_calls":
                message[key] += value
                continue
            for call in value:
                if "id" in call:
                    assert call["index"] == len(message["tool_calls"])
                    message["tool_calls"].append({key: each for key, each in call.items() if key != "index"})
                else:
                    n += 1
                    message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    return message, reason, n


def chat_with_functions(family: Family, template: str, process: TemplateProcess, answer: str) -> list[str]:
    """Ask, be called, answer: in one piece and streamed. Gives the prompts, of the question and of the results."""
    prompts: list[str] = []
    with model(family, template, process) as llm:
        says = lambda text: saying(llm, text, family.tokens[0], prompts)  # noqa: E731
        (choice,) = llm.create_chat_completion(ASK, **says(family.reply))["choices"]  # type: ignore[index]
        message = choice["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm", "Look.")
        calls = [
            (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]
        ]
        assert calls == GIVEN[: family.calls]
        ids = [call["id"] for call in message["tool_calls"]]
        assert len(set(ids)) == family.calls and all(ids) and choice["finish_reason"] == "tool_calls"
        assert all(call["type"] == "function" for call in message["tool_calls"])

        again = llm.create_chat_completion(ASK, stream=True, **says(family.reply))
        told, reason, n = streamed(again)  # type: ignore[arg-type]
        assert (told, reason) == (message, "tool_calls") and n > 10

        cut = len(llm.tokenize(family.reply.partition("Köln")[0], add_special=False)) + 1
        (short,) = llm.create_chat_completion(ASK, max_tokens=cut, **says(family.reply))["choices"]  # type: ignore[index]
        assert short["finish_reason"] == "length"
        assert short["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "K'

        results = [{"role": "tool", "tool_call_id": call, "content": f"rain {i}"} for i, call in enumerate(ids)]
        history = json.loads(json.dumps([*ASK, message, *reversed(results)]))
        (choice,) = llm.create_chat_completion(history, **says(answer))["choices"]  # type: ignore[index]
        thoughts = {"reasoning_content": "so"} if "so" in answer else {}
        expected = {"role": "assistant", "content": "It rains.", **thoughts}
        assert (choice["message"], choice["finish_reason"]) == (expected, "stop")
    return [prompts[0], prompts[-1]]


@pytest.mark.parametrize("name", FAMILIES)
def test_chats_with_functions(name: str, process: TemplateProcess) -> None:
    family = FAMILIES[name]
    first, second = chat_with_functions(family, family.template, process, family.answer)
    assert '"weather"' in first and "Weather in Ulm?" in first
    assert family.written in second and second.endswith(family.prompt)
    assert second.index(family.written) < second.index("rain 0")
    assert family.calls == 1 or second.index("rain 0") < second.index("rain 1")


@pytest.mark.parametrize("name", FAMILIES)
def test_chats_with_functions_in_the_models_own_templates(name: str, process: TemplateProcess) -> None:
    family = FAMILIES[name]
    path = REAL / f"{family.real}.jinja"
    if not path.is_file():
        pytest.skip(f"llama.cpp's {path.name} is not beside the repository")
    answer = "It rains." if name == "deepseek v3.1" else family.answer  # its template has it think of a question alone
    first, second = chat_with_functions(family, path.read_text(encoding="utf-8"), process, answer)
    assert "weather" in first and "Weather in Ulm?" in first
    assert family.written.removesuffix("<|call|>") in second
    assert second.index("Köln") < second.index("rain 0")
