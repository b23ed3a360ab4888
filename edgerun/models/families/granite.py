"""Granite 3 and 4 without recurrent layers, and MiniCPM, whose multipliers they took over."""

from edgerun.models.families.family import Family

FAMILIES = {
    "granite": Family(rope="norm", multipliers=True, logits="over"),
    "granitemoe": Family(rope="norm", multipliers=True, logits="over", expert_length=False),
    "granitehybrid": Family(
        rope="norm", multipliers=True, logits="over", expert_length=False, rotated="said", recurrence="mamba"
    ),
    "minicpm": Family(rope="norm", multipliers=True, default_multipliers=(12.0, 1.4, 256.0), logits="over"),
}
