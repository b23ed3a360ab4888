"""How today's families write chats with functions: their tokens, templates in their constructs, and replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.text.written_calls import WRITERS

GIVEN = [("weather", {"city": "Köln", "days": 2}), ("weather", {"city": 'a "b"\n', "days": 1})]


@dataclass(frozen=True)
class Family:
    """tokens: control tokens, the one that ends a reply first; template: with HEAD (functions) and EACH (of messages)
    spelt out; prompt: how it ends; reply: to the question, without its end; answer: to the results; written: how the
    first call stands in the next prompt; real: of the model's template in llama.cpp."""

    tokens: tuple[str, ...]
    template: str
    prompt: str
    reply: str
    answer: str
    written: str
    real: str
    calls: int = 2


def _template(each: str, last: str, head: str = "{{ tools | tojson if tools }}") -> str:
    turns = "{% for m in messages %}" + each + "{% endfor %}"
    return head + turns + "{% if add_generation_prompt %}" + last + "{% endif %}"


def _calls(body: str) -> str:
    return "{% for c in m.tool_calls or [] %}" + body + "{% endfor %}"


_CHATML = "<|im_start|>{{ m.role }}\n"
_EACH_ARGUMENT = "{% for k, v in c.function.arguments.items() %}BODY{% endfor %}"
_TEXT = "{{ v if v is string else v | tojson }}"
_THOUGHT = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}"

FAMILIES: Mapping[str, Family] = {
    "qwen 3.5, nemotron 3": Family(
        ("<|im_end|>", "<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
        _template(
            _CHATML + _THOUGHT + "{{ m.content }}"
            + _calls(
                "<tool_call>\n<function={{ c.function.name }}>\n"
                + _EACH_ARGUMENT.replace("BODY", "<parameter={{ k }}>\n" + _TEXT + "\n</parameter>\n")
                + "</function>\n</tool_call>\n"
            )
            + "<|im_end|>\n",
            "<|im_start|>assistant\n<think>\n",
            "{{ tools | tojson if tools }}{# <parameter=example_parameter_1> #}",
        ),
        "<|im_start|>assistant\n<think>\n",
        "hm\n</think>\n\nLook.\n\n" + WRITERS["tool_call qwen"](GIVEN),
        "so\n</think>\n\nIt rains.",
        "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>",
        "Qwen3.5-4B",
    ),
    "gemma 4": Family(
        ("<turn|>", "<|turn>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'),
        _template(
            "<|turn>{{ m.role }}\n{% if m.reasoning_content %}<|channel>thought\n{{ m.reasoning_content }}<channel|>"
            "{% endif %}"
            + _calls(
                "<|tool_call>call:{{ c.function.name + '{' }}"
                + _EACH_ARGUMENT.replace(
                    "BODY",
                    "{{ k }}:{{ '<|\"|>' + v + '<|\"|>' if v is string else v }}{{ ',' if not loop.last }}",
                )
                + "}<tool_call|>"
            )
            + "{{ m.content }}<turn|>\n",
            "<|turn>model\n",
        ),
        "<|turn>model\n",
        "<|channel>thought\nhm<channel|>Look." + WRITERS["gemma4"](GIVEN),
        "<|channel>thought\nso<channel|>It rains.",
        '<|tool_call>call:weather{city:<|"|>Köln<|"|>,days:2}<tool_call|>',
        "google-gemma-4-31B-it",
    ),
    "gpt-oss": Family(
        ("<|call|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"),
        _template(
            "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
            "{% if m.tool_calls %}{% set c = m.tool_calls[0] %}<|start|>assistant to=functions.{{ c.function.name }}"
            "<|channel|>commentary json<|message|>{{ c.function.arguments | tojson }}<|call|>"
            "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}",
            "<|start|>assistant",
        ),
        "<|start|>assistant",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>Look.<|end|>"
        "<|start|>assistant" + WRITERS["harmony"](GIVEN[:1]).removesuffix("<|call|>"),
        "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>It rains.",
        'to=functions.weather<|channel|>commentary json<|message|>{"city": "Köln", "days": 2}<|call|>',
        "openai-gpt-oss-120b",
        calls=1,
    ),
    "lfm 2": Family(
        ("<|im_end|>", "<|im_start|>", "<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>"),
        _template(
            _CHATML + "{{ m.content.split('</think>')[-1] }}<|im_end|>\n",
            "<|im_start|>assistant\n",
            "{{ 'List of tools: ' + tools | tojson if tools }}",
        ),
        "<|im_start|>assistant\n",
        "<think>hm</think>Look." + WRITERS["lfm2"](GIVEN),
        "<think>so</think>It rains.",
        '<|tool_call_start|>[weather(city="Köln", days=2), weather(',
        "LFM2.5-Instruct",
    ),
    "ministral 3": Family(
        ("</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]",
         "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        _template(
            "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
            "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{% else %}"
            "{% if m.content is string %}{{ m.content }}{% else %}{% for block in m.content %}"
            "{% if block['type'] == 'thinking' %}[THINK]{{ block['thinking'] }}[/THINK]"
            "{% else %}{{ block['text'] }}{% endif %}{% endfor %}{% endif %}"
            + _calls("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}")
            + "</s>{% endif %}",
            "",
        ),
        "[/TOOL_RESULTS]",
        "[THINK]hm[/THINK]Look." + WRITERS["mistral"](GIVEN),
        "[THINK]so[/THINK]It rains.",
        '[THINK]hm[/THINK]Look.[TOOL_CALLS]weather[ARGS]{"city": "Köln", "days": 2}',
        "mistralai-Ministral-3-14B-Reasoning-2512",
    ),
    "glm 4.7": Family(
        ("<|user|>", "<|assistant|>", "<|observation|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
         "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        _template(
            "{{ '<|observation|>' if m.role == 'tool' else '<|' + m.role + '|>' }}"
            "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
            + _calls(
                "<tool_call>{{ c.function.name }}"
                + _EACH_ARGUMENT.replace("BODY", "<arg_key>{{ k }}</arg_key><arg_value>" + _TEXT + "</arg_value>")
                + "</tool_call>"
            ),
            "<|assistant|><think>",
        ),
        "<|assistant|><think>",
        "hm</think>Look." + WRITERS["tool_call glm"](GIVEN),
        "so</think>It rains.",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Köln</arg_value><arg_key>days</arg_key><arg_value>2</arg_value>",
        "GLM-4.7-Flash",
    ),
    "deepseek v3.1": Family(
        ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁calls▁begin｜>",
         "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
        _template(
            "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'assistant' %}<｜Assistant｜></think>"
            "{{ m.content or '' }}{% if m.tool_calls %}<｜tool▁calls▁begin｜>"
            + _calls(
                "<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{{ c.function.arguments }}<｜tool▁call▁end｜>"
            )
            + "<｜tool▁calls▁end｜>{% endif %}<｜end▁of▁sentence｜>{% else %}[{{ m.content }}]{% endif %}",
            "<｜Assistant｜><think>",
        ),
        "<｜Assistant｜><think>",
        "hm</think>Look." + WRITERS["deepseek"](GIVEN),
        "so</think>It rains.",
        '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Köln", "days": 2}<｜tool▁call▁end｜>',
        "deepseek-ai-DeepSeek-V3.1",
    ),
    "deepseek v4": Family(
        ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜"),
        _template(
            "{% set d = '｜DSML｜' %}{% if m.role == 'assistant' %}"
            "<｜Assistant｜><think>{{ m.reasoning_content }}</think>"
            "{{ m.content }}{% if m.tool_calls %}<{{ d }}tool_calls>\n"
            + _calls(
                '<{{ d }}invoke name="{{ c.function.name }}">\n'
                + _EACH_ARGUMENT.replace(
                    "BODY",
                    '<{{ d }}parameter name="{{ k }}" string="{{ (v is string) | tojson }}">'
                    + _TEXT
                    + "</{{ d }}parameter>\n",
                )
                + "</{{ d }}invoke>\n"
            )
            + "</{{ d }}tool_calls>{% endif %}<｜end▁of▁sentence｜>{% else %}<｜User｜>{{ m.content }}{% endif %}",
            "<｜Assistant｜><think>",
        ),
        "<｜Assistant｜><think>",
        "hm</think>Look.\n\n" + WRITERS["dsml v4"](GIVEN),
        "so</think>It rains.",
        '<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Köln</｜DSML｜parameter>\n',
        "deepseek-ai-DeepSeek-V4",
    ),
}  # fmt: skip

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
