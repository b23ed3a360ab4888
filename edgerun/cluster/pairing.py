"""How two devices come to know each other: by six digits that a person carries from one to the other.

    guest -> host   SPAKE2 message
    host  -> guest  SPAKE2 message
    guest -> host   its certificate, sealed with the key that both have now, if they had the same digits
    host  -> guest  the roster with the guest in it, sealed

Whoever listens learns nothing; whoever takes part without the digits can try one number a run. The host is open for
guests only while it shows digits, for ten minutes; it counts runs that failed, over all digits that it showed. After
`MOST_TRIES` the digits are others, each run waits longer than the one before, for up to a minute and one at a time, and
after `MOST_FAILURES` it is closed until a person opens it again: who guesses has 50 numbers of a million.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
MOST_FAILURES = 50
LIFE_S = 600.0  # of being open
_WAIT_S = 10.0
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 60.0
MOST_BYTES = 512 << 10  # of a message: a roster of the largest group
_GUEST, _HOST = b"edgerun guest 1", b"edgerun host 1"
_REFUSED = "the code is wrong, used up or too old: `edgerun cluster up` there shows the one that holds"


class Code:
    """The digits that the host shows now, if it is open for guests. Any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._digits = ""
        self._end = 0.0
        self._tries = 0  # with these digits
        self._failures = 0  # since a person opened it, or a guest came in
        self._runs = 0  # that are going on

    def open(self) -> str:
        """Be open for guests for a while; the digits that are to be shown. For a person to decide."""
        with self._lock:
            self._failures = 0
            return self._renew()

    @property
    def digits(self) -> str:
        """What holds now; "" when it is closed."""
        with self._lock:
            return self._digits_now()

    @contextmanager
    def run(self) -> Iterator[tuple[str, float]]:
        """A run of a pairing: its digits, and how long it is to wait, in s. It has failed unless `succeeded` is called.
        NetworkError when none is taken now."""
        with self._lock:
            digits = self._digits_now()
            if not digits:
                raise NetworkError("this device takes no guests now: `edgerun cluster up` there shows a code")
            if self._failures and self._runs:
                raise NetworkError("another device is joining, or guessing; try again")
            delay_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * (2.0 ** min(self._failures, 30) - 1))
            self._tries += 1
            self._failures += 1
            self._runs += 1
        try:
            yield digits, delay_s
        finally:
            with self._lock:
                self._runs -= 1

    def succeeded(self) -> None:
        """They were for one guest; the next gets others."""
        with self._lock:
            self._failures = 0
            self._renew()

    def _digits_now(self) -> str:
        if self._failures >= MOST_FAILURES or self._clock() > self._end:
            self._digits = ""
        elif self._tries >= MOST_TRIES:
            end = self._end
            self._renew()
            self._end = end
        return self._digits

    def _renew(self) -> str:
        self._digits = f"{secrets.randbelow(10**6):06}"
        self._tries = 0
        self._end = self._clock() + LIFE_S
        return self._digits


def checked_code(text: str) -> str:
    """Six digits, however they were grouped. UsageError for anything else."""
    digits = text.replace(" ", "").replace("-", "")
    if len(digits) != 6 or not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"{text[:40]!r} is not a code: it has six digits, which `edgerun cluster up` shows")
    return digits


class _Invitation(msgspec.Struct, frozen=True):
    roster: Roster
    host: str  # its fingerprint


def join_host(channel: Channel, code: str, me: Member) -> tuple[Roster, str]:
    """The guest's side: the roster with this device in it, and the host's fingerprint. NetworkError when the host
    refuses, or is not one that knows the code."""
    side = SPAKE2_A(checked_code(code).encode(), idA=_GUEST, idB=_HOST)
    channel.send(side.start())
    theirs = channel.receive(_LONGEST_WAIT_S + _WAIT_S)
    if not theirs:
        raise NetworkError(_REFUSED)
    key = _shared(side, theirs)
    channel.send(_sealed(key, _GUEST, msgspec.msgpack.encode(me)))
    answer = channel.receive(_WAIT_S + 10)
    if not answer:
        raise NetworkError(_REFUSED)
    invitation = _decoded(_opened(key, _HOST, answer), _Invitation)
    return checked_roster(invitation.roster), invitation.host


def invite_guest(
    channel: Channel, code: Code, identity: Identity, admit: Callable[[Member], Roster], sleep: Callable[[float], None]
) -> Member:
    """The host's side: who came in. `admit` puts it on the roster and gives that back. NetworkError for a guest with
    another code, FormatError for one that sends nonsense; both have used up a try."""
    try:
        with code.run() as (digits, delay_s):
            sleep(delay_s)
            side = SPAKE2_B(digits.encode(), idA=_GUEST, idB=_HOST)
            theirs = channel.receive(_WAIT_S)
            channel.send(side.start())
            key = _shared(side, theirs)
            guest = _decoded(_opened(key, _GUEST, channel.receive(_WAIT_S)), Member)
            if name_in(guest.certificate) == identity.name:
                raise FormatError(f"the guest is called {identity.name}, as this device is; it needs another --name")
            roster = admit(guest)
            code.succeeded()
    except EdgerunError:
        channel.send(b"")
        raise
    channel.send(_sealed(key, _HOST, msgspec.msgpack.encode(_Invitation(roster, identity.fingerprint))))
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
