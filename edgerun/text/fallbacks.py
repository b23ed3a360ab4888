"""Chat formats for models whose file has no template, guessed from their special tokens."""

from __future__ import annotations

from collections.abc import Callable

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}"
    "{{ message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_SYSTEM_FIRST = (  # for formats without a system role: its text goes before the first user's
    "{% set system = namespace(text='') %}"
    "{% if messages and messages[0].role == 'system' %}{% set system.text = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}" + _SYSTEM_FIRST + "{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}"
    "{% if loop.first and system.text %}{{ system.text + '\\n\\n' }}{% endif %}"
    "{{ message.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
LLAMA2 = (
    _SYSTEM_FIRST + "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ ' ' + message.content | trim + ' ' + eos_token }}{% else %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system.text %}{{ '<<SYS>>\\n' + system.text + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ message.content | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
HARMONY = (  # gpt-oss
    "{{ '<|start|>system<|message|>You are a helpful assistant.\\n\\nReasoning: medium\\n\\n# Valid channels: "
    "analysis, commentary, final. Channel must be included for every message.<|end|>' }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}"
    "{% elif message.role == 'system' %}"
    "{{ '<|start|>developer<|message|># Instructions\\n\\n' + message.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
GEMMA4 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}"
    "{{ message.content | trim + '<turn|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\\n' }}{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content | trim }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}" + _SYSTEM_FIRST + "{{ system.text }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ '<｜Assistant｜>' + message.content + eos_token }}"
    "{% else %}{{ '<｜User｜>' + message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
TRANSCRIPT = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ message.content + '\\n\\n' }}{% else %}"
    "{{ message.role | capitalize + ': ' + message.content + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

_BY_TOKENS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|im_start|>", "<|im_end|>"), CHATML),
    (("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), LLAMA3),
    (("<start_of_turn>", "<end_of_turn>"), GEMMA),
    (("<|user|>", "<|assistant|>", "<|end|>"), PHI3),
    (("<|start|>", "<|message|>", "<|channel|>", "<|return|>"), HARMONY),
    (("<|turn>", "<turn|>"), GEMMA4),
    (("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"), GLM),
    (("<｜User｜>", "<｜Assistant｜>"), DEEPSEEK),
    (("[INST]", "[/INST]"), LLAMA2),
)


def fallback_template(token_id: Callable[[str], int | None]) -> str:
    """The template for a vocabulary: `token_id` gives a token's id by its text, or None."""
    for tokens, source in _BY_TOKENS:
        if all(token_id(token) is not None for token in tokens):
            return source
    return TRANSCRIPT
