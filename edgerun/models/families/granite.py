"""Granite 3 and 4 without recurrent layers, and MiniCPM, whose multipliers they took over."""

from edgerun.models.families.family import ATTENTION_SCALE, Family

FAMILIES = {
    "granite": Family(rope="norm", multipliers=True, logits="over", rotated="said", says=ATTENTION_SCALE),
    "granitemoe": Family(rope="norm", multipliers=True, logits="over", expert_length=False, says=ATTENTION_SCALE),
    "granite_swa": Family(
        rope="norm",
        multipliers=True,
        logits="over",
        sinks=True,
        expert_length=False,
        window_pattern=1,
        rotated="listed",
        says=ATTENTION_SCALE,
    ),
    "granitehybrid": Family(
        rope="norm",
        multipliers=True,
        logits="over",
        expert_length=False,
        rotated="said",
        recurrence="mamba",
        says=ATTENTION_SCALE,
    ),
    "minicpm": Family(rope="norm", multipliers=True, default_multipliers=(12.0, 1.4, 256.0), logits="over"),
}
