"""The templates that llama.cpp keeps of well-known models, where they lie beside the repository, on a conversation with
tools: what comes out is what came out when it was looked at (`llama_templates.json`: hashes, of templates too)."""

import hashlib
import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from edgerun.errors import TemplateError
from edgerun.text import ChatTemplate
from edgerun.text.template_process import TemplateProcess

BESIDE = Path(__file__).parents[3]
FOLDERS = (BESIDE / "shared" / "data" / "templates", BESIDE / "llama.cpp" / "models" / "templates")
RECORDS = Path(__file__).with_name("llama_templates.json")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where"},
                    "days": {"type": "integer", "description": "how many"},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Z\u00fcrich", "days": 2}'},
}
CHATS = {
    "plain": [{"role": "user", "content": "Hello"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
    ],
    "tools": [
        {"role": "system", "content": "Help."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "They ask."},
        {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": '{"t": 20}'},
        {"role": "assistant", "content": "It is 20 degrees."},
        {"role": "user", "content": "And tomorrow?"},
    ],
}
NOW = ("%Y-%m-%d", "%d %b %Y", "%d %B %Y", "%B %d, %Y", "%b %d %Y", "%d/%m/%Y", "%A")


def folder():
    return next((folder for folder in FOLDERS if folder.is_dir()), None)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def results(source, process):
    """Of each conversation, without what the day changes; an error's text where a template refuses it."""
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", process=process)
    found = {}
    for name, chat in CHATS.items():
        try:
            text = template.render(chat, tools=TOOLS if name == "tools" else None)
        except TemplateError as error:
            found[name] = str(error)
            continue
        assert not re.search(r"\{'city': 'Z|\bUndefined\b", text), text
        assert chat[-1]["content"] in text
        if name == "tools" and "weather" in source + text and "tool_calls" in source:
            assert re.search("Z(ü|.u00fc)rich", text), text
        for pattern in NOW:
            text = text.replace(datetime.now().strftime(pattern), "TODAY")
        found[name] = text
    return found


@pytest.mark.skipif(folder() is None, reason=f"llama.cpp's templates are in none of {', '.join(map(str, FOLDERS))}")
def test_known_templates_write_what_they_wrote():
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    seen = 0
    process = TemplateProcess()
    try:
        for path in sorted(folder().glob("*.jinja")):
            source = path.read_text(encoding="utf-8")
            record = records.get(path.stem)
            if record is not None and record["template"] == digest(source):
                found = {name: digest(text) for name, text in results(source, process).items()}
                assert found == record["results"], path.stem
                seen += 1
    finally:
        process.close()
    if not seen:
        pytest.skip("none of the templates there is of the version that was recorded")


def record():
    """Write `llama_templates.json` anew: look at the results first."""
    process = TemplateProcess()
    found = {}
    for path in sorted(folder().glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        texts = results(source, process)
        found[path.stem] = {"template": digest(source), "results": {name: digest(text) for name, text in texts.items()}}
        for name, text in texts.items():
            print(f"=== {path.stem} {name}\n{text}")  # noqa: T201
    process.close()
    RECORDS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
