"""From the options that limit power and heat to what makes a model rest."""

from __future__ import annotations

from contextlib import ExitStack

from edgerun.errors import UsageError
from edgerun.models import Decoder
from edgerun.options import LoadOptions


def attach_throttle(decoder: Decoder, options: LoadOptions, stack: ExitStack) -> None:
    """Where the options ask for it. UsageError where a power is to be kept to and nothing counts it, or a temperature
    that cannot be read."""
    if options.power_limit is None and options.power_meter != "auto":
        raise UsageError("power_meter counts for power_limit, which was not given")
    if options.power_limit is None and not options.battery_saver and options.max_celsius is None:
        return
    from edgerun.profiling.energy import find_meter
    from edgerun.profiling.energy.battery import on_battery
    from edgerun.profiling.throttle import Throttle, hottest_celsius

    meter = None
    if options.power_limit is not None:
        meter = find_meter(options.power_meter)
        if meter.source is None:
            raise UsageError(
                f"a power of {options.power_limit:g} W cannot be kept to: {meter.reason}; with the processor's power "
                "by its data sheet it can be estimated (power_meter, as in estimate:15)"
            )
        stack.callback(meter.close)
    if options.max_celsius is not None and hottest_celsius() is None:
        raise UsageError(f"{options.max_celsius:g} C cannot be kept to: no thermal zone of this machine can be read")
    decoder.throttle = Throttle(
        meter=meter,
        limit_w=options.power_limit,
        saves_battery=options.battery_saver,
        on_battery=on_battery,
        most_celsius=options.max_celsius,
        celsius=hottest_celsius,
    )
