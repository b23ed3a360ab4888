"""A model's graphs and weights for prompt backends, in a folder of the cache.

Layer after layer: weights, graphs, then a record of both. A build that was stopped goes on after the last record;
the folder is used only once `model.json` says that it is whole. The folder's name holds a digest of all that its
contents depend on, so another model, scheme or version of this code never meets it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import psutil

from edgerun.events import EventSink, Progress, ignore
from edgerun.formats.gguf import GgufFile
from edgerun.models import ModelSpec
from edgerun.paths import replace_file
from edgerun.prefill.graphs import IR_VERSION, OPSET, Stored
from edgerun.prefill.hadamard import check_rotatable
from edgerun.prefill.layer_files import GraphFile, weights_name, write_layer
from edgerun.prefill.ranges import LayerRanges
from edgerun.prefill.schemes import Scheme
from edgerun.prefill.stages import ProductName, check_supported, segments_of
from edgerun.weights.identity import content_digest

_VERSION = 1  # of what this code writes


@dataclass(frozen=True)
class BuiltLayer:
    """`stored`: where the constants lie in the layer's weight file."""

    ranges: LayerRanges
    stored: dict[str, Stored]

    @property
    def n_bytes(self) -> int:
        """Of its weight file."""
        return max(each.offset + each.n_bytes for each in self.stored.values())


@dataclass(frozen=True)
class BuiltModel:
    """A whole folder. `sizes`: of the graphs, in tokens; 0: any number."""

    folder: Path
    scheme: Scheme
    sizes: tuple[int, ...]
    rotated: bool
    layers: tuple[BuiltLayer, ...]

    @property
    def n_bytes(self) -> int:
        """Of the weights on disk, mapped or copied when they are used."""
        return sum(layer.n_bytes for layer in self.layers)

    def graphs(self, spec: ModelSpec) -> list[GraphFile]:
        """All graph files."""
        found = []
        for index, layer in enumerate(self.layers):
            first, second = segments_of(spec, layer.ranges.shadowed)
            found += [GraphFile(index, segment, tokens) for segment in (first, *second) for tokens in self.sizes]
        return found


def folder_name(
    gguf: GgufFile, scheme: Scheme, ranges: Sequence[LayerRanges], sizes: Sequence[int], rotated: bool
) -> str:
    """Of a model's folder."""
    depends = [
        _VERSION,
        OPSET,
        IR_VERSION,
        content_digest(gguf),
        asdict(scheme),
        list(sizes),
        rotated,
        [[sorted(each.kept.items()), sorted(each.outliers.items())] for each in ranges],
    ]
    return f"{gguf.path.stem[:40]}-{scheme.name}-{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]}"


def build_model(
    root: Path,
    gguf: GgufFile,
    spec: ModelSpec,
    scheme: Scheme,
    ranges: Sequence[LayerRanges],
    sizes: Sequence[int],
    *,
    rotated: bool = False,
    events: EventSink = ignore,
) -> BuiltModel:
    """The folder under `root`, made if it is not there. `ranges`: of every layer, empty ones where the scheme does not
    narrow activations. Raises UnsupportedError for models that have no such graphs, OSError when there is no room."""
    check_supported(spec)
    if rotated:
        check_rotatable(spec)
    folder = root / folder_name(gguf, scheme, ranges, sizes, rotated)
    found = _open(folder, scheme, sizes, rotated, spec.n_layers)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in folder.glob("*.tmp"):
        writer = left.name.partition("-")[0]
        if not (writer.isdigit() and psutil.pid_exists(int(writer))):  # another builder may be at work
            left.unlink(missing_ok=True)
    layers = []
    for index in range(spec.n_layers):
        events(Progress("build prompt graphs", index, spec.n_layers, "layers"))
        layer = _read_layer(folder, index)
        if layer is None:
            stored = write_layer(folder, gguf, spec, index, scheme, ranges[index], sizes, rotated=rotated)
            layer = BuiltLayer(ranges[index], stored)
            replace_file(_record(folder, index), [json.dumps(asdict(layer)).encode()])
        layers.append(layer)
    replace_file(folder / "model.json", [json.dumps({"layers": spec.n_layers}).encode()])
    events(Progress("build prompt graphs", spec.n_layers, spec.n_layers, "layers"))
    return BuiltModel(folder, scheme, tuple(sizes), rotated, tuple(layers))


def remove_built(folder: Path) -> None:
    """Delete a folder that proved unusable; it is made again."""
    with contextlib.suppress(OSError):
        (folder / "model.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _open(folder: Path, scheme: Scheme, sizes: Sequence[int], rotated: bool, n_layers: int) -> BuiltModel | None:
    if not (folder / "model.json").is_file():
        return None
    layers = [_read_layer(folder, index) for index in range(n_layers)]
    whole = [layer for layer in layers if layer is not None]
    if len(whole) < n_layers:
        return None
    return BuiltModel(folder, scheme, tuple(sizes), rotated, tuple(whole))


def _record(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:03d}.json"


def _read_layer(folder: Path, index: int) -> BuiltLayer | None:
    """What a record says; None when there is none, or one that does not fit the weight file: it is made again."""
    try:
        said = json.loads(_record(folder, index).read_text(encoding="utf-8"))
        ranges = parse_ranges(said["ranges"])
        stored = {
            str(name): Stored(
                str(each["type"]), tuple(int(n) for n in each["shape"]), int(each["offset"]), int(each["n_bytes"])
            )
            for name, each in said["stored"].items()
        }
        layer = BuiltLayer(ranges, stored)
        if (folder / weights_name(index)).stat().st_size != layer.n_bytes:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return layer


def parse_ranges(said: Any) -> LayerRanges:
    """From JSON. ValueError, KeyError, TypeError or AttributeError for anything else."""
    names: tuple[ProductName, ...] = get_args(ProductName)
    outliers = {name: tuple(int(i) for i in said["outliers"][name]) for name in names if name in said["outliers"]}
    if len(outliers) != len(said["outliers"]):
        raise ValueError("an unknown product")
    kept = {str(name): (float(low), float(high)) for name, (low, high) in said["kept"].items()}
    return LayerRanges(kept, outliers)
