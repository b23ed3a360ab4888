"""`edgerun doctor`."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import click

from edgerun import __version__
from edgerun.cli.options import json_option, kernels_option, threads_option
from edgerun.cli.output import print_json, print_pairs
from edgerun.cli.progress import ProgressBars
from edgerun.options import LoadOptions

_PACKAGES = ("numpy", "numba", "llvmlite", "tokenizers", "jinja2", "huggingface_hub")
# what the kernels look at; a processor has a hundred more
_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vnni",
    "avx512vbmi",
    "amx-int8",
    "amx-bf16",
    "avxvnni",
    "neon",
    "dotprod",
    "i8mm",
    "sve",
)


@click.command(short_help="Check this machine and prepare the kernels.")
@kernels_option
@click.option("--providers", is_flag=True, help="Only list what could process prompts here, and why others cannot.")
@threads_option
@json_option
def command(kernels: str, threads: int | Literal["auto"], providers: bool, as_json: bool) -> None:
    """Say what edgerun finds here: processor, memory and its limits, directories, versions; measure once which of the
    instruction sets that run here is the fastest; compile all its kernels, so that no later start has to; and calibrate
    prompts of the default model once."""
    if providers:
        found = _providers()
        if as_json:
            print_json(found)
        else:
            _print_providers(found)
        return
    with ProgressBars() as bars:
        options = LoadOptions(kernels=kernels, threads=threads, events=bars)
        report = _examine(options)
        report["prefill"] = _prefill(options)
    if as_json:
        print_json(report)
        return
    _print(report)


def _providers() -> dict[str, Any]:
    from edgerun.prefill.providers import find_devices, runtime

    devices, absent = find_devices()
    return {
        "onnxruntime": str(runtime().__version__),
        "devices": [
            {
                "backend": device.name,
                "type": device.type,
                "vendor": device.vendor,
                "version": device.version,
                "schemes": list(device.kind.schemes),
                "static_shapes": device.kind.static,
                "runs": not device.compiles_only,
            }
            for device in devices
        ],
        "absent": {each.name: each.reason for each in absent},
    }


def _print_providers(found: dict[str, Any]) -> None:
    lines = {"kernels": "edgerun's own, always here"}
    for each in found["devices"]:
        about = " ".join(filter(None, (each["vendor"], each["version"])))
        runs = "" if each["runs"] else "; only compiles here: its NPU is not in this machine"
        lines[each["backend"]] = f"{about}; {', '.join(each['schemes'])}{runs}"
    print_pairs(lines | {name: f"no: {reason}" for name, reason in found["absent"].items()})


def _prefill(options: LoadOptions) -> str:
    """What prompts of the default model run on, calibrated if it was not yet."""
    from edgerun.api.calibration import calibrate_model
    from edgerun.errors import EdgerunError
    from edgerun.hub import embedded_model

    model = embedded_model()
    if model is None:
        return "not calibrated: no default model"
    try:
        found = calibrate_model(
            model, threads=options.threads, kernels=options.kernels, events=options.events, again=False
        )
    except (EdgerunError, OSError) as error:
        return f"kernels: {error}"
    return f"{found.choice}: {found.why}"


def _examine(options: LoadOptions) -> dict[str, Any]:
    from edgerun import paths
    from edgerun.device import cpu_features, cpu_name, memory_limits, physical_cores, usable_cpus
    from edgerun.formats.quants import DEQUANTIZERS
    from edgerun.hub import embedded_model, list_models
    from edgerun.hub.cache import default_cache_dir
    from edgerun.kernels import load_kernels, load_sizes

    sets = _instruction_sets(options)
    started = time.perf_counter()
    loaded = load_kernels(options.kernels, threads=options.n_threads, events=options.events)
    try:
        if hasattr(loaded, "prepare"):
            from edgerun.formats.gguf.types import GgmlType

            loaded.prepare(list(GgmlType))
        chosen = {
            "name": loaded.name,
            "threads": loaded.threads,
            "origin": getattr(loaded, "origin", "numpy"),
            "ready_s": round(time.perf_counter() - started, 2),
            "measured": sets,
        }
    finally:
        loaded.close()
    memory = memory_limits()
    has, sizes = cpu_features(), load_sizes(options.kernels)
    downloaded, default = list_models(), embedded_model()
    files = {model.name: model.paths[0] for model in downloaded} | ({} if default is None else {"default": default})
    return {
        "edgerun": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": {
            "name": cpu_name(),
            "physical_cores": physical_cores(),
            "usable_cpus": len(usable_cpus()),
            "features": [name for name in _FEATURES if name in has],
        },
        "kernels": chosen,
        "types": {
            "fast": [type.name for type in DEQUANTIZERS if sizes.has_kernels(type)],
            "slow": [type.name for type in DEQUANTIZERS if not sizes.has_kernels(type)],
        },
        "memory": {
            "total_bytes": memory.total_bytes,
            "available_bytes": memory.available_bytes,
            "cgroup_limit_bytes": memory.cgroup_limit_bytes,
            "cgroup_used_bytes": memory.cgroup_used_bytes,
        },
        "directories": {"cache": paths.cache_dir(), "data": paths.data_dir(), "models": default_cache_dir()},
        "models": {
            "default": default,
            "downloaded": len(downloaded),
            "slow": {name: said for name, path in files.items() if (said := _slow(path, options.kernels))},
        },
    }


def _instruction_sets(options: LoadOptions) -> dict[str, float]:
    """Relative speeds of the instruction sets among which "auto" chooses, measured if they were not yet; none where
    the user named his set."""
    from edgerun.events import Notice
    from edgerun.kernels.choice import read_speeds, write_speeds
    from edgerun.planning.kernel_sets import measure_sets

    if options.kernels != "auto":
        return {}
    speeds = read_speeds()
    if speeds is None:
        speeds = measure_sets(threads=options.n_threads, events=options.events)
        try:
            write_speeds(speeds)
        except OSError as error:
            options.events(Notice(f"the fastest instruction set is not remembered: {error}"))
    return speeds


def _slow(path: Path, kernels: str) -> str:
    """What of a model is slow here; why nobody knows, for a file that cannot be read."""
    from edgerun.api.planning import slow_types_of
    from edgerun.errors import EdgerunError

    try:
        return slow_types_of(path, kernels)[1]
    except EdgerunError as error:
        return str(error)


def _print(report: dict[str, Any]) -> None:
    from edgerun.units import format_size

    cpu, memory, kernels, folders = (report[key] for key in ("cpu", "memory", "kernels", "directories"))
    limit, free = memory["cgroup_limit_bytes"], memory["available_bytes"]
    print_pairs(
        {
            "edgerun": f"{report['edgerun']}, Python {report['python']}",
            "packages": ", ".join(f"{name} {found or 'MISSING'}" for name, found in report["packages"].items()),
            "platform": report["platform"],
            "processor": f"{cpu['name']}: {cpu['physical_cores']} cores, {cpu['usable_cpus']} CPUs usable",
            "features": " ".join(cpu["features"]) or "none that the kernels use",
            "kernels": f"{kernels['name']} on {kernels['threads']} threads, ready in {kernels['ready_s']} s",
            "kernels from": kernels["origin"],
            "measured": ", ".join(f"{name} {speed:.2f}" for name, speed in kernels["measured"].items()) or None,
            "fast types": ", ".join(report["types"]["fast"]) or "none",
            "slow types": ", ".join(report["types"]["slow"]) + " (no kernels: numpy)",
            "memory": f"{format_size(free)} of {format_size(memory['total_bytes'])} available",
            "memory limit": None
            if limit is None
            else f"{format_size(limit)}, {format_size(memory['cgroup_used_bytes'])} used (control group)",
            "cache": folders["cache"],
            "data": folders["data"],
            "models": f"{folders['models']} ({report['models']['downloaded']} downloaded)",
            "prompts": report["prefill"],
            "default model": report["models"]["default"] or "not packaged with this build",
            **{f"slow: {name}": said for name, said in report["models"]["slow"].items()},
        }
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
