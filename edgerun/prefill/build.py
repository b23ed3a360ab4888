"""A model's graphs and weights for prompt backends, in a folder of the cache.

Layer after layer: weights, graphs, then a record of both. A build that was stopped goes on after the last record;
the folder is used only once `model.json` says that it is whole. The folder's name holds a digest of all that its
contents depend on, so another model, scheme or version of this code never meets it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

from edgerun.events import EventSink, Notice, Progress, ignore
from edgerun.formats.gguf import GgufFile
from edgerun.models import ModelSpec
from edgerun.models.blocks.declared import ProductName
from edgerun.new_files import one_at_a_time, remove_abandoned
from edgerun.paths import kept_folder, read_kept, write_kept
from edgerun.prefill.graphs import IR_VERSION, OPSET, Stored
from edgerun.prefill.hadamard import check_rotatable
from edgerun.prefill.layer_files import GraphFile, experts_name, weights_name, write_layer
from edgerun.prefill.ranges import LayerRanges
from edgerun.prefill.schemes import Scheme
from edgerun.prefill.segments import EXPERT, check_supported, segments_of
from edgerun.weights.identity import content_digest

_VERSION = 2  # of what this code writes
_MOST_WAIT_S = 1800.0  # for another process that builds the same


@dataclass(frozen=True)
class BuiltLayer:
    """`stored`: where the constants lie in the layer's weight file; `experts`: in that of its experts, if they are to
    run there too."""

    ranges: LayerRanges
    stored: dict[str, Stored]
    experts: dict[str, Stored] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Of its weight files."""
        return _end(self.stored) + _end(self.experts)


@dataclass(frozen=True)
class BuiltModel:
    """A whole folder. `sizes`: of the graphs, in tokens; 0: any number."""

    folder: Path
    scheme: Scheme
    sizes: tuple[int, ...]
    rotated: bool
    layers: tuple[BuiltLayer, ...]
    experts: bool = False

    @property
    def n_bytes(self) -> int:
        """Of the weights on disk, mapped or copied when they are used."""
        return sum(layer.n_bytes for layer in self.layers)

    def graphs(self, spec: ModelSpec) -> list[GraphFile]:
        """All graph files but those of experts, which are alike: of these the first one's."""
        found = []
        for index, layer in enumerate(self.layers):
            first, second = segments_of(spec, index, layer.ranges.shadowed)
            found += [GraphFile(index, segment, tokens) for segment in (first, *second) for tokens in self.sizes]
            if self.experts:
                found += [GraphFile(index, EXPERT, tokens, 0) for tokens in self.sizes]
        return found


def folder_name(
    stem: str,
    digest: str,
    scheme: Scheme,
    ranges: Sequence[LayerRanges],
    sizes: Sequence[int],
    rotated: bool,
    experts: bool,
) -> str:
    """Of a model's folder: `stem` is for people, `digest` that of the model's content."""
    depends = [
        _VERSION,
        OPSET,
        IR_VERSION,
        digest,
        asdict(scheme),
        list(sizes),
        rotated,
        experts,
        [[sorted(each.kept.items()), sorted(each.outliers.items())] for each in ranges],
    ]
    return f"{stem[:40]}-{scheme.name}-{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]}"


def build_model(
    root: Path,
    gguf: GgufFile,
    spec: ModelSpec,
    scheme: Scheme,
    ranges: Sequence[LayerRanges],
    sizes: Sequence[int],
    *,
    rotated: bool = False,
    experts: bool = False,
    events: EventSink = ignore,
) -> BuiltModel:
    """The folder under `root`, made if it is not there. `ranges`: of every layer, empty ones where the scheme does not
    narrow activations; `experts`: graphs for these too. What another process has begun is waited for. Raises
    UnsupportedError for models that have no such graphs, OSError when there is no room, UntrustedError when others can
    write there."""
    check_supported(spec, experts=experts)
    if rotated:
        check_rotatable(spec)
    digest = content_digest(gguf, root, events)
    folder = root / folder_name(gguf.path.stem, digest, scheme, ranges, sizes, rotated, experts)
    found = _open(folder, scheme, sizes, rotated, experts, spec.n_layers)
    if found is not None:
        return found
    kept_folder(folder, make=True).close()
    waiting = partial(events, Notice(f"another edgerun builds {folder.name}; waiting for it"))
    with one_at_a_time(folder / "build", waiting, wait_s=_MOST_WAIT_S):
        return _build(folder, gguf, spec, scheme, ranges, sizes, rotated, experts, events)


def _build(
    folder: Path,
    gguf: GgufFile,
    spec: ModelSpec,
    scheme: Scheme,
    ranges: Sequence[LayerRanges],
    sizes: Sequence[int],
    rotated: bool,
    experts: bool,
    events: EventSink,
) -> BuiltModel:
    remove_abandoned(folder)
    layers = []
    for index in range(spec.n_layers):
        events(Progress("build prompt graphs", index, spec.n_layers, "layers"))
        layer = _read_layer(folder, index)
        if layer is None:
            mine = ranges[index]
            stored = write_layer(folder, gguf, spec, index, scheme, mine, sizes, rotated=rotated, experts=experts)
            layer = BuiltLayer(mine, *stored)
            write_kept(_record(folder, index), [json.dumps(asdict(layer)).encode()])
        layers.append(layer)
    write_kept(folder / "model.json", [json.dumps({"layers": spec.n_layers}).encode()])
    events(Progress("build prompt graphs", spec.n_layers, spec.n_layers, "layers"))
    return BuiltModel(folder, scheme, tuple(sizes), rotated, tuple(layers), experts)


def _open(
    folder: Path, scheme: Scheme, sizes: Sequence[int], rotated: bool, experts: bool, n_layers: int
) -> BuiltModel | None:
    if not (folder / "model.json").is_file():
        return None
    with kept_folder(folder) as kept:  # devices' drivers open what is in it by name, and believe it
        kept.check_all()
    layers = [_read_layer(folder, index) for index in range(n_layers)]
    whole = [layer for layer in layers if layer is not None]
    if len(whole) < n_layers:
        return None
    return BuiltModel(folder, scheme, tuple(sizes), rotated, tuple(whole), experts)


def _record(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:03d}.json"


def _read_layer(folder: Path, index: int) -> BuiltLayer | None:
    """What a record says; None when there is none, or one that does not fit the weight file: it is made again."""
    try:
        said = json.loads(read_kept(_record(folder, index)))
        layer = BuiltLayer(parse_ranges(said["ranges"]), _parse_stored(said["stored"]), _parse_stored(said["experts"]))
        if (folder / weights_name(index)).stat().st_size != _end(layer.stored):
            return None
        if layer.experts and (folder / experts_name(index)).stat().st_size != _end(layer.experts):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return layer


def _end(stored: dict[str, Stored]) -> int:
    """Of a file of constants."""
    return max((each.offset + each.n_bytes for each in stored.values()), default=0)


def _parse_stored(said: Any) -> dict[str, Stored]:
    return {
        str(name): Stored(
            str(each["type"]), tuple(int(n) for n in each["shape"]), int(each["offset"]), int(each["n_bytes"])
        )
        for name, each in said.items()
    }


def parse_ranges(said: Any) -> LayerRanges:
    """From JSON. ValueError, KeyError, TypeError or AttributeError for anything else."""
    names: tuple[ProductName, ...] = get_args(ProductName)
    outliers = {name: tuple(int(i) for i in said["outliers"][name]) for name in names if name in said["outliers"]}
    if len(outliers) != len(said["outliers"]):
        raise ValueError("an unknown product")
    kept = {str(name): (float(low), float(high)) for name, (low, high) in said["kept"].items()}
    return LayerRanges(kept, outliers)
