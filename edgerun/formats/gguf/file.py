"""An opened GGUF model: one file or all parts of a split one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError, NotFoundError
from edgerun.formats.file_bytes import FileBytes
from edgerun.formats.gguf.cursor import Cursor
from edgerun.formats.gguf.header import Header, TensorInfo, read_header
from edgerun.formats.gguf.ollama import as_llama_cpp

_LEADING_ZEROS = re.compile(r"(?<![^.])0+(?=[0-9]+(?![^.]))")  # of a number that stands between dots
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


_PIECE_BYTES = 8 << 20


class _Part:
    """One open file with its header."""

    def __init__(self, path: Path, number: int = 0) -> None:
        self.path = path
        self.file = FileBytes(path)
        try:
            if not self.file.size:
                raise FormatError(f"{path}: the file is empty")
            self.header: Header = read_header(Cursor(self.file, str(path)), path, number)
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        self.header.metadata.close()
        self.file.close()


class GgufFile:
    """A model in GGUF: metadata and tensors are read when they are asked for. Use `open_gguf`. What Ollama's converters
    call otherwise than llama.cpp's has llama.cpp's names (see `ollama.py`).

    `tensors` maps names to TensorInfo in file order. `n_bytes` counts tensor data, `file_bytes` whole files.
    Thread-safe for reading. All reading raises ReadError when a file was cut or changed since it was opened.
    """

    def __init__(self, parts: list[_Part]) -> None:
        self._parts = parts
        self.path = parts[0].path
        self.paths: tuple[Path, ...] = tuple(part.path for part in parts)
        self.version = parts[0].header.version
        tensors: dict[str, TensorInfo] = {}
        for part in parts:
            for name, info in part.header.tensors.items():
                if name in tensors:
                    raise FormatError(f"{part.path}: the tensor {name!r} also stands in {tensors[name].path.name}")
                tensors[name] = info
        _refuse_aliases(tensors)
        self.metadata, self.tensors = as_llama_cpp(parts[0].header.metadata, tensors)
        self._metadata = self.metadata  # to be closed with the files
        self.n_bytes = sum(info.n_bytes for info in tensors.values())
        self.file_bytes = sum(part.file.size for part in parts)

    @property
    def stamps(self) -> tuple[tuple[int, int, int], ...]:
        """(size, time of the last change in ns, inode) of each file as it was opened."""
        return tuple(part.file.stamp for part in self._parts)

    def headers(self) -> Iterator[bytes]:
        """All that stands before the tensors' data, of each file, in pieces."""
        for part in self._parts:
            end = min(part.header.data_offset, part.file.size)
            for start in range(0, end, _PIECE_BYTES):
                yield part.file.read(start, min(_PIECE_BYTES, end - start))

    @property
    def architecture(self) -> str:
        """`general.architecture`. FormatError when the file does not say."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise FormatError(f"{self.path}: general.architecture is missing; this is not a model")
        if not (value.isascii() and value.isprintable()):
            raise FormatError(f"{self.path}: general.architecture is {value[:64]!r}, not a name")
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value, or `default`."""
        return self.metadata.get(key, default)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of a tensor, read now: a new array (*shape[:-1], row_bytes) u8.

        NotFoundError when there is no such tensor.
        """
        info = self._info(name)
        return self._parts[info.part].file.read_array(info.offset, info.n_bytes).reshape(info.raw_shape)

    def rows(self, name: str, first: int, last: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Rows first .. last - 1 of a tensor seen as (all leading dimensions, cols): (last - first, row_bytes) u8, new,
        or the beginning of `out`, which is flat."""
        info = self._info(name)
        size = (last - first) * info.row_bytes
        if not 0 <= first <= last or first * info.row_bytes + size > info.n_bytes:
            raise ValueError(f"{name} has {info.n_bytes // info.row_bytes} rows, not {first} to {last}")
        target = np.empty(size, np.uint8) if out is None else out[:size]
        if size:
            self._parts[info.part].file.read_into(target, info.offset + first * info.row_bytes)
        return target.reshape(last - first, info.row_bytes)

    def gather(self, name: str, ids: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Some rows of a tensor seen as (all leading dimensions, cols), in the order of `ids`: (n, row_bytes) u8."""
        info = self._info(name)
        n_rows = info.n_bytes // info.row_bytes
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < n_rows:
            raise IndexError(f"{name} has the rows 0 to {n_rows - 1}, not {int(ids.min())} to {int(ids.max())}")
        return self._parts[info.part].file.gather(info.offset, info.row_bytes, ids)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise NotFoundError(f"{self.path}: there is no tensor {name!r}")
        return info

    def close(self) -> None:
        """Let go of the files; no read may be under way. May be called twice."""
        self._metadata.close()
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_aliases(tensors: Mapping[str, TensorInfo]) -> None:
    """Two spellings of one name would leave it to each reader which of the two tensors is meant."""
    spelt: dict[str, str] = {}
    for name, info in tensors.items():
        other = spelt.setdefault(_LEADING_ZEROS.sub("", name.removesuffix(".weight")), name)
        if other != name:
            raise FormatError(f"{info.path}: {other!r} and {name!r} are two names of one tensor")


def open_gguf(path: str | Path) -> GgufFile:
    """Open a GGUF model; of a split one (`-00001-of-0000N`) any part will do, the others are found beside it.

    Reads the header only. Raises NotFoundError (no file, or missing parts), FormatError (malformed, with the
    byte), UnsupportedError (version 1, big-endian, tensor types unknown to edgerun).
    """
    path = Path(path)
    first = _Part(path)
    opened = [first]
    try:
        count = _split_count(first)
        if count > 1:
            opened = _open_parts(first, count, opened)
        return GgufFile(opened)
    except BaseException:
        for part in opened:
            part.close()
        raise


def _split_count(part: _Part) -> int:
    count = part.header.metadata.get("split.count", 0)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 99_999:
        raise FormatError(f"{part.path}: split.count is {count!r}, not a number of parts")
    return count


def _open_parts(given: _Part, count: int, opened: list[_Part]) -> list[_Part]:
    """All parts in order; `opened` collects what must be closed when this fails."""
    match = _SPLIT_NAME.fullmatch(given.path.name)
    if match is None or int(match["count"]) != count:
        raise FormatError(
            f"{given.path}: one of {count} parts, but its name does not end in -NNNNN-of-{count:05d}.gguf, "
            "so the others cannot be found; give it its name back"
        )
    paths = [given.path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise NotFoundError(f"{given.path}: {len(missing)} of {count} parts are missing beside it: {shown}")
    given.close()
    opened.clear()
    for number, path in enumerate(paths):
        opened.append(_Part(path, number))
        said, of = opened[-1].header.metadata.get("split.no"), _split_count(opened[-1])
        if said != number or of != count:
            raise FormatError(f"{path}: says that it is part {said!r} (counted from 0) of {of}")
    expected = opened[0].header.metadata.get("split.tensors.count")
    n_tensors = sum(len(part.header.tensors) for part in opened)
    if expected is not None and expected != n_tensors:
        raise FormatError(f"{paths[0]}: the parts hold {n_tensors} tensors, split.tensors.count says {expected}")
    return opened
