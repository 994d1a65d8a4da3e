"""TLS on the one port: whose certificate, which protocol, and what the refused hear."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import uvloop
from grpclib.client import Channel

from proglog import limits, wire
from proglog._generated.log import v1
from proglog.auth.certificates import Use
from proglog.auth.client_hello import offered_protocols, record_bytes
from proglog.auth.principal import ANONYMOUS, Kind
from proglog.auth.tls import ALPN_CALLS, ALPN_FRAMES, Contexts
from proglog.rpc.handshake import Tls
from tests.pki import Authority, Files, contexts_of
from tests.rpc.fakes import Node
from tests.rpc.test_mux import talk
from tests.waiting import until

RUNNERS = [asyncio.new_event_loop, uvloop.new_event_loop]


class World:
    """Two authorities, clients' and peers', and what they have signed."""

    def __init__(self, folder: Path) -> None:
        self.clients = Authority(folder, "clients")
        self.peers = Authority(folder, "peers")
        server = self.clients.server()
        self.contexts = contexts_of(server, self.peers.peer())
        self.root = self.clients.client()
        self.peer = self.peers.peer("n1")
        self.refused: list[tuple[str, str]] = []

    def tls(self, *, is_required: bool = True) -> Tls:
        return Tls(
            contexts=lambda: self.contexts,
            is_required=is_required,
            refused=lambda source, why: self.refused.append((source, why)),
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def world(files: World) -> World:
    files.refused.clear()
    return files


@pytest.mark.parametrize("new_loop", RUNNERS)
def test_the_negotiated_protocol_decides(
    world: World, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def work() -> None:
        async with Node(tls=world.tls()) as node:
            channel = Channel(
                node.host, node.port, codec=wire.Codec(), ssl=world.root.context("h2")
            )
            record = v1.ProduceRequest(record=v1.Record(value=b"x"))
            assert (await v1.LogStub(channel).produce(record)).offset == 0
            channel.close()
            raft = world.peer.context(ALPN_FRAMES)
            raft.check_hostname = False
            # Whatever the first byte is: it has been negotiated.
            assert await talk(node, b"PRI * raft", tls=raft) == b"raft:PRI * raft"
            for alpn in (("http/1.1",), ("h2", "http/1.1"), ()):
                assert await talk(node, b"GET /", tls=world.root.context(*alpn)) == b"http:GET /"
            assert [each.principal.subject for each in node.http] == ["root"] * 3
            assert {each.principal.kind for each in node.raft} == {Kind.PEER}
            assert not world.refused
            await until(lambda: node.mux.connections == 0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work())


async def refusal(node: Node, world: World, tls: ssl.SSLContext, first: bytes = b"GET /") -> str:
    """Why a connection is refused, as its own end hears and as the node tells."""
    world.refused.clear()
    try:
        answer = await talk(node, first, tls=tls)
        heard = "" if answer == b"" else repr(answer)
    except ssl.SSLError as error:
        heard = str(error.reason or error).lower().replace("_", " ")
    await until(lambda: node.mux.connections == 0)
    told = "; ".join(why for _source, why in world.refused)
    return f"{heard} | {told}"


@pytest.mark.parametrize("new_loop", RUNNERS)
def test_the_refused_are_told_and_told_of(
    world: World, new_loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    """By TLS's alerts, which both event loops would drop."""
    ca = world.clients
    stranger = Authority(tmp_path, "strangers").client(trusts=ca)
    expired = ca.issue(Use.CLIENT, "late", begins_in=timedelta(days=-9), days=1)
    early = ca.issue(Use.CLIENT, "early", begins_in=timedelta(days=2))
    nobody = ssl.create_default_context(cafile=ca.ca)
    two_names = ca.issue(Use.CLIENT, "@peer")

    async def work() -> None:
        async with Node(tls=world.tls()) as node:
            for tls, wanted in (
                (nobody, "certificate required | peer did not return a certificate"),
                (stranger.context(), "unknown ca | certificate not accepted: unable to get local"),
                (
                    expired.context(),
                    "certificate expired | certificate not accepted: certificate h",
                ),
                (early.context(), "certificate | certificate not accepted: certificate is not yet"),
                (ca.server("web").context(), "certificate | certificate not accepted: unsuitable"),
                (two_names.context(), " | the certificate's CN begins with @"),
            ):
                assert wanted.partition(" | ")[2] in (found := await refusal(node, world, tls)), (
                    found
                )
                assert wanted.partition(" | ")[0] in found
            assert not node.http

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work())


async def test_neither_kind_of_certificate_opens_what_is_the_others(world: World) -> None:
    def as_client(files: Files, *alpn: str) -> ssl.SSLContext:
        context = files.context(*alpn)
        context.load_verify_locations(world.clients.ca)
        context.load_verify_locations(world.peers.ca)
        return context

    both = Authority(world.clients._folder, "both")
    mixed = contexts_of(both.server(), both.peer())
    async with Node(tls=world.tls()) as node:
        for alpn in (ALPN_FRAMES, ALPN_CALLS):
            found = await refusal(node, world, as_client(world.root, alpn), b"\x01")
            assert "certificate not accepted" in found
        assert "certificate not accepted" in await refusal(
            node, world, as_client(world.peer, "http/1.1")
        )
        # No protocol of peers without its name, whatever the first byte.
        assert await talk(node, b"\x01raft", tls=world.root.context()) == b""
        assert await talk(node, b"\x01raft", tls=world.root.context("http/1.1")) == b"http:\x01raft"
        assert not node.raft
    world_contexts, world.contexts = world.contexts, mixed
    try:
        async with Node(tls=world.tls()) as node:
            # One authority for both: a node's certificate is still no client's.
            assert "a node's, not a client's" in await refusal(node, world, both.peer().context())
    finally:
        world.contexts = world_contexts


async def test_offers_of_nothing_or_of_both_kinds_are_refused(world: World) -> None:
    async with Node(tls=world.tls()) as node:
        for alpn in (("spdy/1",), ("h2", ALPN_FRAMES), (ALPN_FRAMES, ALPN_CALLS)):
            found = await refusal(node, world, world.root.context(*alpn))
            assert "no application protocol | it offers no protocol" in found
        assert not node.http
        assert not node.raft


async def test_plaintext_on_a_tls_port_is_answered_in_words(world: World) -> None:
    async with Node(tls=world.tls()) as node:
        answer = await talk(node, b"GET / HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"This port speaks TLS.\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Length: %d" % len(body) in head
        grpc = await talk(node, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert grpc.startswith(bytes.fromhex("000000040000000000"))
        assert grpc.endswith(b"\x00\x00\x00\x0cThis port speaks TLS.")
        assert b"this port speaks TLS" in await talk(node, b"\x01")
        assert {why for _, why in world.refused} == {"it does not speak TLS"}


async def test_optional_takes_both(world: World) -> None:
    async with Node(tls=world.tls(is_required=False)) as node:
        assert await talk(node, b"GET /") == b"http:GET /"
        assert await talk(node, b"\x01") == b"raft:\x01"
        assert await talk(node, b"GET /", tls=world.root.context()) == b"http:GET /"
        kinds = [(each.principal.kind, each.principal.subject) for each in node.http]
        assert kinds == [(Kind.ANONYMOUS, ANONYMOUS.subject), (Kind.CLIENT, "root")]


async def test_a_hello_byte_by_byte_or_never_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Node(tls=world.tls()) as node:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        wire_end = world.root.context("http/1.1").wrap_bio(
            incoming, outgoing, server_hostname="localhost"
        )
        reader, writer = await asyncio.open_connection(node.host, node.port)
        with pytest.raises(ssl.SSLWantReadError):
            wire_end.do_handshake()
        hello = outgoing.read()
        assert offered_protocols(hello) == ("http/1.1",)
        assert record_bytes(hello) == len(hello)
        for byte in hello:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await reader.read(1))[0] == 0x16  # its ServerHello
        writer.close()
        monkeypatch.setattr(limits, "sniff_seconds_max", 0.1)
        assert await talk(node, b"\x16\x03\x01\x00\xff") == b""
        assert (await talk(node, b"\x16\x03\x01\x00\x05junk!"))[:1] == b"\x15"  # an alert
        assert await talk(node, b"", tls=world.root.context()) == b""
        await until(lambda: node.mux.connections == 0)


def test_no_prefix_of_a_hello_is_taken_for_another(world: World) -> None:
    outgoing = ssl.MemoryBIO()
    wire_end = world.root.context("h2").wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        wire_end.do_handshake()
    hello = outgoing.read()
    assert offered_protocols(hello) == ("h2",)
    assert {offered_protocols(hello[:size]) for size in range(len(hello))} == {None}


async def test_each_connection_takes_the_contexts_in_force(world: World) -> None:
    async with Node(tls=world.tls()) as node:
        reader, writer = await asyncio.open_connection(
            node.host, node.port, ssl=world.root.context("http/1.1")
        )
        writer.write(b"GET 1")
        assert await reader.read(100) == b"http:GET 1"
        other = Authority(world.clients._folder, "other")
        old, world.contexts = world.contexts, contexts_of(other.server(), other.peer())
        try:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await talk(node, b"GET", tls=world.root.context("http/1.1"))
            new = other.client().context("http/1.1")
            assert await talk(node, b"GET", tls=new) == b"http:GET"
            writer.write(b"GET 2")
            assert await reader.read(100) == b"http:GET 2"
        finally:
            world.contexts = old
        writer.close()


async def test_no_session_is_resumed(world: World) -> None:
    """A ticket would outlive the certificate that it was given for."""
    async with Node(tls=world.tls()) as node:
        context = world.root.context("http/1.1")

        def has_ticket() -> bool:
            with (
                socket.create_connection((node.host, node.port)) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as wire_end,
            ):
                wire_end.sendall(b"GET")
                wire_end.recv(100)
                return wire_end.session is not None and wire_end.session.has_ticket

        assert not await asyncio.to_thread(has_ticket)


def test_contexts_share_nothing(world: World) -> None:
    contexts: Contexts = world.contexts
    assert contexts.clients.get_ca_certs() != contexts.peers.get_ca_certs()
    assert contexts.clients is not contexts.peers
