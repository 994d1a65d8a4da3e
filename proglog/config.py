"""What an operator chooses: one frozen dataclass for each part, checked when it is made.

Bounds that nobody should have to choose are in `proglog.limits`. Units are part of the names; the
command line also takes "128MiB" and "7d". A wrong value raises ConfigurationError, which says
which setting, by the name that it has for an operator, what was given, and what would do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from proglog import limits
from proglog.errors import ConfigurationError, quoted

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
TlsMode: TypeAlias = Literal["off", "optional", "required"]
LogFormat: TypeAlias = Literal["auto", "console", "json"]

_NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_CLUSTER_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_CHARACTERS = "letters, digits, '.', '_' or '-', beginning and ending with one of the first"


def _require(holds: bool, setting: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigurationError(f"{setting} is {value}: expected {expected}", setting=setting)


def is_node_name(text: str) -> bool:
    """Whether a node may be called so."""
    return _NODE_NAME.fullmatch(text) is not None


def _has_labels(host: str) -> bool:
    """Whether a name and its parts are as long as they may be; else nobody can even look it up."""
    return len(host) <= 253 and all(
        0 < len(label) < 64 for label in host.removesuffix(".").split(".")
    )


class Address(NamedTuple):
    """Where to listen or connect. `host` is a name or an IP address, without brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, setting: str = "address", port: int | None = None) -> Address:
        """Reads "host:port", "[::1]:port" or, if a default port is given, just "host".

        Raises ConfigurationError, naming `setting`.
        """
        match = re.fullmatch(r"(?:\[([^]]+)\]|([^:\s]*))(?::(\d{1,5}))?", text)
        host = match and (match[1] or match[2] or "127.0.0.1")
        number = match and (match[3] or port)
        if not host or not _has_labels(host) or number is None or int(number) > 65535:
            expected = "host:port" if port is None else "host or host:port"
            raise ConfigurationError(
                f"{setting} is {quoted(text)}: expected {expected}", setting=setting
            )
        return cls(host, int(number))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        literal = self.literal
        return self.host == "localhost" or (literal is not None and literal.is_loopback)

    @property
    def is_unspecified(self) -> bool:
        """Whether it means every address of a machine: one can listen there, and reach nobody."""
        literal = self.literal
        return literal is not None and literal.is_unspecified

    @property
    def literal(self) -> IPv4Address | IPv6Address | None:
        """The host as an IP address; None for a name."""
        try:
            address = ip_address(self.host)
        except ValueError:
            return None
        return getattr(address, "ipv4_mapped", None) or address

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def split_addresses(text: str) -> list[str]:
    """Those of "host:port,host:port", not yet read; none where one of them is empty."""
    addresses = text.split(",")
    return addresses if all(addresses) else []


def join_addresses(addresses: Iterable[Address]) -> str:
    """As "host:port,host:port"."""
    return ",".join(map(str, addresses))


RPC_PORT_DEFAULT = 8400
CLUSTER_NAME_DEFAULT = "proglog"
BIND_ADDR_DEFAULT = Address("127.0.0.1", 8401)
HTTP_ADDR_DEFAULT = Address("127.0.0.1", 8080)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """How a log is stored.

    Attributes:
        segment_bytes: a segment is sealed before it grows beyond this.
        segment_batches: or before it holds more batches than this.
        retention_bytes: the oldest segments go while the log is larger; None keeps everything.
        retention_seconds: segments go once all in them is older; None keeps everything.
        retention_check_seconds: how often the two are looked at.
    """

    segment_bytes: int = limits.segment_bytes_default
    segment_batches: int = limits.segment_batches_default
    retention_bytes: int | None = None
    retention_seconds: float | None = None
    retention_check_seconds: float = 30.0

    def __post_init__(self) -> None:
        _require(
            limits.segment_preamble_bytes < self.segment_bytes <= limits.segment_bytes_max,
            "segment-bytes",
            self.segment_bytes,
            f"more than {limits.segment_preamble_bytes} and at most {limits.segment_bytes_max}",
        )
        _require(
            limits.segment_batches_min <= self.segment_batches <= limits.segment_batches_max,
            "segment-batches",
            self.segment_batches,
            f"{limits.segment_batches_min} to {limits.segment_batches_max}",
        )
        if self.retention_bytes is not None:
            _require(
                self.retention_bytes >= self.segment_bytes,
                "retention-bytes",
                self.retention_bytes,
                f"at least one segment ({self.segment_bytes}), for whole segments are deleted",
            )
        _require(
            self.retention_seconds is None or self.retention_seconds > 0,
            "retention-time",
            self.retention_seconds,
            "more than 0",
        )
        _require(
            self.retention_check_seconds > 0,
            "retention-check",
            self.retention_check_seconds,
            "more than 0",
        )

    @classmethod
    def for_tests(cls) -> LogConfig:
        """Segments so small that a few records roll them."""
        return cls(segment_bytes=28 * limits.KiB, segment_batches=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityConfig:
    """Who may talk to a node, and how it proves who it is.

    Attributes:
        tls: off, optional (for turning it on or off by rolling restarts) or required; the last once
            there is a certificate, unless told.
        tls_min_version: 1.3, or 1.2 for old clients; peers speak 1.3.
        server_tls_cert_file: certificate that is shown to clients, and what leads to its authority.
        server_tls_key_file: its key.
        server_tls_ca_file: authorities that sign clients' certificates.
        peer_tls_cert_file: certificate that is shown to other nodes; the server's unless given.
        peer_tls_key_file: its key.
        peer_tls_ca_file: authorities that sign nodes' certificates; the clients' unless given.
        client_auth: required, or none: everybody is @anonymous.
        acl_model_file: Casbin model of what clients may do.
        acl_policy_file: Casbin policy of what clients may do.
        audit_file: where it is told who did what; the log unless given, with TLS or a policy.
        audit_required: refuse changes of the cluster while the audit file cannot be written.
        allow_all_clients: with TLS and without a policy, whoever has a certificate may do all.
        allow_plaintext: serve without TLS, and gossip without keys, beyond this machine.
        allow_plaintext_gossip: gossip without keys beyond this machine.
    """

    tls: TlsMode | None = None
    tls_min_version: Literal["1.2", "1.3"] = "1.3"
    server_tls_cert_file: Path | None = None
    server_tls_key_file: Path | None = None
    server_tls_ca_file: Path | None = None
    peer_tls_cert_file: Path | None = None
    peer_tls_key_file: Path | None = None
    peer_tls_ca_file: Path | None = None
    client_auth: Literal["required", "none"] = "required"
    acl_model_file: Path | None = None
    acl_policy_file: Path | None = None
    audit_file: Path | None = None
    audit_required: bool = False
    allow_all_clients: bool = False
    allow_plaintext: bool = False
    allow_plaintext_gossip: bool = False

    def __post_init__(self) -> None:
        _require_both(self, "server_tls_cert_file", "server_tls_key_file")
        _require_both(self, "peer_tls_cert_file", "peer_tls_key_file")
        _require_both(self, "acl_model_file", "acl_policy_file")
        if self.audit_required and self.audit_file is None:
            raise ConfigurationError(
                "audit-required needs audit-file: what is required is kept", setting="audit-file"
            )
        if self.mode == "off":
            return
        if self.server_tls_cert_file is None:
            raise ConfigurationError(
                f"tls is {self.mode}, which needs a certificate: give server-tls-cert-file, "
                "server-tls-key-file and server-tls-ca-file (`proglog certs init` makes them)",
                setting="server-tls-cert-file",
            )
        if self.server_tls_ca_file is None and self.client_auth == "required":
            raise ConfigurationError(
                "without server-tls-ca-file no client can prove who it is: give it, or say "
                "client-auth none, and everybody is @anonymous",
                setting="server-tls-ca-file",
            )
        if self.peer_tls_ca_file is None and self.server_tls_ca_file is None:
            raise ConfigurationError(
                "without peer-tls-ca-file no node can prove who it is", setting="peer-tls-ca-file"
            )
        if self.acl_policy_file is None and not self.allow_all_clients:
            raise ConfigurationError(
                "nothing says what clients may do: give acl-model-file and acl-policy-file, or "
                "allow-all-clients, and whoever has a certificate may do all",
                setting="acl-policy-file",
            )

    @property
    def mode(self) -> TlsMode:
        """Whether TLS is spoken."""
        return self.tls or ("off" if self.server_tls_cert_file is None else "required")


def _require_both(config: SecurityConfig, first: str, second: str) -> None:
    given = [name for name in (first, second) if getattr(config, name) is not None]
    if len(given) == 1:
        missing = (second if given[0] == first else first).replace("_", "-")
        raise ConfigurationError(
            f"{given[0].replace('_', '-')} is given without {missing}", setting=missing
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """One node: where it keeps its data, where it listens, how it stops and what it tells.

    Attributes:
        data_dir: holds everything that must survive; made where missing.
        node_name: the node's name in the cluster; empty is the name that the data directory
            belongs to, or the host's for a new one.
        cluster_name: that of all nodes of the cluster; gossip of another name is refused.
        bind_addr: where gossip listens; its host is where the RPC port listens as well. [::] is
            every address of the machine, of IPv4 too.
        advertise_addr: what other nodes and clients are told instead of the RPC port's address: a
            name, which they resolve whenever they dial, or an IP address. Port 0 is the RPC port.
        rpc_port: gRPC and HTTP, told apart by the first bytes. 0 takes a free port.
        http_addr: HTTP alone; None turns this listener off. Port 0 takes a free port.
        health_addr: probes and metrics alone, from the first moment of a start; None turns this
            listener off. It is plaintext, and answers to any host.
        http_origins: pages that browsers let use this node (CORS), as https://app.example.
        http_hosts: names besides loopback that plain HTTP answers to (the Host header).
        start_join_addrs: gossip addresses of other nodes, tried until one answers.
        bootstrap: begin a cluster of one on the first start, or wait until a cluster adds this
            node; None does the former unless there is somebody to join or expect.
        bootstrap_expect: form a cluster once so many new nodes see each other; 0 does not.
        gossip_keys: base64 keys that encrypt gossip, the one to use first.
        dead_server_after_seconds: a server that is gone this long is removed, if the others can do
            without it.
        drain_seconds: requests and streams under way get this long to end when the node stops.
        log: how the log is stored.
        security: who may talk to it, and how it proves who it is.
        log_level: least severe messages that are written to stderr.
        log_format: "auto" is lines for people on a terminal and JSON elsewhere.
    """

    data_dir: Path = Path("data")
    node_name: str = ""
    cluster_name: str = CLUSTER_NAME_DEFAULT
    bind_addr: Address = BIND_ADDR_DEFAULT
    advertise_addr: Address | None = None
    rpc_port: int = RPC_PORT_DEFAULT
    http_addr: Address | None = HTTP_ADDR_DEFAULT
    health_addr: Address | None = None
    http_hosts: tuple[str, ...] = ()
    http_origins: tuple[str, ...] = ()
    start_join_addrs: tuple[str, ...] = ()
    bootstrap: bool | None = None
    bootstrap_expect: int = 0
    gossip_keys: tuple[str, ...] = field(default=(), repr=False)
    dead_server_after_seconds: float = 3600.0
    drain_seconds: float = limits.drain_seconds_default
    log: LogConfig = field(default_factory=LogConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"

    def __post_init__(self) -> None:
        _require(
            not self.node_name or is_node_name(self.node_name),
            "node-name",
            repr(self.node_name),
            f"1 to 128 {_CHARACTERS}",
        )
        _require(
            _CLUSTER_NAME.fullmatch(self.cluster_name) is not None,
            "cluster-name",
            repr(self.cluster_name),
            f"1 to 64 {_CHARACTERS}",
        )
        _require(0 <= self.rpc_port <= 65535, "rpc-port", self.rpc_port, "0 to 65535")
        self._check_what_is_told()
        _require(
            not (self.bootstrap and self.bootstrap_expect),
            "bootstrap-expect",
            self.bootstrap_expect,
            "0 together with bootstrap: a node begins a cluster alone or with others, not both",
        )
        _require(
            self.bootstrap_expect in {0, *range(2, limits.voters_max + 1)},
            "bootstrap-expect",
            self.bootstrap_expect,
            f"2 to {limits.voters_max}, or 0",
        )
        for text in self.start_join_addrs:
            address = Address.parse(text, "start-join-addrs")
            _require(
                address.port > 0 and not text.startswith(":"),
                "start-join-addrs",
                repr(text),
                "host:port of another node",
            )
        for text in self.http_hosts:
            Address.parse(text, "http-hosts", RPC_PORT_DEFAULT)
            _require(
                not text.startswith(":"),
                "http-hosts",
                repr(text),
                "a name, without its port or with",
            )
        for text in self.http_origins:
            _require(
                re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(\+credentials)?", text) is not None,
                "http-origins",
                repr(text),
                "scheme://host[:port] of a page, +credentials behind it where it may send those",
            )
        _require(self.drain_seconds >= 0, "drain-timeout", self.drain_seconds, "0 or more")
        for setting, listener in (("http-addr", self.http_addr), ("health-addr", self.health_addr)):
            _require(
                listener is None or listener.port == 0 or listener != self.rpc_addr,
                setting,
                listener,
                "another address than that of the RPC port, which answers HTTP anyway",
            )

    def _check_what_is_told(self) -> None:
        """What reaches nobody, or whoever asks, would be in the configuration for good."""
        told = self.advertise_addr
        if told is not None:
            _require(
                not told.is_unspecified,
                "advertise-addr",
                told.host,
                "the name or the address by which other nodes reach this one",
            )
            return
        _require(
            not self.bind_addr.is_unspecified,
            "bind-addr",
            self.bind_addr,
            "advertise-addr with it, as others cannot be told to dial every address: give the name "
            "or the address by which they reach this node",
        )

    def told_addr(self, rpc_port: int) -> Address:
        """What others are told, where the RPC port is this one."""
        told = self.advertise_addr or Address(self.bind_addr.host, rpc_port)
        return told if told.port else Address(told.host, rpc_port)

    @property
    def holds_keys(self) -> bool:
        """Whether the process of this node gets to know secrets."""
        return bool(self.gossip_keys) or self.security.mode != "off"

    @property
    def begins_alone(self) -> bool:
        """Whether a first start begins a cluster of one."""
        if self.bootstrap is not None:
            return self.bootstrap
        return not self.start_join_addrs and not self.bootstrap_expect

    @property
    def rpc_addr(self) -> Address:
        """Where gRPC and HTTP are served."""
        return Address(self.bind_addr.host, self.rpc_port)

    @classmethod
    def for_tests(cls, data_dir: Path) -> NodeConfig:
        """A node on free ports of loopback, with tiny segments, that stops quickly."""
        return cls(
            data_dir=data_dir,
            node_name="test",
            bind_addr=Address("127.0.0.1", 0),
            rpc_port=0,
            http_addr=Address("127.0.0.1", 0),
            drain_seconds=2.0,
            log=LogConfig.for_tests(),
        )
