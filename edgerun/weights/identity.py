"""What tells one model file from another."""

from __future__ import annotations

import hashlib
import os

from edgerun.formats.gguf import GgufFile

_SAMPLE_BYTES = 512


def header_digest(gguf: GgufFile) -> str:
    """Of names, shapes, types and places of all tensors, and the files' size: alike for models of one shape."""
    digest = hashlib.sha256(f"{gguf.architecture} {gguf.file_bytes}".encode())
    for info in gguf.tensors.values():
        digest.update(f"{info.name} {info.shape} {info.type.name} {info.part} {info.offset}\n".encode())
    return digest.hexdigest()[:24]


def content_digest(gguf: GgufFile) -> str:
    """Of the header and the beginning of every tensor: another training of the same shape differs."""
    digest = hashlib.sha256(header_digest(gguf).encode())
    files = [os.open(path, os.O_RDONLY) for path in gguf.paths]
    try:
        for fd in files:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for info in gguf.tensors.values():
            digest.update(os.pread(files[info.part], min(_SAMPLE_BYTES, info.n_bytes), info.offset))
    finally:
        for fd in files:
            os.close(fd)
    return digest.hexdigest()[:24]
