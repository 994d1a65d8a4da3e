"""Who is at the other end of a connection: made once, after the handshake, and never changed."""

from __future__ import annotations

import enum
import unicodedata
from dataclasses import dataclass

from proglog.auth.certificates import Facts
from proglog.errors import Unauthenticated

SUBJECT_CHARACTERS_MAX = 128
PEER_URI = "proglog:peer:"
"""Before the name of a node, or CLUSTER/NODE, in a URI among a certificate's names."""


class Kind(enum.Enum):
    """What a connection may be used for at all, before any policy is asked."""

    ANONYMOUS = "anonymous"
    CLIENT = "client"
    PEER = "peer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """`subject` is what policies know; `names` are the certificate's alternative names."""

    kind: Kind
    subject: str
    names: tuple[str, ...] = ()
    not_after: float = float("inf")
    """Unix time from which on the certificate is void."""
    fingerprint: str = ""
    facts: Facts | None = None
    source: str = ""
    """Host and port that the connection comes from."""


ANONYMOUS = Principal(kind=Kind.ANONYMOUS, subject="@anonymous")
"""Nobody has proved anything."""


def client(facts: Facts, source: str = "") -> Principal:
    """Of a client's certificate: its one CN is the subject. Raises Unauthenticated.

    What the file format of policies cannot express is no subject, nor what looks like another one.
    """
    if any(uri.startswith(PEER_URI) for uri in facts.uris):
        raise Unauthenticated("the certificate is a node's, not a client's")
    if len(facts.common_names) != 1:
        raise Unauthenticated(f"the certificate has {len(facts.common_names)} CNs: expected one")
    (subject,) = facts.common_names
    if why := _why_no_subject(subject):
        raise Unauthenticated(f"the certificate's CN {why}")
    return _principal(Kind.CLIENT, subject, facts, source)


def peer(facts: Facts, source: str = "") -> Principal:
    """Of a certificate that the peers' authority has signed. Which node it is, the greeting says,
    and `names_node` whether that is true."""
    return _principal(Kind.PEER, "@peer", facts, source)


def anonymous(source: str) -> Principal:
    """Somebody without a certificate."""
    return Principal(kind=Kind.ANONYMOUS, subject=ANONYMOUS.subject, source=source)


def _principal(kind: Kind, subject: str, facts: Facts, source: str) -> Principal:
    return Principal(
        kind=kind,
        subject=subject,
        names=facts.names,
        not_after=facts.not_after.timestamp(),
        fingerprint=facts.fingerprint,
        facts=facts,
        source=source,
    )


def _why_no_subject(text: str) -> str:
    if not 0 < len(text) <= SUBJECT_CHARACTERS_MAX:
        return f"has {len(text)} characters: expected 1 to {SUBJECT_CHARACTERS_MAX}"
    if not text.isprintable() or text != text.strip():
        return "holds control characters, or blanks at an end"
    if text != unicodedata.normalize("NFC", text):
        return "is not in Unicode's normal form NFC"
    if "," in text or '"' in text:
        return "holds a comma or a quotation mark, which no policy can name"
    return "begins with @, which is reserved" if text.startswith("@") else ""


def names_node(facts: Facts, *, node: str, cluster: str, host: str) -> bool:
    """Whether a certificate is that of a node, of which `host` is the configured address.

    One that says `proglog:peer:` is that node's alone. Any other is taken by the host that it
    names: certificates of cfssl, cert-manager, or one wildcard for a whole StatefulSet. The CN is
    never looked at.
    """
    uris = [uri.removeprefix(PEER_URI) for uri in facts.uris if uri.startswith(PEER_URI)]
    if uris:
        return node in uris or f"{cluster}/{node}" in uris
    host = host.lower().rstrip(".")
    if not host:
        return False
    return host in facts.addresses or any(_matches(name.lower(), host) for name in facts.dns)


def _matches(pattern: str, host: str) -> bool:
    """Whether a DNS name is that of a host; one left-most label may be a wildcard."""
    if pattern.startswith("*."):
        first, dot, rest = host.partition(".")
        return bool(first and dot) and rest == pattern[2:]
    return pattern == host
