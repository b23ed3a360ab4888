"""What a store's counters say about a stretch of work."""

from __future__ import annotations

from collections.abc import Mapping


def summary(before: Mapping[str, float], after: Mapping[str, float], tokens: int) -> dict[str, float]:
    """Between two `WeightStore.statistics()`: shares of uses, and bytes and seconds a token. Empty for a store that
    does not stream.

    hit_rate: experts (or layers) that were ready when asked for; late_rate: that had been asked for before and were
    on their way; disk_bytes_per_s: while at least one read was under way; prediction_precision: of the reads that hints
    began, those whose expert was then used.
    """
    if not after or not tokens:
        return {}
    change = {key: after[key] - before.get(key, 0) for key in after}
    out = {
        "read_bytes_per_token": change["read_n_bytes"] / tokens,
        "stall_s_per_token": change["stall_s"] / tokens,
    }
    if change.get("read_busy_s", 0) > 0:
        out["disk_bytes_per_s"] = change["read_n_bytes"] / change["read_busy_s"]
    if "hits" in change:
        uses = max(1, change["hits"] + change["late"] + change["misses"])
        out |= {"hit_rate": change["hits"] / uses, "late_rate": change["late"] / uses}
        if change["predicted"]:
            out["prediction_precision"] = change["predicted_used"] / change["predicted"]
    else:
        out["hit_rate"] = change["ready"] / max(1, change["ready"] + change["waited"])
    if change.get("neuron_hits") or change.get("neuron_misses"):
        out["neuron_hit_rate"] = change["neuron_hits"] / (change["neuron_hits"] + change["neuron_misses"])
        out["stall_s_per_token"] += change["neuron_stall_s"] / tokens
    return out
