"""ONNX Runtime's execution providers: which devices are here, what each needs, and why one refuses.

Providers come as plugins (a package with a library that is registered) or inside the onnxruntime wheel of a platform.
`KNOWN` says of each what its graphs must be like; `find_devices` says what this machine has. A session is opened with
the CPU fallback off, so a graph runs where it was meant to run or an error says why not.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgerun.errors import DoesNotFitError, ReadError, UnsupportedError, UsageError

_SHARE = "ep.share_ep_contexts"
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAILING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS)
_NO_MEMORY = (os.strerror(errno.ENOMEM), "bad_alloc", "bad allocation", "Failed to allocate memory")


@dataclass(frozen=True)
class ProviderKind:
    """ep: its name in ONNX Runtime. plugin: the package that brings its library, "" for one inside onnxruntime's wheel.
    static: graphs must have fixed shapes. schemes: those worth trying, best first. narrow_results: quantised products
    want their results rounded too, and one scale a channel. context: it can write compiled graphs (EPContext).
    accelerator: a CPU that it names only compiles for it. options: for every session. sharing: options with which
    compiled graphs of one ladder share their weights; none: they cannot."""

    name: str
    ep: str
    plugin: str = ""
    extra: str = ""
    static: bool = True
    schemes: tuple[str, ...] = ("w8a8",)
    narrow_results: bool = False
    context: bool = False
    accelerator: bool = False
    platforms: tuple[str, ...] = ("Linux", "Windows", "Darwin")
    options: Mapping[str, str] = field(default_factory=dict)
    sharing: Mapping[str, str] = field(default_factory=dict)


KNOWN = {
    each.name: each
    for each in (
        ProviderKind("ort", "CPUExecutionProvider", static=False, schemes=("w7a8", "w8a8", "fp32", "w4a16")),
        ProviderKind(
            "openvino",
            "OpenVINOExecutionProvider",
            plugin="onnxruntime_ep_openvino",
            extra="openvino",
            schemes=("w7a8", "w8a8", "fp32", "fp16"),  # w8a8 saturates on CPUs without a dot product
            context=True,
            platforms=("Linux", "Windows"),
        ),
        ProviderKind(
            "qnn",
            "QNNExecutionProvider",
            plugin="onnxruntime_qnn",
            extra="qnn",
            schemes=("w8a16", "w8a8", "w4a16"),
            narrow_results=True,
            context=True,
            accelerator=True,
            platforms=("Linux", "Windows"),
            options={"htp_performance_mode": "burst", "htp_graph_finalization_optimization_mode": "3"},
            sharing={"enable_htp_weight_sharing": "1"},
        ),
        ProviderKind("coreml", "CoreMLExecutionProvider", schemes=("fp16", "fp32"), platforms=("Darwin",)),
        ProviderKind("webgpu", "WebGpuExecutionProvider", plugin="onnxruntime_ep_webgpu", schemes=("fp16", "fp32")),
        ProviderKind("dml", "DmlExecutionProvider", schemes=("fp16", "w8a8"), platforms=("Windows",)),
        ProviderKind("vitisai", "VitisAIExecutionProvider", context=True, platforms=("Windows",)),
        ProviderKind("xnnpack", "XnnpackExecutionProvider", schemes=("fp32", "w8a8"), platforms=("Linux", "Android")),
        ProviderKind("nnapi", "NnapiExecutionProvider", schemes=("w8a8", "fp16"), platforms=("Android",)),
    )
}


@dataclass(frozen=True)
class Device:
    """Something that runs graphs. `type`: cpu, gpu or npu; `handle`: ONNX Runtime's device, None for a provider that is
    only known by name."""

    kind: ProviderKind
    type: str
    vendor: str
    version: str
    handle: Any = None

    @property
    def copies_weights(self) -> bool:
        """Whether its sessions hold weights of their own; the CPU's use them where they are mapped."""
        return self.kind.name != "ort"

    @property
    def compiles_only(self) -> bool:
        """Its library is here and compiles graphs, but what runs them is not."""
        return self.kind.accelerator and self.type == "cpu"

    @property
    def name(self) -> str:
        """As the user names it."""
        return f"{self.kind.name}-{self.type}"


@dataclass(frozen=True)
class Absent:
    """A provider without a device here, and what would bring one."""

    name: str
    reason: str


def runtime() -> Any:
    """The onnxruntime module. UnsupportedError, saying what to install, when it is not here."""
    try:
        with _without_telemetry():
            import onnxruntime
    except ImportError as error:
        raise UnsupportedError(f"onnxruntime cannot be loaded ({error}): pip install onnxruntime onnx") from None
    return onnxruntime


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """ONNX Runtime begins to collect events when it is imported, in a database beside a device id in the user's cache
    directory, and sends them; only this variable keeps it from that. It is set for the import alone, and not where the
    application has imported it already: then that is the application's affair."""
    if "onnxruntime" in sys.modules:
        yield
        return
    before = os.environ.get(_NO_TELEMETRY)
    os.environ[_NO_TELEMETRY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_TELEMETRY]
        else:
            os.environ[_NO_TELEMETRY] = before


@lru_cache(maxsize=1)
def find_devices() -> tuple[tuple[Device, ...], tuple[Absent, ...]]:
    """All devices, the CPU first, and why other providers have none. Loads the providers' libraries."""
    ort = runtime()
    built_in = set(ort.get_available_providers())
    failed = {kind.name: reason for kind in KNOWN.values() if (reason := _register(ort, kind))}
    devices, absent = [], []
    for kind in KNOWN.values():
        mine = [d for d in ort.get_ep_devices() if d.ep_name in (kind.ep, kind.plugin)]
        if mine:
            devices += [
                Device(kind, d.device.type.name.lower(), d.ep_vendor, dict(d.ep_metadata).get("version", ""), d)
                for d in mine
            ]
        elif kind.ep in built_in:
            devices.append(Device(kind, "cpu" if kind.name in ("ort", "xnnpack") else "any", "", ort.__version__))
        else:
            absent.append(Absent(kind.name, failed.get(kind.name) or _why(kind)))
    devices.sort(key=lambda device: device.kind.name != "ort")
    return tuple(devices), tuple(absent)


def device_named(name: str) -> Device:
    """A device by "PROVIDER" or "PROVIDER-TYPE". UsageError, saying why, when it is not here."""
    devices, absent = find_devices()
    for device in devices:
        if name in (device.name, device.kind.name):
            if device.compiles_only:
                raise UsageError(f"{name} can compile for its NPU on this machine, but there is none to run on")
            return device
    for each in absent:
        if name.split("-")[0] == each.name:
            raise UsageError(f"no device for the prompt backend {name!r}: {each.reason}")
    known = ", ".join(dict.fromkeys(device.name for device in devices))
    raise UsageError(f"unknown prompt backend {name!r}; this machine has {known}")


def session_options(
    device: Device,
    threads: int,
    *,
    exact: bool = True,
    share: bool = False,
    more: Mapping[str, str] | None = None,
) -> Any:
    """For one device; on ONNX Runtime's CPU weights stay mapped. `exact`: u8 x s8 must not saturate where
    the processor has no dot product of its own. `share`: the graph was compiled with others and has its weights where
    they are. `more`: options of the provider."""
    ort = runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if device.kind.name == "ort":
        if exact:
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        _share_arena(ort)
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.disable_prepacking", "1")
        return options
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if device.handle is not None:
        if share:
            options.add_session_config_entry(_SHARE, "1")
        options.add_provider_for_devices([device.handle], {**device.kind.options, **(more or {})})
    return options


def open_session(device: Device, model: Path, options: Any) -> Any:
    """An InferenceSession. UnsupportedError with the provider's own words when it does not take the graph."""
    ort = runtime()
    more: dict[str, Any] = {"enable_fallback": 0}  # Python's own: it prints, and tries the CPU when a provider fails
    if device.kind.name == "ort":
        # product and residual made one float product would hide the narrow one
        more |= {"providers": ["CPUExecutionProvider"], "disabled_optimizers": ["MatMulAddFusion"]}
    elif device.handle is None:
        more |= {"providers": [device.kind.ep]}
    try:
        return ort.InferenceSession(str(model), options, **more)
    except Exception as error:  # noqa: BLE001 - providers raise what they like; all else means that they refuse
        check_machine(error, device)
        raise UnsupportedError(f"{device.name} refuses {model.name}: {_first_line(error)}") from None


def compile_graph(device: Device, model: Path, out: Path, more: Mapping[str, str] | None = None) -> None:
    """Write the provider's own compiled form of a graph: an EPContext node with all that belongs to it in one file.
    `more`: options of the provider, as the chip to compile for. UnsupportedError with the provider's own words when it
    does not take the graph."""
    _compile(device, model, out, session_options(device, 0, more=more), embed=True)


def compile_ladder(device: Device, models: Sequence[Path], folder: Path, more: Mapping[str, str] | None = None) -> None:
    """Compile graphs that differ in their number of tokens to the same names in `folder`, with one file of weights for
    all of them, where the provider can (`ProviderKind.sharing`). Otherwise as `compile_graph`."""
    for index, model in enumerate(models):
        options = session_options(device, 0, more={**device.kind.sharing, **(more or {})})
        options.add_session_config_entry(_SHARE, "1")
        if index == len(models) - 1:
            options.add_session_config_entry("ep.stop_share_ep_contexts", "1")
        _compile(device, model, folder / model.name, options, embed=False)


def _compile(device: Device, model: Path, out: Path, options: Any, *, embed: bool) -> None:
    try:
        runtime().ModelCompiler(options, str(model), embed_compiled_data_into_model=embed).compile_to_file(str(out))
    except Exception as error:  # noqa: BLE001 - as above
        check_machine(error, device)
        raise UnsupportedError(f"{device.name} refuses {model.name}: {_first_line(error)}") from None


def check_machine(error: BaseException, device: Device) -> None:
    """Raise what a provider's error is when it says nothing of the provider: DoesNotFitError for a full disk or, where
    it computes in our memory, a lack of that; ReadError for a disk that fails or for too many open files."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        text += os.strerror(error.errno)
    if any(os.strerror(each) in text for each in _FULL):
        raise DoesNotFitError(
            f"the disk is full ({_first_line(error)}): free some, or set TMPDIR to another"
        ) from error
    if any(os.strerror(each) in text for each in _FAILING):
        raise ReadError(f"this machine fails, not {device.name}: {_first_line(error)}") from error
    no_memory = isinstance(error, MemoryError) or any(each in text for each in _NO_MEMORY)
    if no_memory and not device.copies_weights:
        raise DoesNotFitError(f"too little memory for {device.name}: {_first_line(error)}") from error


@lru_cache(maxsize=1)
def _share_arena(ort: Any) -> None:
    """One arena for the activations of all sessions: they run one after the other."""
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(where, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def _register(ort: Any, kind: ProviderKind) -> str:
    """Load a plugin's library; what went wrong, or nothing."""
    if not kind.plugin:
        return ""
    if importlib.util.find_spec(kind.plugin) is None:
        return "" if kind.ep in ort.get_available_providers() else _why(kind)
    try:
        library = importlib.import_module(kind.plugin).get_library_path()
        with contextlib.suppress(Exception):  # registered already, by whoever uses onnxruntime beside us
            ort.register_execution_provider_library(kind.plugin, library)
            return ""
        if any(d.ep_name in (kind.ep, kind.plugin) for d in ort.get_ep_devices()):
            return ""
        ort.register_execution_provider_library(kind.plugin, library)
    except Exception as error:  # noqa: BLE001 - a library that cannot be loaded may fail in any way
        return f"{kind.plugin} is installed, but its library cannot be used: {_first_line(error)}"
    return ""


def _why(kind: ProviderKind) -> str:
    system = platform.system()
    if system not in kind.platforms:
        return f"only on {', '.join(kind.platforms)}"
    if kind.plugin and importlib.util.find_spec(kind.plugin) is not None:
        return f"{kind.plugin} is installed, but finds no device of its vendor in this machine"
    if kind.extra:
        return f"not installed: pip install 'edgerun[{kind.extra}]'"
    if kind.plugin:
        return f"not installed: pip install {kind.plugin.replace('_', '-')}"
    return "not part of the onnxruntime that is installed"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__
