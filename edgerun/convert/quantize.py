"""GGUF -> GGUF of another type, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

from edgerun.convert.report import Report
from edgerun.convert.target import check_loads, check_target, refusing
from edgerun.convert.tensors import FOR_TRAINED_MODELS, Emitter, Source, file_type, parse_quant
from edgerun.errors import EdgerunError, UsageError
from edgerun.events import EventSink, ignore
from edgerun.formats.gguf import GgmlType, GgufFile, GgufWriter, TensorInfo, open_gguf
from edgerun.formats.quants import dequantize

_UNQUANTISED = {"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"}
_REPLACED = ("general.file_type", "general.quantization_version", "general.alignment", "general.architecture")


def quantize_gguf(
    src: str | Path, out: str | Path, type: str | GgmlType, *, overwrite: bool = False, events: EventSink = ignore
) -> Report:
    """Write the model `src` to `out` with its weight matrices in `type`.

    Norms, biases and routers stay F32; the head is at least Q6_K; the report names the weights that could not have
    the type. Split models are joined. Memory: a few rows at a time. `out` appears
    only when it is whole and, if edgerun loads `src`, would load too. Raises UsageError (type, out is src, or is there
    already and `overwrite` was not given), and what `open_gguf` and GgufWriter raise.
    """
    wanted = parse_quant(type)
    out = Path(out)
    with open_gguf(src) as model:
        if any(out.exists() and out.samefile(path) for path in model.paths):
            raise UsageError(f"{out}: the model that is read; write to another name")
        check_target(out, overwrite=overwrite)
        check = refusing(model.path, out, overwrite=overwrite) if _loads(model.path) else None
        with GgufWriter(out, model.architecture, check=check, events=events) as writer:
            _copy_metadata(model, writer)
            writer.add("general.file_type", file_type(wanted, ()))
            writer.add("general.quantization_version", 2)
            emitter = Emitter(writer, wanted, tied_head="output.weight" not in model.tensors)
            for info in model.tensors.values():
                emitter.add(_source(model, info))
        types = {info.type.name for info in model.tensors.values()}
        again = sorted(types - _UNQUANTISED - {wanted.name})
        if again:
            emitter.notes.append(f"{', '.join(again)} weights were quantised a second time, which costs accuracy")
        if wanted in FOR_TRAINED_MODELS and wanted.name not in types:
            emitter.notes.append(
                f"{wanted.name} is for models that were trained to have so few values: others are ruined"
            )
        return emitter.report(out, model.architecture)


def _loads(path: Path) -> bool:
    """A model of a kind that edgerun does not run can be quantised all the same."""
    try:
        check_loads(path)
    except EdgerunError:
        return False
    return True


def _copy_metadata(model: GgufFile, writer: GgufWriter) -> None:
    metadata = model.metadata
    for key in metadata:
        if key in _REPLACED or key.startswith("split."):
            continue
        value = metadata[key]
        writer.add(key, value, metadata.kind(key)[0])


def _source(model: GgufFile, info: TensorInfo) -> Source:
    return Source(
        info.name,
        info.shape,
        info.type,
        rows=lambda start, stop: dequantize(model.rows(info.name, start, stop), info.type),
        raw=lambda start, stop: model.rows(info.name, start, stop),
    )
