"""TLS of one node: its certificates, what it accepts, and how it dials the others."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property, partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import structlog

from proglog import limits
from proglog.auth import tls as contexts
from proglog.auth.audit import Audit, FileSink, LogSink
from proglog.auth.certificates import Facts, facts_of_der
from proglog.auth.gate import OpenGate, PolicyGate
from proglog.auth.policy import MODEL_FILE, POLICY_FILE, Policy
from proglog.auth.principal import Kind, Principal, names_node
from proglog.auth.reload import Outcome, Watched
from proglog.auth.tls import ALPN_CALLS, ALPN_FRAMES, Contexts, Material
from proglog.config import Address, NodeConfig, SecurityConfig
from proglog.errors import ConfigurationError
from proglog.net.dialling import Names, P, dial
from proglog.peers.local import Names as NamesNode
from proglog.ports import Clock
from proglog.rpc.handshake import Tls

_logger = structlog.get_logger("security")

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_NO_TLS_THERE = "TLSV1_ALERT_PROTOCOL_VERSION"
"""What a node answers whose TLS is off."""


class Security:
    """See the module. `load` it first."""

    def __init__(self, config: NodeConfig, clock: Clock) -> None:
        self._config = config.security
        self._cluster = config.cluster_name
        self._clock = clock
        self._names = Names()
        self._files = Watched("tls", _files(config.security), self._build)
        self.audit = self._make_audit(config.node_name, config.cluster_name)
        self._policy = Watched("acl", _policy_files(config.security), Policy)
        self._deciding = ThreadPoolExecutor(1, "proglog-policy")
        self._plaintext_until: dict[Address, float] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def is_off(self) -> bool:
        return self._config.mode == "off"

    @property
    def is_required(self) -> bool:
        return self._config.mode == "required"

    async def load(self) -> None:
        """Reads and judges the files. Raises ConfigurationError."""
        if not self.is_off:
            await self._files.load()
        if self._config.acl_policy_file is not None:
            await self._policy.load()

    def close(self) -> None:
        """Nothing is decided any more."""
        self._deciding.shutdown(wait=False)

    @cached_property
    def gate(self) -> OpenGate | PolicyGate:
        """Who decides, once the files are loaded."""
        if self._config.acl_policy_file is None:
            return OpenGate(peers_prove=self.is_required, audit=self.audit)
        return PolicyGate(
            lambda: self._policy.value,
            self._deciding,
            peers_prove=self.is_required,
            audit=self.audit,
        )

    @property
    def contexts(self) -> Contexts:
        """Those in force."""
        return self._files.value

    def tls(self) -> Tls | None:
        """For a port; None where it is plaintext."""
        if self.is_off:
            return None
        return Tls(
            contexts=lambda: self._files.value, is_required=self.is_required, refused=self._refused
        )

    def _make_audit(self, node: str, cluster: str) -> Audit | None:
        """None where anybody may do all, and nobody asked for it."""
        path = self._config.audit_file
        if path is None and self.is_off and self._config.acl_policy_file is None:
            return None
        return Audit(
            LogSink() if path is None else FileSink(path),
            node=node,
            cluster=cluster,
            now_ms=self._clock.now_ms,
            is_required=self._config.audit_required,
        )

    def _refused(self, source: str, why: str) -> None:
        if self.audit is not None:
            self.audit.refused(source, why)

    # --- files that change -----------------------------------------------------------------------

    async def watch(self) -> None:
        """Takes new files as they come, for ever."""
        while True:
            await asyncio.sleep(limits.reload_seconds)
            await self.reload()

    async def reload(self, *, at_once: bool = False) -> None:
        """Looks at the files. Whoever says that they are whole has them judged `at_once`."""
        for watched in self._watched:
            outcome = await watched.poll(at_once=at_once)
            if outcome is Outcome.UNCHANGED:
                continue
            problem = watched.problem
            if problem:
                _logger.error("new files are not used", what=watched.what, why=problem)
            else:
                _logger.info("new files are used", what=watched.what)
            if self.audit is not None:
                self.audit.reloaded(watched.what, problem, self.policy_version)
            if watched is self._policy and isinstance(self.gate, PolicyGate) and not problem:
                await self.gate.policy_changed()

    @property
    def _watched(self) -> list[Watched[Any]]:
        certificates = [] if self.is_off else [self._files]
        return [*certificates, *([] if self._config.acl_policy_file is None else [self._policy])]

    @property
    def policy_version(self) -> str:
        """A digest of model and policy; empty without."""
        return "" if self._config.acl_policy_file is None else self._policy.value.version

    def measure(self, gauge: Callable[[str, str, Callable[[], float]], None]) -> None:
        """What operators are to be warned by."""
        gauge(
            "reload_failed",
            "Files of certificates or policies that are not used, as they are not good.",
            lambda: sum(bool(watched.problem) for watched in self._watched),
        )
        audit = self.audit
        if audit is not None:
            gauge("audit_lost", "Lines of the audit trail that were lost.", lambda: audit.lost)
        if not self.is_off:
            for use in ("server", "peer"):
                gauge(
                    f"{use}_certificate_expires_seconds",
                    f"Unix time at which the {use}'s certificate expires.",
                    partial(self._expires, use),
                )

    def _expires(self, use: str) -> float:
        facts: Facts = getattr(self.contexts, use)
        return facts.not_after.timestamp()

    def _build(self, contents: Mapping[str, bytes]) -> Contexts:
        server = _material(contents, "server")
        peer = _material(contents, "peer")
        return contexts.contexts(
            server,
            peer,
            min_version=_VERSIONS[self._config.tls_min_version],
            now=datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC),
        )

    # --- whose certificate -----------------------------------------------------------------------

    def names_of(self, principal: Principal) -> NamesNode | None:
        """Whose certificate a caller of the Raft port has; None without TLS."""
        if principal.kind is not Kind.PEER or principal.facts is None:
            return None
        return self._names_node(principal.facts)

    def names_at(self, transport: asyncio.BaseTransport) -> NamesNode | None:
        """Whose certificate is at the other end of a connection that we dialled."""
        wire = transport.get_extra_info("ssl_object")
        if wire is None:
            assert not self.is_required, "nothing else than TLS is dialled"
            return None
        return self._names_node(facts_of_der(wire.getpeercert(binary_form=True)))

    def _names_node(self, facts: Facts) -> NamesNode:
        def names(node: str, host: str) -> bool:
            return names_node(facts, node=node, cluster=self._cluster, host=host)

        return names

    # --- dialling --------------------------------------------------------------------------------

    async def connect(self, address: str, factory: Callable[[], asyncio.Protocol]) -> None:
        """Opens a connection for frames. Raises OSError."""
        await self._dial(factory, Address.parse(address), ALPN_FRAMES)

    @property
    def way(self) -> PeerWay:
        """For calls of one node to another."""
        return PeerWay(self)

    async def _dial(
        self, factory: Callable[[], P], address: Address, protocol: str
    ) -> tuple[asyncio.BaseTransport, P]:
        if self.is_off or self._plaintext_until.get(address, 0) > self._loop.time():
            return await dial(factory, address, find=self._names.find)
        context = self.contexts.dialling[protocol]
        try:
            return await dial(factory, address, context, find=self._names.find)
        except ssl.SSLError as error:
            if self.is_required or error.reason != _NO_TLS_THERE:
                raise
        self._remember_plaintext(address)
        return await dial(factory, address, find=self._names.find)

    def _remember_plaintext(self, address: Address) -> None:
        """Whoever is in between can bring this about: so it is for rolling restarts only, and is
        told."""
        if len(self._plaintext_until) >= limits.names_max:
            self._plaintext_until.pop(next(iter(self._plaintext_until)))
        if address not in self._plaintext_until:
            _logger.warning("no TLS with a peer, whose TLS is off", peer=str(address))
        self._plaintext_until[address] = self._loop.time() + limits.plaintext_fallback_seconds


class PeerWay:
    """A way to dial, for a client that asks other nodes in this node's name."""

    version = 0

    def __init__(self, security: Security) -> None:
        self._security = security
        self.scheme = "http" if security.is_off else "https"

    async def refresh(self) -> None:
        """The node does that."""

    async def dial(
        self, factory: Callable[[], P], address: Address
    ) -> tuple[asyncio.BaseTransport, P]:
        return await self._security._dial(factory, address, ALPN_CALLS)


def check_listener(config: NodeConfig, bound: tuple[str, int]) -> None:
    """Whether a port may be served as it is configured. The bound address counts: a name may be
    anybody's. Raises ConfigurationError."""
    security = config.security
    if ip_address(bound[0]).is_loopback:
        return
    if security.mode == "off" and not security.allow_plaintext:
        raise ConfigurationError(
            f"{bound[0]} is reached from other machines, and nothing is encrypted or proved there: "
            "give server-tls-cert-file, server-tls-key-file and server-tls-ca-file, or say "
            "allow-plaintext",
            setting="allow-plaintext",
        )
    if config.gossip_keys or security.allow_plaintext or security.allow_plaintext_gossip:
        return
    raise ConfigurationError(
        f"gossip on {bound[0]} is reached from other machines: give gossip-keys, or say "
        "allow-plaintext-gossip",
        setting="gossip-keys",
    )


def _files(config: SecurityConfig) -> dict[str, Path]:
    """By the names of their settings. What is not said of peers is what is said of the server."""
    chosen = {
        "server-tls-cert-file": config.server_tls_cert_file,
        "server-tls-key-file": config.server_tls_key_file,
        "peer-tls-cert-file": config.peer_tls_cert_file or config.server_tls_cert_file,
        "peer-tls-key-file": config.peer_tls_key_file or config.server_tls_key_file,
        "peer-tls-ca-file": config.peer_tls_ca_file or config.server_tls_ca_file,
    }
    if config.client_auth == "required":
        chosen["server-tls-ca-file"] = config.server_tls_ca_file
    return {name: path for name, path in chosen.items() if path is not None}


def _policy_files(config: SecurityConfig) -> dict[str, Path]:
    chosen = {MODEL_FILE: config.acl_model_file, POLICY_FILE: config.acl_policy_file}
    return {name: path for name, path in chosen.items() if path is not None}


def _material(contents: Mapping[str, bytes], party: str) -> Material:
    return Material(
        certificate=contents[f"{party}-tls-cert-file"],
        key=contents[f"{party}-tls-key-file"],
        authority=contents.get(f"{party}-tls-ca-file", b""),
    )
