"""Keys and certificates for a deployment on one machine, made on the fly."""

from __future__ import annotations

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

LOOPBACK = "127.0.0.1"
_VALID_FOR = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Identity:
    """A private key, and the public part that others may see: a certificate or a public key. PEM or OpenSSH files."""

    private: Path
    public: Path


class Credentials:
    """Makes keys and certificates in a folder.

    Parameters
    ----------
    folder
        Where the files go; it should be readable to this user only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority_key = ec.generate_private_key(ec.SECP384R1())
        self._authority_name = _name("c2m3 authority on loopback")
        builder = self._builder(self._authority_name, self._authority_key)
        certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.authority = self._write(
            "authority.crt", certificate.sign(self._authority_key, hashes.SHA256()).public_bytes(Encoding.PEM)
        )

    def server(self) -> Identity:
        """A certificate for this machine's loopback address, signed by the authority."""
        key = ec.generate_private_key(ec.SECP384R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
        builder = self._builder(_name("SuperLink"), key).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        certificate = builder.sign(self._authority_key, hashes.SHA256())
        return Identity(
            self._write("server.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
            self._write("server.crt", certificate.public_bytes(Encoding.PEM)),
        )

    def node(self, number: int) -> Identity:
        """A SuperNode's key pair, in OpenSSH's format as Flower wants it."""
        key = ec.generate_private_key(ec.SECP384R1())
        return Identity(
            self._write(f"node-{number}", key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())),
            self._write(f"node-{number}.pub", key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)),
        )

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return x509.CertificateBuilder(
            issuer_name=self._authority_name,
            subject_name=name,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(minutes=5),
            not_valid_after=now + _VALID_FOR,
        )

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        return path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
