"""Connections between devices that know each other: TLS 1.3, both sides by pinned certificates.

There is no resumption and no early data, so what was recorded of one connection opens no other.
"""

from __future__ import annotations

import hashlib
import socket
import ssl

from edgerun.cluster.identity import Identity
from edgerun.cluster.roster import Member, Roster, pins
from edgerun.errors import NetworkError

HANDSHAKE_S = 5.0


def secured(
    connection: socket.socket, identity: Identity, roster: Roster, *, server: bool, wanted: str | None = None
) -> tuple[ssl.SSLSocket, Member]:
    """The connection, encrypted, and who is at its other end: a member of the roster, and the one whose fingerprint is
    `wanted`. NetworkError for anybody else; the connection is closed then."""
    others = [member for member in roster.members if member.fingerprint != identity.fingerprint]
    try:
        if not others:
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
        secure = context.wrap_socket(connection, server_side=server)
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
