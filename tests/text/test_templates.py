"""Chat templates: the families' ways of writing a conversation, fallbacks, and messages that are wrong."""

import json
from datetime import datetime

import pytest

from edgerun.errors import TemplateError
from edgerun.text import ChatTemplate, load_chat_template, load_tokenizer

from .vocabularies import CONTROL, bpe, sentencepiece

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"größe": "<1>"}}}

QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are helpful.' }}
    {%- endif %}
    {{- "\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_user=0) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not ns.last_user %}
        {%- set ns.last_user = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
            {{- tool_call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model
' }}
{%- endif -%}
"""

PHI3 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}{% endif %}"
    "{% endfor %}"
)


def template(source, **keys):
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", **keys)


def test_chatml_as_qwen_writes_it():
    assert template(QWEN).render(CHAT) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (
        template(QWEN).render(CHAT[1:2], variables={"add_generation_prompt": False})
        == "<|im_start|>user\n Hi <|im_end|>\n"
    )


def test_variables_reach_the_template():
    thinking = "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    assert template(QWEN).render(CHAT[3:], variables={"enable_thinking": True}) == thinking
    silent = template(QWEN).render(CHAT[3:], variables={"enable_thinking": False})
    assert silent == thinking + "<think>\n\n</think>\n\n"


def test_tools_are_written_as_plain_json():
    text = template(QWEN).render(CHAT[3:], tools=[WEATHER], variables={"add_generation_prompt": False})
    assert text == (
        "<|im_start|>system\nYou are helpful.\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "parameters": {"größe": "<1>"}}}\n'
        "</tools><|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    )


def test_tool_calls_and_their_answers():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    messages = [
        CHAT[3],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "warm"},
    ]
    assert template(QWEN).render(messages, variables={"add_generation_prompt": False}) == (
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>"
        "\n<tool_response>\nwarm\n</tool_response><|im_end|>\n"
    )


def test_llama3():
    assert template(LLAMA3).render(CHAT[:2]) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_mistral_and_its_refusal():
    assert template(MISTRAL).render(CHAT[1:]) == "<s>[INST]  Hi  [/INST]Hello.</s>[INST] Bye [/INST]"
    with pytest.raises(TemplateError, match="roles must alternate"):
        template(MISTRAL).render([CHAT[2], *CHAT[1:]])


def test_gemma_whose_system_speaks_through_the_user():
    assert template(GEMMA).render(CHAT[1:3]) == (
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n<start_of_turn>model\n"
    )
    assert template(GEMMA).render(CHAT[:2]) == (
        "<s><start_of_turn>user\nBe brief.\n\n Hi<end_of_turn>\n<start_of_turn>model\n"
    )


def test_phi3():
    assert template(PHI3).render(CHAT[1:]) == (
        "<s><|user|>\n Hi <|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n"
    )


def test_whitespace_of_blocks_is_trimmed_as_hugging_face_does():
    source = "{% for m in messages %}\n    {% if true %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n!"
    assert template(source).render(CHAT[3:]) == "  Bye\n!"


def test_functions_and_tags_of_hugging_face():
    assert template("{{ strftime_now('%Y') }}").render(CHAT) == datetime.now().strftime("%Y")
    pretty = template("{{ tools | tojson(indent=2) }}").render(CHAT, tools=[WEATHER])
    assert pretty == json.dumps([WEATHER], indent=2, ensure_ascii=False)
    loops = "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }} {% endfor %}"
    assert template(loops).render(CHAT) == "system user "
    marked = "{% generation %}{{ messages[0].content }}{% endgeneration %}."
    assert template(marked).render(CHAT) == "Be brief.."


def test_what_a_loop_knows():
    source = (
        "{% for m in messages %}{{ loop.length }}{{ loop.revindex }}"
        "{{ loop.nextitem.role if not loop.last }} {% else %}none{% endfor %}"
    )
    assert template(source).render(CHAT[:2]) == "22user 21 "
    assert template(source).render([]) == "none"


def test_content_may_be_parts_of_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]
    assert template("{{ messages[0].content }}").render([{"role": "user", "content": parts}]) == "abc"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", "must be a list"),
        ({"role": "user"}, "must be a list"),
        (["hello"], r"messages\[0\] must be a mapping"),
        ([CHAT[0], {"content": "x"}], r"messages\[1\] needs a role"),
        ([{"role": 5, "content": "x"}], "needs a role"),
        ([{"role": "user"}], "has no content"),
        ([{"role": "user", "content": 7}], "must be text or a list of parts, got int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\].*'image_url'"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], r"content\[0\]"),
        ([{"role": "user", "content": [5]}], r"content\[0\].*'int'"),
    ],
)
def test_messages_that_are_wrong(messages, reason):
    with pytest.raises(TemplateError, match=reason):
        template(QWEN).render(messages)


def test_the_callers_messages_are_left_alone():
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    template(QWEN).render(messages)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% endfor %}", "{{ 'a' | nofilter }}", "{% nosuchtag %}"])
def test_templates_that_cannot_be_compiled(source):
    with pytest.raises(TemplateError, match="cannot be compiled: line 1"):
        template(source).render(CHAT)


def test_a_template_that_fails_says_why():
    with pytest.raises(TemplateError, match="'nothing' is undefined"):
        template("{{ nothing.at_all }}").render(CHAT)


def load(metadata, name=""):
    return load_chat_template(metadata, load_tokenizer(metadata), name)


def test_the_template_of_a_file():
    metadata = sentencepiece() | {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}
    found = load(metadata)
    assert found.source == metadata["tokenizer.chat_template"]
    assert found.render(CHAT) == "<s>Be brief.</s>"


def test_named_templates():
    metadata = sentencepiece() | {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "tools: {{ tools | length }}",
        "tokenizer.chat_template.rag": "documents",
    }
    assert load(metadata).render(CHAT) == "plain"
    assert load(metadata).render(CHAT, tools=[WEATHER]) == "tools: 1"
    assert load(metadata, "rag").render(CHAT) == "documents"
    assert load(metadata, "default").render(CHAT) == "plain"
    with pytest.raises(TemplateError, match="no chat template 'other'; it has rag, tool_use"):
        load(metadata, "other")


def test_a_template_that_is_no_text():
    with pytest.raises(TemplateError, match="must be a string, got int"):
        load(sentencepiece() | {"tokenizer.chat_template": 5})


FALLBACKS = {
    "<|im_start|> <|im_end|>": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n"
    ),
    "<|start_header_id|> <|end_header_id|> <|eot_id|>": (
        "<|eot_id|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "<start_of_turn> <end_of_turn>": (
        "<end_of_turn><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    ),
    "<|user|> <|assistant|> <|end|>": "<|system|>\nBe brief.<|end|>\n<|user|>\n Hi <|end|>\n<|assistant|>\n",
    "[INST] [/INST]": "[/INST][INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
    "<|start|> <|message|> <|channel|> <|return|>": (
        "<|start|>system<|message|>You are a helpful assistant.\n\nReasoning: medium\n\n# Valid channels: analysis, "
        "commentary, final. Channel must be included for every message.<|end|><|start|>developer<|message|>"
        "# Instructions\n\nBe brief.<|end|><|start|>user<|message|> Hi <|end|><|start|>assistant"
    ),
    "<|turn> <turn|>": "<turn|><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n",
    "[gMASK] <sop> <|user|> <|assistant|>": ("[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi<|assistant|>\n"),
    "<｜User｜> <｜Assistant｜>": "<｜Assistant｜>Be brief.<｜User｜> Hi <｜Assistant｜>",
    "<|other|>": "Be brief.\n\nUser:  Hi \nAssistant:",
}


@pytest.mark.parametrize("tokens", FALLBACKS)
def test_without_a_template_the_special_tokens_tell(tokens):
    metadata = bpe((), dict.fromkeys(tokens.split(), CONTROL))
    found = load(metadata)  # here the last of the tokens is the begin and end of text as well
    assert found.render(CHAT[:2]) == FALLBACKS[tokens]
    assert found.name == "fallback"


def test_fallbacks_write_whole_conversations():
    metadata = bpe((), {"[INST]": CONTROL, "[/INST]": CONTROL, "</s>": CONTROL})
    assert load(metadata).render(CHAT) == (
        "</s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s></s>[INST] Bye [/INST]"
    )
