"""`edgerun plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgerun.cli.options import checked_option, json_option, model_options
from edgerun.cli.output import print_json, print_pairs
from edgerun.cli.progress import ProgressBars
from edgerun.cli.routing import read_routing
from edgerun.options import Whole

_TOKENS = Whole(0, 1 << 20)


@click.command(short_help="Will a model fit, and how fast will it be.")
@click.argument("model", default="default")
@model_options
@click.option(
    "--routing",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Expect the cache hits that this recorded routing has (`edgerun run --record-routing FILE`).",
)
@click.option(
    "--device",
    metavar="NAME|FILE.yaml",
    help="Plan for another machine: a profile that comes with edgerun (pi-5, ...), a file, or `this` as measured.",
)
@checked_option("-p", "--prompt", name="prompt", kind=_TOKENS, default="256", show_default=True, help="Prompt tokens.")
@checked_option(
    "-n", "--decode", name="decode", kind=_TOKENS, default="128", show_default=True, help="Tokens after it."
)
@click.option("--measure", is_flag=True, help="Measure this machine's rates anew.")
@json_option
def command(
    model: str,
    routing: Path | None,
    device: str | None,
    prompt: int,
    decode: int,
    measure: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Say what of MODEL will be kept where in the memory that there is (or --memory), and how fast it will run here.

    Only the header is read, from the hub where MODEL is not here, and nothing is loaded. The machine's rates are
    measured the first time and kept; of a mixture that was streamed here its last run tells more. Exits with 4 when
    the model does not fit, naming the smallest --memory that would do.
    """
    from edgerun.api.planning import plan_model
    from edgerun.cli.devices import find_profile

    profile = None if device is None else find_profile(device)
    with ProgressBars() as bars:
        bars.waiting("measuring this machine")
        made = plan_model(
            model,
            routing=None if routing is None else read_routing(routing),
            measure=measure,
            device=profile,
            prompt_tokens=prompt,
            decode_tokens=decode,
            events=bars,
            **loading,
        )
        bars.arrived()
    if as_json:
        print_json(made.as_dict())
        return
    lines = _lines(made)
    if profile is not None:
        how = "as measured" if profile.kind == "measured" else "from published figures"
        lines = {"device": f"{profile.name} ({how})", **lines}
    print_pairs(lines)


def _lines(made: Any) -> dict[str, str]:
    from edgerun.units import format_size

    plan, speed = made.memory, made.speed
    how = {
        "resident": "all in memory",
        "experts": f"{plan.early_slots} of {plan.all_experts} experts cached ({100 * plan.cached_share:.0f} %), "
        f"{plan.slots} where a session grows long, the others streamed",
        "layers": f"{plan.pinned} of {plan.layers} layers kept, the others streamed",
    }[plan.mode]
    lines = {"model": made.name, "how": how, "context": f"{made.context} tokens"}
    if made.windows:
        lines["context"] += f"; {made.windows}"
    if made.download_bytes:
        lines["to download"] = format_size(made.download_bytes)
    lines |= {name: format_size(n_bytes) for name, n_bytes in plan.accounts() if n_bytes}
    lines |= {
        "together": f"{format_size(plan.total_bytes)} of {format_size(plan.budget_bytes)}",
        "expected peak": format_size(plan.expected_bytes),
        "least that would do": format_size(plan.floor_bytes),
    }
    once_full = " once the cache is full" if plan.mode == "experts" else ""
    if plan.mode != "resident":
        read = f"{speed.read_bytes_per_token / 1e6:.0f} MB read a token"
        lines["expected hits"] = f"{100 * speed.hit_rate:.0f} %, {read}{once_full}"
        if made.assumed_routing:
            lines["expected hits"] += f"; if experts are chosen as {made.assumed_routing}'s are (--routing FILE knows)"
        if made.is_seen:
            lines["expected hits"] += "; experts chosen as in the last run here"
    lines["decode"] = f"about {speed.decode_tok_s:.1f} tokens/s{once_full}"
    lines["prompt"] = f"about {speed.prompt_tok_s:.0f} tokens/s ({speed.first_token_s:.1f} s for {speed.prompt_tokens})"
    request = made.request
    if request is not None:
        begins = ("from what earlier runs kept, " if made.is_warm else "from an empty cache, ") if once_full else ""
        lines["request"] = (
            f"{request.prompt_tokens} + {request.decode_tokens} tokens, {begins}in {request.total_s:.1f} s: the first "
            f"after {request.prompt_s:.2f} s (bound by {request.prompt_bound}), then {request.decode_tok_s:.1f} a "
            f"second (bound by {request.decode_bound}); {request.later_tok_s:.1f} over the last two thirds, which "
            "`edgerun bench` counts"
        )
        lines["a token reads"] = (
            f"{request.memory_bytes_per_token / 1e6:.0f} MB from memory, "
            f"{request.disk_bytes_per_token / 1e6:.0f} MB from disk"
        )
    lines |= made.refused.lines()
    if made.prefill:
        lines["prompts on"] = made.prefill
    if made.slow_notice:
        lines["slow here"] = made.slow_notice
    if made.advice:
        lines["advice"] = made.advice
    return lines
