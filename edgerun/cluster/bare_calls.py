"""What a kernel reads and writes a connection with: the addresses of functions, and what these are called with.

Of a plain socket `read` and `write`; of an encrypted one OpenSSL's `SSL_read_ex` and `SSL_write_ex`, those of the very
library that Python's `ssl` calls. CPython shows nobody its `SSL *`. It stands in the object between a weak reference to
the socket and the context, so it is taken from there only where both are found around it, and OpenSSL says that it is
of this descriptor: on another Python, or with an OpenSSL that is hidden, there are no such calls and Python sums. It
lives as long as that object, which `Link` holds by its methods, also after the socket was closed.
"""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
import weakref
from functools import cache
from typing import Any

import numpy as np

from edgerun.kernels.program import I64
from edgerun.kernels.sum_abi import HANDLE, IS_TLS, LINK_SLOTS, READ, WRITE

_TLS_CALLS = ("SSL_read_ex", "SSL_write_ex", "SSL_get_fd", "SSL_set_read_ahead", "SSL_has_pending", "ERR_clear_error")


def bare_calls(connection: socket.socket) -> I64 | None:
    """A link as `sum_abi` has it, (LINK_SLOTS,) int64; None where kernels cannot use the connection. An encrypted one
    reads ahead from now on: a frame is one call of the system, not two, and `holds_some` must be asked whether
    something came already."""
    if os.name != "posix":
        return None
    link = np.zeros(LINK_SLOTS, np.int64)
    if not isinstance(connection, ssl.SSLSocket):
        library = ctypes.CDLL(None)
        link[[WRITE, READ, HANDLE]] = _address(library.write), _address(library.read), connection.fileno()
        return link
    library, handle = _openssl(), _handle_of(connection)
    if library is None or not handle or library.SSL_get_fd(handle) != connection.fileno():
        return None
    library.SSL_set_read_ahead(handle, 1)
    link[[WRITE, READ, HANDLE, IS_TLS]] = _address(library.SSL_write_ex), _address(library.SSL_read_ex), handle, 1
    return link


def holds_some(link: I64) -> bool:
    """Whether something has come that was read from the descriptor already: no wait would tell."""
    library = _openssl()
    return bool(link[IS_TLS]) and library is not None and library.SSL_has_pending(int(link[HANDLE])) == 1


def forget_errors() -> None:
    """Of a call of OpenSSL's that did not succeed on this thread: Python asks what its own next one says."""
    library = _openssl()
    if library is not None:
        library.ERR_clear_error()


@cache
def _openssl() -> Any:
    """Python's OpenSSL; None where it cannot be called."""
    import _ssl

    path = getattr(_ssl, "__file__", None)
    library = ctypes.PyDLL(path)  # calls that wait for nothing: the GIL is kept
    if any(not hasattr(library, name) for name in (*_TLS_CALLS, "OpenSSL_version")):
        return None
    library.OpenSSL_version.restype = ctypes.c_char_p
    for name in ("SSL_get_fd", "SSL_has_pending"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.SSL_set_read_ahead.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library if library.OpenSSL_version(0).decode() == ssl.OPENSSL_VERSION else None


def _handle_of(connection: ssl.SSLSocket) -> int:
    """The address of its `SSL`; 0 where it is not found."""
    bare: Any = getattr(connection, "_sslobj", None)
    head = object.__basicsize__
    if bare is None or type(bare).__basicsize__ < head + 3 * ctypes.sizeof(ctypes.c_void_p):
        return 0
    reference, handle, context = (ctypes.c_void_p * 3).from_address(id(bare) + head)
    references = {id(each) for each in weakref.getweakrefs(connection)}
    return handle or 0 if reference in references and context == id(bare.context) else 0


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
