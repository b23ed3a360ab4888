"""Connections between devices that know each other: TLS 1.3, both sides by pinned certificates.

There is no resumption and no early data, so what was recorded of one connection opens no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl

from edgerun.cluster.identity import Identity
from edgerun.cluster.roster import Member, Roster, pins
from edgerun.errors import NetworkError

HANDSHAKE_S = 5.0
_LAST_WORD_S = 1.0
_LAST_READS = 8  # of what a refused one says


def secured(
    connection: socket.socket, identity: Identity, roster: Roster, *, server: bool, wanted: str | None = None
) -> tuple[ssl.SSLSocket, Member]:
    """The connection, encrypted, and who is at its other end: a member of the roster, and the one whose fingerprint is
    `wanted`. NetworkError for anybody else; the connection is closed then."""
    others = [member for member in roster.members if member.fingerprint != identity.fingerprint]
    try:
        if not others and not server:  # a server refuses as one that knows others, so that it is seen why
            raise NetworkError("this device knows no other yet; pair it with `edgerun cluster join`")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # it is the certificate that counts, not the place
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_TICKET
        if server:
            context.num_tickets = 0
        context.load_cert_chain(identity.path)
        context.load_verify_locations(cadata=pins(roster.members))  # itself, too: `cluster top` asks its own device
        connection.settimeout(HANDSHAKE_S)
        connection = secure = context.wrap_socket(connection, server_side=server, do_handshake_on_connect=False)
        try:
            secure.do_handshake()
        except ssl.SSLError:
            _let_hear(secure)
            raise
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError) and not isinstance(error, NetworkError):
            raise NetworkError(f"the other device was refused, or refuses this one: {error}") from error
        raise
    shown = secure.getpeercert(binary_form=True)
    member = None if shown is None else roster.find(hashlib.sha256(shown).hexdigest())
    if member is None or wanted not in (None, member.fingerprint):
        secure.close()
        raise NetworkError("the other device is not the one that this one knows")
    return secure, member


def _let_hear(refused: ssl.SSLSocket) -> None:
    """The other side has what was said to it, as why it is refused, before the connection is closed: closed at once,
    with something unread, it would be torn down. A stranger has a second for that."""
    with contextlib.suppress(OSError):
        refused.settimeout(_LAST_WORD_S)
        socket.socket.shutdown(refused, socket.SHUT_WR)
        for _ in range(_LAST_READS):
            if not socket.socket.recv(refused, 1 << 12):  # what is read is not looked at
                return
