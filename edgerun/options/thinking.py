"""How much a model shall think before it answers, in the words of users, and what templates call that."""

from __future__ import annotations

from typing import Any

from edgerun.options.kinds import Choice

THINK = Choice(("on", "off", "none", "minimal", "low", "medium", "high", "max"))


def thinking_variables(word: str) -> dict[str, Any]:
    """The template variables for a word of `THINK`: templates look at one of them or at none."""
    thinks = word not in ("off", "none")
    named = {} if word in ("on", "off") else {"reasoning_effort": word}
    switches = {"enable_thinking": thinks, "thinking": thinks, "thinking_mode": "enabled" if thinks else "disabled"}
    return {**switches, **named, **({} if thinks else {"thinking_budget": 0})}
