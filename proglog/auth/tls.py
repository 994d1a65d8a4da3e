"""TLS contexts, made from what was read of files and never changed afterwards.

Clients and peers have contexts that share nothing: other authorities, other protocols (ALPN). There
is no resumption: a ticket would outlive the certificate that it was given for. The checks of
OpenSSL are the same on every Python: newer ones would also refuse authorities that plain `openssl
req -x509` makes.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from proglog.auth.certificates import Facts, read_facts
from proglog.errors import ConfigurationError

ALPN_FRAMES, ALPN_CALLS = "proglog-raft/1", "proglog-peer/1"
"""What peers speak: frames of logs, and gRPC."""
ALPN_HTTP, ALPN_GRPC = "http/1.1", "h2"
PEERS = (ALPN_FRAMES, ALPN_CALLS)
CLIENTS = (ALPN_HTTP, ALPN_GRPC)
"""In this order: curl offers both and must land on HTTP, while gRPC clients offer h2 only."""

_CIPHERS_OF_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"
_WHY = re.compile(r"\[\w+: \w+\] (?P<why>.*?)(?: \(_ssl\.c:\d+\))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the files of one party hold: PEM. Shows no key."""

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    """Of those at the other end; empty where none is asked for a certificate."""


class Contexts(NamedTuple):
    """All that a node needs."""

    clients: ssl.SSLContext
    peers: ssl.SSLContext
    dialling: Mapping[str, ssl.SSLContext]
    """To peers, by protocol."""
    server: Facts
    peer: Facts


class _Handshake(ssl.SSLObject):
    """One whose failure keeps the alert that OpenSSL has for the other end. Both event loops would
    drop it, and the other end then hears nothing but the end of the connection."""

    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            error.alert = self.outgoing.read()  # type: ignore[attr-defined]  # for `alert_of`
            raise


class _Accepting(ssl.SSLContext):
    sslobject_class = _Handshake

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any
    ) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, *args, **kwargs)
        assert isinstance(made, _Handshake)
        made.outgoing = outgoing
        return made


def alert_of(error: BaseException) -> bytes:
    """What to send to the other end of a handshake that failed by this; perhaps nothing."""
    return getattr(error, "alert", b"")


def contexts(
    server: Material, peer: Material, *, min_version: ssl.TLSVersion, now: datetime
) -> Contexts:
    """Judges the files of a node and makes its contexts. Raises ConfigurationError."""
    server_facts = judge(server, "server-tls", needs=("server",), now=now)
    peer_facts = judge(peer, "peer-tls", needs=("server", "client"), now=now)
    return Contexts(
        _accepting(server, "server-tls", CLIENTS, min_version),
        _accepting(peer, "peer-tls", PEERS, ssl.TLSVersion.TLSv1_3),
        {protocol: _dialling(peer, "peer-tls", protocol) for protocol in PEERS},
        server_facts,
        peer_facts,
    )


def judge(material: Material, what: str, *, needs: tuple[str, ...], now: datetime) -> Facts:
    """Whether certificates will do, beyond what OpenSSL finds out by itself: it takes a leaf for an
    authority, and says nothing of dates until somebody calls. Raises ConfigurationError."""
    facts = read_facts(material.certificate, f"{what}-cert-file")[0]
    _check_dates(facts, f"{what}-cert-file", now)
    if missing := [use for use in needs if facts.uses and use not in facts.uses]:
        raise ConfigurationError(
            f"{what}-cert-file is not for a {missing[0]}: its extended key usage says "
            f"{' and '.join(facts.uses)} only"
        )
    if material.authority:
        for authority in read_facts(material.authority, f"{what}-ca-file"):
            if not authority.is_authority:
                raise ConfigurationError(f"{what}-ca-file holds a certificate that is no CA's")
    return facts


def _check_dates(facts: Facts, what: str, now: datetime) -> None:
    if not facts.not_before <= now < facts.not_after:
        raise ConfigurationError(
            f"{what} is valid from {facts.not_before:%Y-%m-%d %H:%M} to "
            f"{facts.not_after:%Y-%m-%d %H:%M} UTC only, and it is {now:%Y-%m-%d %H:%M}"
        )


def _accepting(
    material: Material, what: str, protocols: tuple[str, ...], min_version: ssl.TLSVersion
) -> ssl.SSLContext:
    context = _Accepting(ssl.PROTOCOL_TLS_SERVER)
    _set_up(context, min_version)
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    _load(context, material, what)
    if material.authority:
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(list(protocols))
    return context


def _dialling(material: Material, what: str, protocol: str) -> ssl.SSLContext:
    """For a peer that dials peers, whose names it checks itself: the certificate names a server of
    the configuration, wherever that is found. Raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _set_up(context, ssl.TLSVersion.TLSv1_3)
    context.check_hostname = False
    _load(context, material, what)
    context.set_alpn_protocols([protocol])
    return context


def client(authority: bytes, certificate: bytes, key: bytes, what: str = "tls") -> ssl.SSLContext:
    """For a client; without an authority the system's are trusted. Raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _set_up(context, ssl.TLSVersion.TLSv1_2)
    context.set_alpn_protocols([ALPN_GRPC])
    if not authority:
        context.load_default_certs()
    if certificate or authority:
        material = Material(certificate=certificate, key=key, authority=authority)
        _load(context, material, what)
    return context


def _set_up(context: ssl.SSLContext, min_version: ssl.TLSVersion) -> None:
    context.minimum_version = min_version
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST
    if min_version < ssl.TLSVersion.TLSv1_3:
        context.set_ciphers(_CIPHERS_OF_1_2)


def _load(context: ssl.SSLContext, material: Material, what: str) -> None:
    if material.certificate:
        _load_chain(context, material, what)
    if material.authority:
        try:
            context.load_verify_locations(cadata=material.authority.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise ConfigurationError(f"{what}-ca-file holds no certificates in PEM") from None


def _load_chain(context: ssl.SSLContext, material: Material, what: str) -> None:
    """From the bytes that were read, never from the files again: those may be others by now."""
    with _Unlinked(material.certificate + b"\n" + material.key) as path:
        try:
            context.load_cert_chain(path, password=_refuse_password)
        except _Encrypted:
            raise ConfigurationError(
                f"{what}-key-file is encrypted: nobody is there to be asked for its password"
            ) from None
        except (ssl.SSLError, ValueError) as error:
            why = getattr(error, "reason", None)
            if why == "KEY_VALUES_MISMATCH":
                why = "they do not belong together"
            raise ConfigurationError(
                f"{what}-cert-file and {what}-key-file cannot be used: "
                f"{why or 'no certificate and key in PEM'}"
            ) from None


class _Unlinked:
    """Bytes as a file that only this process can open, for OpenSSL takes keys from files only."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __enter__(self) -> str:
        self._descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
        view = memoryview(self._content)
        while view:
            view = view[os.write(self._descriptor, view) :]
        return f"/proc/self/fd/{self._descriptor}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class _Encrypted(Exception):
    pass


def _refuse_password() -> bytes:
    # Without it OpenSSL asks on the terminal, and waits.
    raise _Encrypted


def why_failed(error: BaseException) -> str:
    """What went wrong in a handshake, in OpenSSL's words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        found = _WHY.fullmatch(str(error.args[-1]))
        return found["why"] if found else str(error.reason or error)
    return str(error)
