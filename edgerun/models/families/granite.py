"""Granite 3 and 4 without recurrent layers, and MiniCPM, whose multipliers they took over."""

from edgerun.models.families.family import Family

FAMILIES = {
    "granite": Family(rope="norm", multipliers=True, logits="over"),
    "granitemoe": Family(rope="norm", multipliers=True, logits="over", expert_length=False),
    "granite_swa": Family(
        rope="norm",
        multipliers=True,
        logits="over",
        sinks=True,
        expert_length=False,
        window_pattern=1,
        rotated="listed",
    ),
    "granitehybrid": Family(
        rope="norm", multipliers=True, logits="over", expert_length=False, rotated="said", recurrence="mamba"
    ),
    "minicpm": Family(rope="norm", multipliers=True, default_multipliers=(12.0, 1.4, 256.0), logits="over"),
}
