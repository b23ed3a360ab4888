"""How two devices come to know each other: by six digits that a person carries from one to the other.

    guest -> host   SPAKE2 message
    host  -> guest  SPAKE2 message
    guest -> host   its certificate, sealed with the key that both have now, if they had the same digits
    host  -> guest  the roster with the guest in it, sealed

Whoever listens learns nothing; whoever takes part without the digits can try one number a run. The host counts runs
that failed: after `MOST_TRIES` the digits are void, and until then each failure is answered later than the one before.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from edgerun.cluster.channel import Channel
from edgerun.cluster.identity import Identity, name_in
from edgerun.cluster.roster import Member, Roster, checked_roster
from edgerun.errors import EdgerunError, FormatError, NetworkError, UsageError

T = TypeVar("T")

MOST_TRIES = 5
LIFE_S = 600.0  # of a code
_WAIT_S = 10.0
MOST_BYTES = 512 << 10  # of a message: a roster of the largest group
_GUEST, _HOST = b"edgerun guest 1", b"edgerun host 1"
_REFUSED = "the code is wrong, used up or too old: look at the other device for the one that holds now"


class Code:
    """The digits that the host shows now. Any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._renew()

    @property
    def digits(self) -> str:
        """Six, new ones when the old ones are void."""
        with self._lock:
            if self._tries >= MOST_TRIES or self._clock() > self._end:
                self._renew()
            return self._digits

    def take(self) -> tuple[str, float]:
        """The digits for one run, which counts as failed until `succeeded`; and how long to let it wait, in s."""
        digits = self.digits
        with self._lock:
            self._tries += 1
            return digits, 0.2 * (2 ** (self._tries - 1) - 1)

    def succeeded(self) -> None:
        """They were for one device; the next gets others."""
        with self._lock:
            self._renew()

    def _renew(self) -> None:
        self._digits = f"{secrets.randbelow(10**6):06}"
        self._tries = 0
        self._end = self._clock() + LIFE_S


def checked_code(text: str) -> str:
    """Six digits, however they were grouped. UsageError for anything else."""
    digits = text.replace(" ", "").replace("-", "")
    if len(digits) != 6 or not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"{text[:40]!r} is not a code: it has six digits, which `edgerun cluster up` shows")
    return digits


class _Invitation(msgspec.Struct, frozen=True):
    roster: Roster


def join_host(channel: Channel, code: str, me: Member) -> Roster:
    """The guest's side: the roster with this device in it. NetworkError when the host refuses, or is not one that
    knows the code."""
    side = SPAKE2_A(checked_code(code).encode(), idA=_GUEST, idB=_HOST)
    channel.send(side.start())
    key = _shared(side, channel.receive(_WAIT_S))
    channel.send(_sealed(key, _GUEST, msgspec.msgpack.encode(me)))
    answer = channel.receive(_WAIT_S + 10)
    if not answer:
        raise NetworkError(_REFUSED)
    roster = _decoded(_opened(key, _HOST, answer), _Invitation).roster
    return checked_roster(roster)


def invite_guest(
    channel: Channel, code: Code, identity: Identity, admit: Callable[[Member], Roster], sleep: Callable[[float], None]
) -> Member:
    """The host's side: who came in. `admit` puts it on the roster and gives that back. NetworkError for a guest with
    another code, FormatError for one that sends nonsense; both have used up a try."""
    digits, delay_s = code.take()
    try:
        sleep(delay_s)
        side = SPAKE2_B(digits.encode(), idA=_GUEST, idB=_HOST)
        theirs = channel.receive(_WAIT_S)
        channel.send(side.start())
        key = _shared(side, theirs)
        guest = _decoded(_opened(key, _GUEST, channel.receive(_WAIT_S)), Member)
        if name_in(guest.certificate) == identity.name:
            raise FormatError(f"the guest is called {identity.name}, as this device is; it needs another --name")
        roster = admit(guest)
    except EdgerunError:
        channel.send(b"")
        raise
    code.succeeded()
    channel.send(_sealed(key, _HOST, msgspec.msgpack.encode(_Invitation(roster))))
    return guest


def _shared(side: SPAKE2_A | SPAKE2_B, message: bytes) -> bytes:
    try:
        secret = side.finish(message)
    except (SPAKEError, NotOnCurve, ValueError, AssertionError) as error:
        raise FormatError(f"no message of a pairing: {error}") from error
    return HKDF(SHA256(), 32, salt=None, info=b"edgerun pairing 1").derive(secret)


def _sealed(key: bytes, sender: bytes, content: bytes) -> bytes:
    nonce = secrets.token_bytes(12)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, content, sender)


def _opened(key: bytes, sender: bytes, sealed: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], sender)
    except (InvalidTag, ValueError) as error:
        raise NetworkError(_REFUSED) from error


def _decoded(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise FormatError(f"no message of a pairing: {error}") from error
