"""Shards that were given to this device: files of pieces, each known by its hash, and whole or being filled.

What is asked for is a hash, never a name: nobody can have a file written or read anywhere else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from edgerun.cluster.control import PIECE_BYTES, Offer, Piece
from edgerun.cluster.shard_file import ShardSource, never_waits
from edgerun.errors import DoesNotFitError, FormatError, NotFoundError
from edgerun.trust import open_folder


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
        self.folder = folder
        self._filling: dict[str, Offer] = {}
        self._missing: dict[str, set[int]] = {}  # pieces of those that are being filled
        self._begun: set[str] = set()  # whole ones that were filled by this process
        self._own: set[Path] = set()  # that this process got by `own`

    def made(self) -> Path:
        """The folder, made when it is missing. OSError, UntrustedError."""
        with open_folder(self.folder, make=True):
            return self.folder

    def missing(self, offer: Offer) -> tuple[int, ...]:
        """Numbers of the pieces that are not here; those of a transfer that broke off are. Shards that were not used
        for the longest time go when all together would have more than half of the disk's free room. DoesNotFitError
        when the shard alone would."""
        checked_offer(offer)
        self.made()
        whole, part = self._whole(offer.shard), self._part(offer.shard)
        if whole.is_file():
            if offer.shard in self._begun or not self._mark(offer.shard).exists():
                return ()
            whole.replace(part)
        self._make_room(offer.n_bytes, part, self._paths() if offer.spare else ())
        present = _pieces_of(part, offer) if part.is_file() else set()
        with part.open("ab") as file:
            os.truncate(file.fileno(), offer.n_bytes)
        part.chmod(0o600)
        missing = tuple(number for number in range(len(offer.pieces)) if number not in present)
        self._missing[offer.shard] = set(missing)
        self._filling[offer.shard] = offer
        return missing

    def own(
        self,
        source: ShardSource,
        *,
        spare: bool = False,
        beside_own: bool = False,
        pace: Callable[[], None] = never_waits,
    ) -> Path:
        """The shard that this device computes, made where it is not there yet. Those that it was given by this before
        stay until the new one is whole, if the disk has room for both. spare: only where there is room without removing
        any; beside_own: without removing those. `pace` is called between pieces. DoesNotFitError, OSError."""
        path = self._own_place(source)
        self.made()
        if path.is_file():
            _use(path)
        else:
            strict = spare or beside_own
            self._make_room(source.n_bytes, path, self._paths() if spare else self._own, strict=strict)
            if shutil.disk_usage(self.folder).free < source.n_bytes:  # never where that was strict
                self._make_room(source.n_bytes, path)
            source.write(path, pace)
            with suppress(DoesNotFitError):  # where others filled the disk meanwhile
                self._make_room(source.n_bytes, path)
        self._own.add(path)
        return path

    def has_own(self, source: ShardSource) -> bool:
        """Whether `own` would make nothing."""
        return self._own_place(source).is_file()

    def _own_place(self, source: ShardSource) -> Path:
        return self.folder / f"{source.digest}.gguf"

    def _make_room(self, n_bytes: int, place: Path, keeping: Collection[Path] = (), *, strict: bool = True) -> None:
        """For a file of so many bytes in that place, without removing those of `keeping`; where that is not enough,
        DoesNotFitError if `strict`."""
        found = sorted((status.st_atime, path, _room(status)) for path, status in self._files())
        others = [(path, room) for _, path, room in found if path != place]
        kept = sum(room for _, _, room in found)
        limit = (shutil.disk_usage(self.folder).free + kept) // 2
        if n_bytes > limit:
            raise DoesNotFitError(f"a shard of {n_bytes} bytes, and at most {limit} of this disk are for shards")
        if strict and n_bytes + sum(room for path, room in others if path in keeping) > limit:
            raise DoesNotFitError("there is no room for this shard beside those that must be kept")
        taken = n_bytes + sum(room for _, room in others)
        for path, room in others:
            if taken <= limit:
                return
            if path in keeping:
                continue
            taken -= room
            with suppress(OSError):  # where the system keeps what is open
                path.unlink(missing_ok=True)

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
        self._missing[piece.shard].discard(piece.number)

    def held(self, shards: Sequence[str]) -> tuple[str, ...]:
        """Those of these that are here, whole."""
        return tuple(shard for shard in shards if self._readable(shard) is not None)

    def piece(self, shard: str, number: int) -> Piece:
        """A piece of a shard that is here, whole, for another device, which checks it by its hash. NotFoundError."""
        path = self._readable(shard)
        if path is None:
            raise NotFoundError("this device has no such shard")
        with path.open("rb") as file:
            if number * PIECE_BYTES >= os.fstat(file.fileno()).st_size:
                raise NotFoundError("the shard has no such piece")
            file.seek(number * PIECE_BYTES)
            return Piece(shard, number, file.read(PIECE_BYTES))

    def _readable(self, shard: str) -> Path | None:
        """Where a whole shard lies: one that no job needed yet is a part, of which nothing is missing."""
        if shard in self._filling:
            return self._part(shard) if self._missing.get(shard) == set() else None
        return self._whole(shard) if self._whole(shard).is_file() else None

    def finish(self, shard: str) -> Path:
        """Where the shard lies, once all of its pieces are here. NotFoundError as long as they are not.

        It is not waited for until the disk has it: a mark beside it says so until then, and a shard with a mark is
        looked through when it is offered after the power failed."""
        whole = self._whole(shard)
        if self._filling.get(shard) is not None:
            if self._missing[shard]:
                raise NotFoundError("pieces of the shard are missing still")
            self._mark(shard).touch()
            self._part(shard).replace(whole)
            del self._filling[shard]
            self._begun.add(shard)
            threading.Thread(target=self._bring_to_disk, args=(shard,), name="shard to disk", daemon=True).start()
        elif not whole.is_file():
            raise NotFoundError("this device has no such shard")
        with open_folder(self.folder) as folder:
            folder.check(whole.name)
        _use(whole)
        return whole

    def kept_bytes(self) -> int:
        """Of all shards, whole or not."""
        return sum(status.st_size for _, status in self._files())

    def clear(self) -> None:
        """Remove them all."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return [path for path, _ in self._files()]

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Another thread may rename or remove some at any moment."""
        found = []
        for path in (each for kind in ("gguf", "part", "mark") for each in self.folder.glob(f"*.{kind}")):
            with suppress(FileNotFoundError):
                found.append((path, path.stat()))
        return found

    def _bring_to_disk(self, shard: str) -> None:
        with suppress(OSError):  # then the mark stays
            with self._whole(shard).open("rb") as file:
                os.fsync(file.fileno())
            self._mark(shard).unlink()

    def _mark(self, shard: str) -> Path:
        return self.folder / f"{shard}.mark"

    def _whole(self, shard: str) -> Path:
        return self.folder / f"{shard}.gguf"

    def _part(self, shard: str) -> Path:
        return self.folder / f"{shard}.part"


def _use(path: Path) -> None:
    """Note that it is used now. Not by its time of change: whoever has it open believes that nobody writes to it."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _room(status: os.stat_result) -> int:
    """Bytes of the disk that a file takes: one that is being filled has holes."""
    return min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)


def _pieces_of(path: Path, offer: Offer) -> set[int]:
    """Which pieces of an offer a file has where they belong."""
    found = set()
    with suppress(FileNotFoundError), path.open("rb") as file:
        for number, digest in enumerate(offer.pieces):
            if hashlib.sha256(file.read(PIECE_BYTES)).hexdigest() == digest:
                found.add(number)
    return found
