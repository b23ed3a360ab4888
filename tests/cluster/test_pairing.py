"""Who gets in: the right code, pinned certificates, and nobody else."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgerun.cluster.channel import Channel
from edgerun.cluster.identity import Identity, fingerprint_of, forget_identity, own_identity
from edgerun.cluster.pairing import LIFE_S, MOST_FAILURES, MOST_TRIES, Code, checked_code, invite_guest, join_host
from edgerun.cluster.roster import Member, Roster, read_roster, write_roster
from edgerun.cluster.tls import secured
from edgerun.errors import FormatError, LostPeerError, NetworkError, NotFoundError, UsageError


def opened_code() -> Code:
    code = Code()
    code.open()
    return code


def _identity(folder: Path, name: str) -> Identity:
    return own_identity(folder / name, name)


def _pair(host: Identity, guest: Identity, code: Code, digits: str) -> tuple[Roster, Member]:
    """Both sides' results; the host's error comes first."""
    ends = [Channel(end) for end in socket.socketpair()]
    before = Roster((Member(host.certificate),))

    def invite() -> Member:
        try:
            return invite_guest(ends[0], code, host, before.with_member, sleep=lambda _: None)
        finally:
            ends[0].close()

    with ThreadPoolExecutor(1) as threads:
        hosting = threads.submit(invite)
        try:
            roster, known = join_host(ends[1], digits, Member(guest.certificate))
        finally:
            ends[1].close()
        assert known == host.fingerprint
        return roster, hosting.result()


def test_the_right_code_makes_both_known(tmp_path: Path) -> None:
    host, guest, code = _identity(tmp_path, "attic"), _identity(tmp_path, "kitchen"), opened_code()
    digits = code.digits
    roster, came = _pair(host, guest, code, f"{digits[:3]} {digits[3:]}")
    assert came.fingerprint == guest.fingerprint
    assert {member.name for member in roster.members} == {"attic", "kitchen"}
    assert code.digits != digits  # it was for one device
    assert own_identity(tmp_path / "attic", "other").fingerprint == host.fingerprint  # kept
    assert host.path.stat().st_mode & 0o777 == 0o600


def test_wrong_codes_are_counted_and_make_the_right_one_void(tmp_path: Path) -> None:
    host, guest, code = _identity(tmp_path, "attic"), _identity(tmp_path, "kitchen"), opened_code()
    digits = code.digits
    wrong = f"{(int(digits) + 1) % 10**6:06}"
    for _ in range(MOST_TRIES):
        assert code.digits == digits
        with pytest.raises(NetworkError, match="code is wrong"):
            _pair(host, guest, code, wrong)
    with pytest.raises(NetworkError, match="code is wrong"):
        _pair(host, guest, code, digits)
    _pair(host, guest, code, code.digits)  # the person looks again
    for bad in ("12345", "1234567", "12345x", "١٢٣٤٥٦"):
        with pytest.raises(UsageError, match="six digits"):
            checked_code(bad)


def test_guessing_gets_slower_and_ends(tmp_path: Path) -> None:
    now = 0.0
    code = Code(lambda: now)
    assert code.digits == ""  # nobody opened it
    with pytest.raises(NetworkError, match="no guests"), code.run():
        pass
    code.open()
    delays, seen = [], set()
    for _ in range(MOST_FAILURES):
        with code.run() as (digits, delay_s):
            seen.add(digits)
            delays.append(delay_s)
            if 1 < len(delays) < MOST_FAILURES:
                with pytest.raises(NetworkError, match="another device"), code.run():
                    pass
    assert delays == sorted(delays) and delays[0] == 0 and delays[-1] == 60
    assert len(seen) == MOST_FAILURES // MOST_TRIES
    assert code.digits == ""
    with pytest.raises(NetworkError, match="no guests"), code.run():
        pass
    digits = code.open()
    with code.run():
        code.succeeded()
    assert code.digits not in ("", digits)
    with code.run() as (_, delay_s):
        assert delay_s == 0  # a guest came in: it was no guesser
    now = LIFE_S + 1
    assert code.digits == ""


@pytest.mark.parametrize("message", [b"", b"A", b"B" + bytes(32), b"A" + b"\xff" * 32, b"A" + bytes(31), bytes(9000)])
def test_nonsense_is_refused_and_counts(tmp_path: Path, message: bytes) -> None:
    host, code = _identity(tmp_path, "attic"), opened_code()
    ends = [Channel(end, 8192) for end in socket.socketpair()]
    digits = code.digits
    for _ in range(MOST_TRIES - 1):
        with code.run():
            pass
    ends[1].send(message)
    with pytest.raises(FormatError):
        invite_guest(ends[0], code, host, Roster().with_member, sleep=lambda _: None)
    assert code.digits != digits


def test_a_recorded_pairing_opens_nothing(tmp_path: Path) -> None:
    """What a guest sent, sent again: the host has another key by then, though the code were the same."""
    host, guest, code = _identity(tmp_path, "attic"), _identity(tmp_path, "kitchen"), opened_code()
    code.succeeded = lambda: None  # type: ignore[method-assign]
    recorded: list[bytes] = []

    class Recording(Channel):
        def send(self, message: bytes, wait_s: float = 30.0) -> None:
            recorded.append(message)
            super().send(message, wait_s)

    ends = socket.socketpair()
    with ThreadPoolExecutor(1) as threads:
        hosting = threads.submit(invite_guest, Channel(ends[0]), code, host, Roster().with_member, lambda _: None)
        join_host(Recording(ends[1]), code.digits, Member(guest.certificate))
        hosting.result()
    ends = socket.socketpair()
    thief = Channel(ends[1])
    for message in recorded:
        thief.send(message)
    with pytest.raises(NetworkError):
        invite_guest(Channel(ends[0]), code, host, Roster().with_member, lambda _: None)


def _talk(server: tuple[Identity, Roster], client: tuple[Identity, Roster], wanted: str | None = None) -> bytes:
    """What the server reads of the client's words; NetworkError of either."""
    ends = socket.socketpair()

    def serve() -> bytes:
        secure, _ = secured(ends[0], *server, server=True)
        with secure:
            return Channel(secure).receive(5)

    with ThreadPoolExecutor(1) as threads:
        serving = threads.submit(serve)
        try:
            secure, _ = secured(ends[1], *client, server=False, wanted=wanted)
            with secure:
                Channel(secure).send(b"numbers")
                return serving.result()
        finally:
            ends[1].close()


def test_only_pinned_devices_are_talked_to(tmp_path: Path) -> None:
    attic, kitchen, thief = (_identity(tmp_path, name) for name in ("attic", "kitchen", "thief"))
    both = Roster((Member(attic.certificate), Member(kitchen.certificate)))
    all_three = both.with_member(Member(thief.certificate))
    assert _talk((attic, both), (kitchen, both), attic.fingerprint) == b"numbers"
    for server, client, wanted in (
        ((attic, both), (thief, all_three), None),  # never paired
        ((thief, all_three), (kitchen, both), attic.fingerprint),  # pretends to be another
        ((thief, all_three), (kitchen, all_three), attic.fingerprint),  # paired, but not who was called
        ((attic, both.without(kitchen.fingerprint)), (kitchen, both), None),  # put out
        ((attic, both), (kitchen, both.without(attic.fingerprint)), None),
    ):
        with pytest.raises((NetworkError, LostPeerError)):
            _talk(server, client, wanted)


def test_rosters_merge_and_out_is_out(tmp_path: Path) -> None:
    attic, kitchen, shed = (Member(_identity(tmp_path, name).certificate, "h:1") for name in ("attic", "kitchen", "s"))
    one, two = Roster((attic,)).with_member(kitchen), Roster((attic,)).with_member(shed)
    assert one.merged(two).members == two.merged(one).members
    out = one.without(kitchen.fingerprint)
    assert one.merged(two).merged(out) == out.merged(one).merged(two)
    assert out.with_member(kitchen) == out
    assert one.named("kitchen") == kitchen == one.named(kitchen.fingerprint[:12])
    with pytest.raises(NotFoundError, match="attic, kitchen"):
        one.named("cellar")
    moved = one.with_member(Member(kitchen.certificate, "h:2"))
    assert moved.named("kitchen").address == "h:2"
    assert moved.with_member(Member(kitchen.certificate)).named("kitchen").address == "h:2"
    write_roster(tmp_path / "kept", out)
    assert read_roster(tmp_path / "kept") == out
    (tmp_path / "kept" / "roster.msgpack").write_bytes(b"\x93\x90\x90\x02")
    with pytest.raises(FormatError, match="cluster leave"):
        read_roster(tmp_path / "kept")


def test_identities_are_forgotten_and_broken_ones_named(tmp_path: Path) -> None:
    first = _identity(tmp_path, "attic")
    first.path.chmod(0o640)
    assert _identity(tmp_path, "attic").path.stat().st_mode & 0o777 == 0o600
    forget_identity(tmp_path / "attic")
    assert _identity(tmp_path, "attic").fingerprint != first.fingerprint
    first.path.write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(FormatError, match="no certificate"):
        _identity(tmp_path, "attic")
    with pytest.raises(UsageError, match="cannot be a device's name"):
        own_identity(tmp_path / "new", "../x")
    with pytest.raises(FormatError):
        fingerprint_of("x")
