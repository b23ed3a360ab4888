"""What devices say to each other besides numbers: msgpack of the structures below, one answer to each request.

Every structure is decoded by its type, and lengths are bounded where they are declared: what is anything else is a
FormatError, never an object. `VERSION` changes when an older edgerun could no longer follow.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from edgerun.cluster.channel import Channel
from edgerun.cluster.roster import Roster
from edgerun.errors import EdgerunError, FormatError

VERSION = 3
PREAMBLE = b"edgerun\x01"  # before anything else on a new connection, then one letter:
PAIRING, CONTROL, NUMBERS, HEARTBEAT = b"P", b"C", b"N", b"H"

PIECE_BYTES = 4 << 20  # of a shard, sent and checked as one

Text = Annotated[str, msgspec.Meta(max_length=400)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Amount = Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._-]{1,64}$")]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Shards = Annotated[tuple[Digest, ...], msgspec.Meta(max_length=64)]
Token = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first request of a connection: who is known here, and where this device listens ("" when it does not)."""

    roster: Roster
    address: Text
    version: int = VERSION


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The answer: who is known there, and what the device is."""

    roster: Roster
    device: Device
    version: int = VERSION


class Device(msgspec.Struct, frozen=True):
    """What a device has to offer. Memory: what a share may take there; rates as of `planning.quick_rates`, 0 where they
    were not measured."""

    name: Text
    cores: Count
    memory_bytes: Count
    kernels: Text
    job: Text  # what it is doing; "" for nothing
    weights_bytes_per_s: Amount = 0.0
    prompt_ops_per_s: Amount = 0.0
    disk_bytes_per_s: Amount = 0.0


class Offer(msgspec.Struct, frozen=True, tag=True):
    """A shard that the device shall keep, by the hashes of its pieces. spare: only where there is room without removing
    others."""

    shard: Digest
    n_bytes: Count
    pieces: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=1 << 16)]
    spare: bool = False


class Missing(msgspec.Struct, frozen=True, tag=True):
    """The answer: which of its pieces are not there yet."""

    pieces: tuple[Count, ...]


class Piece(msgspec.Struct, frozen=True, tag=True):
    """One of the pieces; as a request it is answered by Done when it is kept."""

    shard: Digest
    number: Count
    data: Annotated[bytes, msgspec.Meta(max_length=PIECE_BYTES)]


class Seat(msgspec.Struct, frozen=True):
    """A rank of a job: which device has it, and where it listens."""

    fingerprint: Digest
    address: Text


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Have a piece of an offered shard from another device, which has the shard; answered by Missing, with its number
    where that did not give it."""

    shard: Digest
    number: Count
    source: Seat


class Want(msgspec.Struct, frozen=True, tag=True):
    """Give this device a piece of a shard; answered by Piece."""

    shard: Digest
    number: Count


class Have(msgspec.Struct, frozen=True, tag=True):
    """Which of these shards are there?"""

    shards: Shards


class Held(msgspec.Struct, frozen=True, tag=True):
    """The answer: those that the device has whole, and would give to others."""

    shards: Shards


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Take part in a job as `rank`, with a shard that is kept; without one the links are measured, which is all of the
    job. `seats` are all ranks; `way` may be "auto", then it is chosen for sums of so many `numbers`; `details` is for
    who computes."""

    job: Token
    rank: Count
    seats: Annotated[tuple[Seat, ...], msgspec.Meta(min_length=2, max_length=64)]
    shard: Digest | None
    way: Text
    wire: Text
    numbers: Count
    details: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]


class Knock(msgspec.Struct, frozen=True, tag=True):
    """The first message of a connection for numbers: whose it is."""

    job: Token
    rank: Count


class End(msgspec.Struct, frozen=True, tag=True):
    """The job is over: give everything back."""

    job: Token


class Leave(msgspec.Struct, frozen=True, tag=True):
    """This device is going for good: put it out."""


class Load(msgspec.Struct, frozen=True):
    """`events.DeviceLoad` of a device of the group."""

    name: Name
    passes: Count
    compute_s: Amount
    wait_s: Amount
    wire_s: Amount
    disk_s: Amount
    memory_bytes: Count
    round_trip_s: Amount


Loads = Annotated[tuple[Load, ...], msgspec.Meta(max_length=64)]


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Are you there, and what the devices of the group did lately; answered by the number."""

    number: Count
    loads: Loads = ()


class Look(msgspec.Struct, frozen=True, tag=True):
    """What does the group do that the device takes part in?"""


class Seen(msgspec.Struct, frozen=True, tag=True):
    """The answer: what its head said last, so many seconds ago; nothing where there is no group, or it said nothing."""

    loads: Loads
    age_s: Amount


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is done."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It could not be done."""

    why: Text


Request = Hello | Offer | Piece | Fetch | Want | Have | Begin | End | Leave | Look
Answer = Welcome | Missing | Piece | Held | Done | Failed | Seen
Message = Request | Answer | Knock | Ping

_DECODER = msgspec.msgpack.Decoder(Message)
M = TypeVar("M", bound=msgspec.Struct)


def say(channel: Channel, message: Message) -> None:
    """Send it. LostPeerError."""
    channel.send(msgspec.msgpack.encode(message))


def hear(channel: Channel, wait_s: float) -> Message:
    """The next message. LostPeerError after so long; FormatError for what is none."""
    data = channel.receive(wait_s)
    try:
        return _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise FormatError(f"the other device sent what is no message of version {VERSION}: {error}") from error


def ask(channel: Channel, request: Request, kind: type[M], wait_s: float) -> M:
    """The answer to a request. EdgerunError with what the other device says when it fails there; FormatError for an
    answer of another kind."""
    say(channel, request)
    answer = hear(channel, wait_s)
    if isinstance(answer, Failed):
        raise EdgerunError(f"the other device: {answer.why}")
    if not isinstance(answer, kind):
        raise FormatError(f"the other device answered a {type(request).__name__} by a {type(answer).__name__}")
    return answer
