"""Connections to other devices, and addresses."""

from __future__ import annotations

import re
import socket

from edgerun.cluster.channel import Channel
from edgerun.cluster.control import PAIRING, PREAMBLE
from edgerun.cluster.home import Home
from edgerun.cluster.pairing import MOST_BYTES
from edgerun.cluster.tls import secured
from edgerun.errors import NetworkError, UsageError

PORT = 8627
CONNECT_S = 3.0
_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<bare>[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)|(?P<host>[^\s:\[\]]{1,253}))"
    r"(?(bare)|(?::(?P<port>[0-9]{1,5}))?)"
)


def parse_address(text: str, port: int = PORT) -> tuple[str, int]:
    """ "host", "host:port" or "[v6]:port". UsageError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"] or port) > 65535:
        raise UsageError(f"{text[:60]!r} is not an address: host, host:port or [v6 address]:port")
    return match["v6"] or match["bare"] or match["host"], int(match["port"] or port)


def format_address(host: str, port: int) -> str:
    """As `parse_address` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dial_host(address: str) -> Channel:
    """A connection for pairing, to whoever is there. NetworkError."""
    connection = _connected(address, PAIRING)
    return Channel(connection, MOST_BYTES)


def dial(home: Home, fingerprint: str, address: str, kind: bytes, connect_s: float = CONNECT_S) -> socket.socket:
    """A connection to the device of that fingerprint, sealed. NetworkError when it is not there (after `connect_s`, or
    because of a ConnectionRefusedError where its system is), or not the one."""
    connection = _connected(address, kind, connect_s)
    secure, _ = secured(connection, home.identity, home.roster, server=False, wanted=fingerprint)
    return secure


def _connected(address: str, kind: bytes, connect_s: float = CONNECT_S) -> socket.socket:
    if not address:
        raise NetworkError("nobody knows where the device is: start `edgerun cluster up` there, or give --peer")
    try:
        connection = socket.create_connection(parse_address(address), timeout=connect_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(PREAMBLE + kind)
    except OSError as error:
        raise NetworkError(f"{address} cannot be reached: {error}") from error
    return connection
