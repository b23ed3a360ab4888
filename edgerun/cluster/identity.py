"""Who this device is to the others: a key that never leaves it, and a certificate that it signed itself.

Nobody vouches for a certificate. A device is known by its fingerprint (SHA-256 of the certificate), which others learn
while they are paired with it (`pairing.py`) and pin from then on (`roster.py`).
"""

from __future__ import annotations

import datetime
import hashlib
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from edgerun.errors import FormatError, UsageError
from edgerun.trust import open_folder

MOST_CERTIFICATE_BYTES = 4096
_FILE = "identity.pem"
_YEARS = 30  # pins end, certificates need not
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


@dataclass(frozen=True)
class Identity:
    """A device's own key and certificate, in a file that only its user can read."""

    name: str
    certificate: str  # PEM
    path: Path  # of key and certificate, as `ssl` wants them

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.certificate)


def own_identity(folder: Path, name: str) -> Identity:
    """The identity kept in `folder`, made when there is none, then called `name`. OSError; UntrustedError when others
    could have written it; FormatError when it is broken; UsageError for a name that is none."""
    with open_folder(folder, make=True) as kept:
        try:
            text = kept.read(_FILE, most_bytes=4 * MOST_CERTIFICATE_BYTES)
        except FileNotFoundError:
            text = _made(checked_name(name))
            kept.replace(_FILE, [text])
        kept.check(_FILE)
    path = folder / _FILE
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    begin = text.find(b"-----BEGIN CERTIFICATE-----")
    if begin < 0:
        raise FormatError(f"{path} has no certificate; delete it, and pair this device again")
    certificate = text[begin:].decode("ascii", "replace")
    return Identity(name_in(certificate), certificate, path)


def forget_identity(folder: Path) -> None:
    """Be nobody any more: the next identity is another one."""
    with open_folder(folder, make=True) as kept:
        kept.remove(_FILE)


def fingerprint_of(certificate: str) -> str:
    """SHA-256 of a certificate, in hexadecimal. FormatError for a text that is none."""
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.strip())).hexdigest()
    except ValueError as error:
        raise FormatError(f"not a certificate: {error}") from error


def name_in(certificate: str) -> str:
    """The device's name. FormatError for what is no certificate of a device."""
    if len(certificate) > MOST_CERTIFICATE_BYTES:
        raise FormatError(f"a certificate of {len(certificate)} bytes; at most {MOST_CERTIFICATE_BYTES} are read")
    try:
        names = x509.load_pem_x509_certificate(certificate.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return checked_name(str(names[0].value))
    except (ValueError, IndexError) as error:
        raise FormatError(f"not the certificate of a device: {error}") from error


def checked_name(name: str) -> str:
    """A device's name: letters, digits, dots, dashes. UsageError for others."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:60]!r} cannot be a device's name: 1 to 48 letters, digits, '.', '_' and '-'")
    return name


def _made(name: str) -> bytes:
    key = Ed25519PrivateKey.generate()
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=365))  # clocks at home go wrong
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, None)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret + certificate.public_bytes(serialization.Encoding.PEM)
