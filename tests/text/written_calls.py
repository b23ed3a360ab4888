"""Calls as the models of each format write them, which is as their templates do."""

import json


def as_json(value):
    return json.dumps(value, ensure_ascii=False)


def bare(value):
    return value if isinstance(value, str) else as_json(value)


def gemma(value):
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{gemma(each)}" for key, each in value.items()) + "}"
    return "[" + ",".join(map(gemma, value)) + "]" if isinstance(value, list) else as_json(value)


def named(calls, name="name", arguments="arguments"):
    return as_json([{name: function, arguments: given} for function, given in calls])


def tagged(begin, each, end):
    """Writers whose calls are `each`, a function of name and arguments."""
    return lambda calls: begin + "".join(each(name, given) for name, given in calls) + end


def parameters(template):
    return lambda given: "".join(
        template.format(key, bare(value), "true" if isinstance(value, str) else "false") for key, value in given.items()
    )


def invokes(prefix, template):
    each = parameters(template)
    return lambda name, given: f'<{prefix}invoke name="{name}">\n{each(given)}</{prefix}invoke>\n'


def functions(template):
    each = parameters(template)
    return lambda name, given: f"<function={name}>\n{each(given)}</function>\n"


def python(name, given):
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def harmony(name, given):
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{as_json(given)}<|call|>"


_QWEN = functions("<parameter={0}>\n{1}\n</parameter>\n")
_GLM = parameters("<arg_key>{0}</arg_key><arg_value>{1}</arg_value>")
_ATEM = invokes("atem:", '<atem:parameter name="{0}">{1}</atem:parameter>\n')
_DSML = "｜DSML｜"
_PARAM = parameters('<param name="{0}">{1}</param>')
_HY3 = parameters("<arg_key:opensource>{0}</arg_key:opensource>\n<arg_value:opensource>{1}</arg_value:opensource>\n")


def opened(name, given):
    kinds = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    each = "".join(
        f'<|open|>argument key="{key}" type="{kinds.get(type(value), "null")}"<|sep|>{bare(value)}'
        "<|close|>argument<|sep|>"
        for key, value in given.items()
    )
    return f'<|open|>call tool="{name}" index="1"<|sep|>{each}<|close|>call<|sep|>'


M3 = "]<]minimax[>["


def elements(value):
    """A value as MiniMax M3 writes it."""
    if isinstance(value, dict):
        return "".join(f"{M3}<{key}>{elements(each)}{M3}</{key}>" for key, each in value.items())
    if isinstance(value, list):
        return "".join(elements({"item": each}) for each in value)
    return bare(value)


_ATEM_CALL = tagged("", lambda n, a: f"<atem:function_calls>\n{_ATEM(n, a)}</atem:function_calls>", "")

# format -> what writes several calls. Of UNTYPED values are told apart by their function's schema alone.
WRITERS = {
    "tool_call": tagged("", lambda n, a: f"<tool_call>\n{named([(n, a)])[1:-1]}\n</tool_call>\n", ""),
    "tool_call qwen": tagged("", lambda n, a: f"<tool_call>\n{_QWEN(n, a)}</tool_call>\n", ""),
    "tool_call glm": tagged("", lambda n, a: f"<tool_call>{n}{_GLM(a)}</tool_call>", ""),
    "seed": tagged("<seed:tool_call>\n", functions("<parameter={0}>{1}</parameter>\n"), "</seed:tool_call>"),
    "minimax": tagged(
        "<minimax:tool_call>\n", invokes("", '<parameter name="{0}">{1}</parameter>\n'), "</minimax:tool_call>"
    ),
    "dsml": tagged(
        f"<{_DSML}function_calls>\n",
        invokes(_DSML, f'<{_DSML}parameter name="{{0}}" string="{{2}}">{{1}}</{_DSML}parameter>\n'),
        f"</{_DSML}function_calls>",
    ),
    "muse": lambda calls: "<|start|>assistant".join(
        f" to={name}<|message|>{_ATEM_CALL([(name, given)])}<|eom|>" for name, given in calls
    ),
    "harmony": lambda calls: "<|start|>assistant".join(harmony(*call) for call in calls),
    "lfm2": lambda calls: f"<|tool_call_start|>[{', '.join(python(*call) for call in calls)}]<|tool_call_end|>",
    "lfm2 json": lambda calls: f"<|tool_call_start|>{named(calls)}<|tool_call_end|>",
    "gemma4": tagged("", lambda n, a: f"<|tool_call>call:{n}{gemma(a)}<tool_call|>", ""),
    "mistral": tagged("", lambda n, a: f"[TOOL_CALLS]{n}[ARGS]{as_json(a)}", ""),
    "mistral json": lambda calls: f"[TOOL_CALLS]{named(calls)}",
    "deepseek": tagged(
        "<｜tool▁calls▁begin｜>",
        lambda n, a: f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{as_json(a)}<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    "kimi": tagged(
        "<|tool_calls_section_begin|>",
        lambda n, a: f"<|tool_call_begin|>functions.{n}:0<|tool_call_argument_begin|>{as_json(a)}<|tool_call_end|>",
        "<|tool_calls_section_end|>",
    ),
    "command": lambda calls: f"<|START_ACTION|>{named(calls, 'tool_name', 'parameters')}<|END_ACTION|>",
    "toolcall": lambda calls: f"<TOOLCALL>{named(calls)}</TOOLCALL>",
    "tool_call|": lambda calls: f"<|tool_call|>{named(calls)}",
    "gigachat": tagged("", lambda n, a: f"<|function_call|>{named([(n, a)])[1:-1]}", ""),
    "dsml v4": tagged(
        f"<{_DSML}tool_calls>\n",
        invokes(_DSML, f'<{_DSML}parameter name="{{0}}" string="{{2}}">{{1}}</{_DSML}parameter>\n'),
        f"</{_DSML}tool_calls>",
    ),
    "apertus": lambda calls: f"<|tools_prefix|>{as_json([{name: given} for name, given in calls])}<|tools_suffix|>",
    "tool_calls": lambda calls: f"<tool_calls>{named(calls)}</tool_calls>",
    "tool_calls lines": tagged("<tool_calls>\n", lambda n, a: f"{named([(n, a)])[1:-1]}\n", "</tool_calls>"),
    "functionary": tagged("", lambda n, a: f"<function={n}>{as_json(a)}</function>", ""),
    "minicpm": tagged("", lambda n, a: f'<function name="{n}">{_PARAM(a)}</function>\n', ""),
    "hy3": tagged(
        "<tool_calls:opensource>\n",
        lambda n, a: f"<tool_call:opensource>{n}<tool_sep:opensource>\n{_HY3(a)}</tool_call:opensource>\n",
        "</tool_calls:opensource>",
    ),
    "solar": tagged(
        "<|tool_calls|>",
        lambda n, a: f"<|tool_call:begin|>c1<|tool_call:name|>{n}<|tool_call:args|>{as_json(a)}<|tool_call:end|>",
        "<|calls|>",
    ),
    "kimi3": tagged("<|open|>tools<|sep|>", opened, "<|close|>tools<|sep|><|close|>message<|sep|>"),
    "minimax3": tagged(
        f"{M3}<tool_call>\n",
        lambda n, a: f'{M3}<invoke name="{n}">{elements(a)}{M3}</invoke>\n',
        f"{M3}</tool_call>",
    ),
    "gigachat3": tagged(
        "", lambda n, a: f"<|message_sep|>\n\nfunction call<|role_sep|>\n{named([(n, a)])[1:-1]}", "<|message_sep|>\n\n"
    ),
    "recipient": tagged("", lambda n, a: f">>>{n}\n{as_json(a)}", ""),
    "functools": lambda calls: f" functools{named(calls)}",
    "action": lambda calls: f"Action:\n```json\n{named(calls, 'tool_name', 'parameters')}\n```",
    "llama3": lambda calls: "; ".join(named([call], arguments="parameters")[1:-1] for call in calls),
}
UNTYPED = ("tool_call qwen", "tool_call glm", "seed", "minimax", "muse", "minicpm", "hy3", "kimi3", "minimax3")
WHOLE = (
    "lfm2 json",
    "mistral json",
    "command",
    "toolcall",
    "tool_call|",
    "llama3",
    "functools",
    "action",
    "apertus",
    "tool_calls",
    "tool_calls lines",
)
STREAMED = tuple(name for name in WRITERS if name not in WHOLE)
ENDS = (
    *("</tool_call>", "<tool_call>", "</seed:tool_call>", "</minimax:tool_call>", f"</{_DSML}function_calls>"),
    *("</atem:function_calls>", "<|tool_call_end|>", "<tool_call|>", "[TOOL_CALLS]", "[ARGS]", "<｜tool▁call▁end｜>"),
    *("<|END_ACTION|>", "</TOOLCALL>", "; {", "</parameter", "</arg_value", "</think>", "<function=f>"),
    *(f"{M3}</tool_call>", f"{M3}</", f"{M3}<item>", "<|message_sep|>", ">>>now\n", ">>>all\n"),
)
