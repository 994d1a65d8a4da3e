"""Certificates: made for a small authority of one's own, and read from whoever made them.

Keys are ECDSA P-256 in PKCS#8, which cost a handshake least; serials are random; leaves live 90
days unless told. A certificate is backdated a little, for clocks of one cluster differ.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proglog.errors import ConfigurationError, quoted

BACKDATED = timedelta(minutes=5)
AUTHORITY_DAYS = 3650
LEAF_DAYS = 90
DAYS_MAX = 36500
E = TypeVar("E", bound=x509.ExtensionType)
_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class Use(enum.Enum):
    """What a leaf is for. A peer both dials and answers."""

    SERVER = "server"
    PEER = "peer"
    CLIENT = "client"

    @property
    def purposes(self) -> list[x509.ObjectIdentifier]:
        return {
            Use.SERVER: [_SERVER],
            Use.PEER: [_SERVER, _CLIENT],
            Use.CLIENT: [_CLIENT],
        }[self]


class Pair(NamedTuple):
    """A certificate and its key, both PEM. Shows neither."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Pair(***)"


class Facts(NamedTuple):
    """What a certificate says, as far as anybody here asks."""

    common_names: tuple[str, ...]
    dns: tuple[str, ...]
    addresses: tuple[str, ...]
    uris: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime
    is_authority: bool
    uses: tuple[str, ...]
    """"server", "client"; none where the certificate does not restrict them."""
    fingerprint: str
    """SHA-256 in hexadecimal."""

    @property
    def names(self) -> tuple[str, ...]:
        """All subject alternative names."""
        return (*self.dns, *self.addresses, *self.uris)


def facts_of(certificate: x509.Certificate) -> Facts:
    """Reads a certificate. Raises ValueError where an extension is malformed."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    constraints = _extension(certificate, x509.BasicConstraints)
    purposes = list(_extension(certificate, x509.ExtendedKeyUsage) or ())
    return Facts(
        common_names=tuple(
            str(each.value)
            for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ),
        dns=tuple(names.get_values_for_type(x509.DNSName)) if names else (),
        addresses=tuple(map(str, names.get_values_for_type(x509.IPAddress))) if names else (),
        uris=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)) if names else (),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        is_authority=constraints is not None and constraints.ca,
        uses=tuple(
            name for name, oid in (("server", _SERVER), ("client", _CLIENT)) if oid in purposes
        ),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def facts_of_der(der: bytes) -> Facts:
    """Of what a handshake brought. Raises ValueError."""
    return facts_of(x509.load_der_x509_certificate(der))


def read_chain(pem: bytes, what: str) -> list[x509.Certificate]:
    """The certificates of a file, at least one. Raises ConfigurationError, naming `what`."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        found = []
    if not found:
        raise ConfigurationError(f"{what} holds no certificate in PEM")
    return found


def read_facts(pem: bytes, what: str) -> list[Facts]:
    """What the certificates of a file say. Raises ConfigurationError."""
    try:
        return [facts_of(each) for each in read_chain(pem, what)]
    except ValueError as error:
        raise ConfigurationError(f"{what} holds a malformed certificate: {error}") from None


# --- making --------------------------------------------------------------------------------------


def make_authority(name: str, days: int, now: datetime) -> Pair:
    """A certificate authority that signs leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = _builder(subject, subject, key.public_key(), days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Pair(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def issue(
    authority: Pair, use: Use, name: str, names: Sequence[str], days: int, now: datetime
) -> Pair:
    """A leaf, with `names` as its subject alternative names. Raises ConfigurationError."""
    if use is not Use.CLIENT and not names:
        raise ConfigurationError(f"a {use.value}'s certificate needs --san: nobody looks at its CN")
    (signer,) = read_chain(authority.certificate, "the authority")[:1]
    if not facts_of(signer).is_authority:
        raise ConfigurationError("the authority's certificate is no CA's")
    signing_key = read_key(authority.key, "the authority's key")
    if signing_key.public_key() != signer.public_key():
        raise ConfigurationError("the authority's key is not that of its certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_subject(name), signer.subject, key.public_key(), days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(use.purposes), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False
    )
    if names:
        alternatives = x509.SubjectAlternativeName(list(map(_general_name, names)))
        builder = builder.add_extension(alternatives, critical=False)
    return Pair(_pem(builder.sign(signing_key, hashes.SHA256())), _key_pem(key))


def read_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """Raises ConfigurationError; its message says nothing of the content."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{what} is no unencrypted ECDSA key in PEM")
    return key


def _general_name(text: str) -> x509.GeneralName:
    if text.startswith("proglog:") or "://" in text:
        return x509.UniformResourceIdentifier(text)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError:
        raise ConfigurationError(f"--san {quoted(text)} is no name") from None


def _subject(name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError:
        raise ConfigurationError(f"--cn is {quoted(name)}: expected 1 to 64 characters") from None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    now: datetime,
) -> x509.CertificateBuilder:
    if not 1 <= days <= DAYS_MAX:
        raise ConfigurationError(f"--days is {days}: expected 1 to {DAYS_MAX}")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
