"""How fast this machine is with a model's types and its disk: kept between plans, measured where that is missing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgerun import paths
from edgerun.events import Notice
from edgerun.options import LoadOptions
from edgerun.planning.disk_probe import DiskProbe, probe_file
from edgerun.planning.missing_reads import MissingReads
from edgerun.planning.rates import (
    ProductRates,
    Rates,
    best_of,
    load_rates,
    measure_attention,
    measure_launch,
    measure_new_memory,
    measure_products,
    product_name,
    save_rates,
)
from edgerun.weights import Catalog

if TYPE_CHECKING:
    from edgerun.formats.gguf import GgmlType
    from edgerun.kernels import Kernels

_DISTURBED_S = 600  # before what was measured while others worked is worth measuring again


def machine_rates(reads: MissingReads, here: bool, catalog: Catalog, options: LoadOptions, measure: bool) -> Rates:
    """Kept ones where they are; what is missing is measured: products of other types, or the disk for pieces of another
    size, with the file that is read or, where the model is not here, one of its own. What was measured while others
    worked is measured again some minutes later, when they may have ended, and the better of both counts."""
    from edgerun.profiling.noise import NoiseMeter

    kept = paths.cache_dir() / f"rates-{options.kernels}-{options.threads}.json"
    earlier = load_rates(kept, options.events)
    again = earlier is not None and earlier.were_disturbed and time.time() - kept.stat().st_mtime > _DISTURBED_S
    known = None if measure or again else earlier
    noise = NoiseMeter()
    rates = _completed(known, reads, here, kept.parent, catalog, options)
    if rates != known:
        others = noise.end([]).others_share
        rates = replace(rates, others_share=max(others, 0.0 if known is None else known.others_share))
        if earlier is not None and earlier.were_disturbed:
            rates = best_of(earlier, rates)
        with contextlib.suppress(OSError):  # measured again next time
            save_rates(kept, rates)
    if rates.were_disturbed:
        said = f"other programs took {100 * rates.others_share:.0f} % of the processors while this one was measured"
        options.events(Notice(f"{said}: it is faster than planned here (--measure measures again)"))
    return rates


def _completed(
    known: Rates | None,
    reads: MissingReads,
    here: bool,
    folder: Path,
    catalog: Catalog,
    options: LoadOptions,
) -> Rates:
    """What is known, with what is missing of it measured; the same where nothing is."""
    from edgerun.device import last_cache_bytes

    cache_bytes = last_cache_bytes()
    with contextlib.ExitStack() as stack:
        probe = None
        if known is not None and 0.5 <= known.disk_piece_bytes / reads.piece_bytes <= 2:
            disk, piece_bytes = known.disk_bytes_per_s, known.disk_piece_bytes
        else:
            piece_bytes = reads.probe_bytes if here else reads.piece_bytes
            path = reads.path if here else stack.enter_context(probe_file(folder))
            probe = stack.enter_context(DiskProbe(path, piece_bytes, reads.threads))
        products = _products({} if known is None else known.products, catalog, options, probe)
        if known is not None and known.attention is not None:
            attention, launch_s = known.attention, known.launch_s
        else:
            with _kernels(options, []) as kernels:
                attention, launch_s = measure_attention(kernels), measure_launch(kernels)
        if probe is not None:
            disk = probe.bytes_per_s()
    new = None if known is None else known.new_memory_bytes_per_s
    return Rates(
        products,
        disk,
        piece_bytes,
        attention,
        launch_s,
        cache_bytes,
        others_share=0.0 if known is None else known.others_share,
        new_memory_bytes_per_s=measure_new_memory() if new is None else new,
    )


def _products(
    known: Mapping[str, ProductRates], catalog: Catalog, options: LoadOptions, probe: DiskProbe | None
) -> dict[str, ProductRates]:
    """The known rates with those that are missing, which are measured between the probe's bursts."""
    from edgerun.device import last_cache_bytes
    from edgerun.kernels import load_sizes

    sizes, products = load_sizes(options.kernels), dict(known)
    wanted = {}
    for type, cols in ((info.type, info.shape[-1]) for info in catalog.multiplied()):
        name = product_name(type, cols, sizes)
        if name not in known:
            wanted[name] = type, cols
    if wanted:
        cache_bytes = last_cache_bytes()
        with _kernels(options, [type for type, _ in wanted.values()]) as kernels:
            for name, each in wanted.items():
                products[name] = measure_products(kernels, *each, sizes, cache_bytes)
                if probe is not None:
                    probe.burst()
    return products


@contextlib.contextmanager
def _kernels(options: LoadOptions, types: Sequence[GgmlType]) -> Iterator[Kernels]:
    """To measure with."""
    from edgerun.kernels import load_kernels

    kernels = load_kernels(options.kernels, threads=options.n_threads, events=options.events, types=types)
    try:
        yield kernels
    finally:
        kernels.close()
