"""How much a model shall think before it answers, in the words of users, and what templates call that."""

from __future__ import annotations

from typing import Any

from edgerun.options.kinds import Choice

THINK = Choice(("on", "off", "none", "minimal", "low", "medium", "high", "max"))


def thinking_variables(word: str) -> dict[str, Any]:
    """The template variables for a word of `THINK`: templates look at one of them or at none."""
    if word in ("on", "off", "none"):
        return {"enable_thinking": word == "on", **({"reasoning_effort": "none"} if word == "none" else {})}
    return {"enable_thinking": True, "reasoning_effort": word}
