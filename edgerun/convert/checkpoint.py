"""A checkpoint of any known kind -> GGUF."""

from __future__ import annotations

from pathlib import Path

from edgerun.convert.huggingface import convert_huggingface
from edgerun.convert.llama2c import convert_llama2c
from edgerun.convert.report import Report
from edgerun.convert.target import check_target, refusing
from edgerun.convert.tensors import parse_quant
from edgerun.errors import NotFoundError, UsageError
from edgerun.events import EventSink, ignore
from edgerun.formats.gguf import GgmlType


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    quant: str | GgmlType | None = None,
    overwrite: bool = False,
    events: EventSink = ignore,
) -> Report:
    """Write a checkpoint as a GGUF file.

    `source`: a llama2.c .bin file, or a Hugging Face directory (config.json, tokenizer files, *.safetensors).
    `tokenizer`: a llama2.c tokenizer.bin, a SentencePiece .model, or for directories a directory or
    tokenizer.json of its own. `quant`: the type of the weight matrices (one of
    `tensors.QUANT_TYPES`); left out, they keep theirs. Norms, biases and routers are always F32.

    Returns a Report. `out` appears only when it is whole and edgerun would load it. Raises NotFoundError, FormatError
    (malformed or incomplete), UnsupportedError (a family that edgerun does not know), UsageError (also when `out` is
    there already and `overwrite` was not given), DoesNotFitError (disk full), ReadError (the checkpoint was changed
    meanwhile).
    """
    source, out = Path(source), Path(out)
    wanted = None if quant is None else parse_quant(quant)
    if not source.exists():
        raise NotFoundError(f"{source}: there is no such checkpoint")
    check_target(out, overwrite=overwrite)
    tokenizer = None if tokenizer is None else Path(tokenizer)
    if tokenizer is not None and not tokenizer.exists():
        raise NotFoundError(f"{tokenizer}: there is no such tokenizer")
    check = refusing(source, out, overwrite=overwrite)
    if source.is_dir():
        return convert_huggingface(source, out, tokenizer=tokenizer, quant=wanted, check=check, events=events)
    if source.suffix in (".safetensors", ".json"):
        raise UsageError(f"{source}: give the directory that holds it: its config.json is needed as well")
    if source.suffix == ".gguf":
        raise UsageError(f"{source}: already a GGUF; to change its type use `edgerun quantize`")
    return convert_llama2c(source, out, tokenizer=tokenizer, quant=wanted, check=check, events=events)
