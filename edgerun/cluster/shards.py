"""Shards that were given to this device: files of pieces, each known by its hash, and whole or being filled.

What is asked for is a hash, never a name: nobody can have a file written or read anywhere else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from edgerun.cluster.control import PIECE_BYTES, Offer, Piece
from edgerun.errors import DoesNotFitError, FormatError, NotFoundError
from edgerun.trust import open_folder

_SPARE_BYTES = 256 << 20  # of the disk that stay free


def shard_digest(n_bytes: int, pieces: Sequence[str]) -> str:
    """What a shard is called: the hash of its pieces' hashes."""
    return hashlib.sha256(f"{n_bytes} {' '.join(pieces)}".encode()).hexdigest()


def checked_offer(offer: Offer) -> Offer:
    """FormatError unless the offer's name, length and number of pieces are of one shard."""
    if len(offer.pieces) != -(-offer.n_bytes // PIECE_BYTES) or offer.shard != shard_digest(
        offer.n_bytes, offer.pieces
    ):
        raise FormatError("an offer whose pieces are not those of its shard")
    return offer


def make_offer(n_bytes: int, read: Callable[[int, int], bytes]) -> Offer:
    """The offer of a shard, hashed piece by piece; `read(offset, count)` gives its bytes."""
    pieces = tuple(
        hashlib.sha256(read(at, min(PIECE_BYTES, n_bytes - at))).hexdigest() for at in range(0, n_bytes, PIECE_BYTES)
    )
    return Offer(shard_digest(n_bytes, pieces), n_bytes, pieces)


class ShardStore:
    """The folder of shards. One thread at a time fills one shard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filling: dict[str, Offer] = {}

    def missing(self, offer: Offer) -> tuple[int, ...]:
        """Numbers of the pieces that are not here; those of a transfer that broke off are. DoesNotFitError when the
        disk has no room."""
        checked_offer(offer)
        with open_folder(self._folder, make=True):
            pass
        if self._whole(offer.shard).is_file():
            return ()
        part = self._part(offer.shard)
        present = _pieces_of(part, offer) if part.is_file() else set()
        free = shutil.disk_usage(self._folder).free
        if offer.n_bytes > free - _SPARE_BYTES + PIECE_BYTES * len(present):
            raise DoesNotFitError(f"a shard of {offer.n_bytes} bytes, and the disk has {free} free")
        with part.open("ab") as file:
            os.truncate(file.fileno(), offer.n_bytes)
        part.chmod(0o600)
        self._filling[offer.shard] = offer
        missing = tuple(number for number in range(len(offer.pieces)) if number not in present)
        if not missing:
            self._finish(offer)
        return missing

    def keep(self, piece: Piece) -> None:
        """Write a piece in its place; the last one makes the shard whole. FormatError for one that was not offered."""
        offer = self._filling.get(piece.shard)
        if offer is None or piece.number >= len(offer.pieces):
            raise FormatError("a piece of a shard that was not offered")
        if hashlib.sha256(piece.data).hexdigest() != offer.pieces[piece.number]:
            raise FormatError(f"piece {piece.number} is not what was offered")
        with self._part(piece.shard).open("r+b") as file:
            file.seek(piece.number * PIECE_BYTES)
            file.write(piece.data)

    def finish(self, shard: str) -> Path:
        """Where the shard lies, once all of its pieces are here. NotFoundError as long as they are not."""
        whole = self._whole(shard)
        offer = self._filling.get(shard)
        if offer is not None:
            if len(_pieces_of(self._part(shard), offer)) < len(offer.pieces):
                raise NotFoundError("pieces of the shard are missing still")
            self._finish(offer)
        if not whole.is_file():
            raise NotFoundError("this device has no such shard")
        with open_folder(self._folder) as folder:
            folder.check(whole.name)
        whole.touch()
        return whole

    def kept_bytes(self) -> int:
        """Of all shards, whole or not."""
        return sum(path.stat().st_size for path in self._files())

    def clear(self) -> None:
        """Remove them all."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [*self._folder.glob("*.gguf"), *self._folder.glob("*.part")]

    def _finish(self, offer: Offer) -> None:
        with self._part(offer.shard).open("rb") as file:
            os.fsync(file.fileno())
        self._part(offer.shard).replace(self._whole(offer.shard))
        self._filling.pop(offer.shard, None)

    def _whole(self, shard: str) -> Path:
        return self._folder / f"{shard}.gguf"

    def _part(self, shard: str) -> Path:
        return self._folder / f"{shard}.part"


def _pieces_of(path: Path, offer: Offer) -> set[int]:
    """Which pieces of an offer a file has where they belong."""
    found = set()
    with suppress(FileNotFoundError), path.open("rb") as file:
        for number, digest in enumerate(offer.pieces):
            if hashlib.sha256(file.read(PIECE_BYTES)).hexdigest() == digest:
                found.add(number)
    return found
