"""Who takes a connection, by what it speaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from proglog.auth.principal import Principal
from proglog.auth.tls import ALPN_CALLS, ALPN_FRAMES, ALPN_GRPC, ALPN_HTTP

ProtocolFactory = Callable[[Principal], asyncio.BaseProtocol]
"""Makes the protocol of one connection, told who is at its other end."""

HTTP2_PREFACE = b"PRI "
_RAFT = 0x01


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Without `raft` its connections are closed; without `grpc` its are left to HTTP."""

    http: ProtocolFactory
    grpc: ProtocolFactory | None = None
    raft: ProtocolFactory | None = None

    def by_prefix(self, prefix: bytes) -> ProtocolFactory | None:
        if prefix[:1] == bytes((_RAFT,)):
            return self.raft
        return (self.grpc if prefix.startswith(HTTP2_PREFACE) else None) or self.http

    def by_protocol(self, name: str) -> ProtocolFactory | None:
        """By what was negotiated (ALPN)."""
        return {
            ALPN_FRAMES: self.raft,
            ALPN_CALLS: self.grpc,
            ALPN_HTTP: self.http,
            ALPN_GRPC: self.grpc,
        }[name]


def is_undecided(prefix: bytes) -> bool:
    """Whether more first bytes are needed to tell."""
    return len(prefix) < len(HTTP2_PREFACE) and HTTP2_PREFACE.startswith(prefix)
