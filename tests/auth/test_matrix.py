"""Everybody, at everything that is served: who may is said here a second time, by hand."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from h2.exceptions import StreamClosedError

from proglog._generated.log import v1
from proglog.auth.access import ACCESS, Access, Scope
from proglog.auth.certificates import Use
from proglog.auth.gate import PolicyGate
from proglog.auth.policy import Policy
from proglog.auth.tls import ALPN_CALLS, ALPN_FRAMES
from proglog.gateway import Gateway, Probes
from proglog.gateway.browsers import Browsers
from proglog.gateway.console.feed import Feed
from proglog.net.listening import listen
from proglog.observability.history import History
from proglog.observability.metrics import Metrics
from proglog.rpc.handshake import Tls
from proglog.rpc.mux import Mux
from proglog.rpc.routes import Routes
from proglog.rpc.server import RpcServer
from tests.auth.original import MODEL, files
from tests.pki import Authority, Files, contexts_of
from tests.rpc.fakes import MemoryCluster, MemoryLog, MemoryLogs, Recorder
from tests.rpc.test_mux import talk
from tests.waiting import until

POLICY = b"""p, root, *, produce
p, root, *, consume
p, boss, *, admin
p, looker, *, describe
p, writer, default, produce
p, reader, default, consume
"""

FEED = Feed(History(Metrics(), lambda: 0))

LOOK, PRODUCE, CONSUME, DESCRIBE, CHANGE = (
    ("describe", Scope.CLUSTER),
    ("produce", Scope.LOG),
    ("consume", Scope.LOG),
    ("describe", Scope.LOG),
    ("admin", Scope.CLUSTER),
)
MAY: dict[str, set[tuple[str, Scope]]] = {
    "root": {PRODUCE, CONSUME, DESCRIBE, LOOK},
    "boss": {CHANGE, DESCRIBE, LOOK},
    "looker": {DESCRIBE, LOOK},
    "writer": {PRODUCE, DESCRIBE},
    "reader": {CONSUME, DESCRIBE},
    "nobody": set(),
}
NODES_MAY = {"/log.v1.Log/Describe", "/log.v1.Cluster/Promise"}
"""And remove themselves: see below."""
OPEN = {
    "GET /v1/openapi.json",
    "GET /console/{name}",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "GET /livez",
    "GET /readyz",
    "GET /startupz",
}


def expected(who: str, route: str) -> bool:
    """Whether a client may."""
    action, scope, _ = ACCESS[route]
    return route in OPEN or (action, scope) in MAY[who]


MESSAGES = {"/log.v1.Log/Produce": bytes(v1.ProduceRequest(record=v1.Record(value=b"x")))}
"""What is answered only when it is decided; an empty message will do for the others."""


class Bytes(CodecBase):
    """Messages as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, _type: object) -> bytes:
        return message

    def decode(self, data: bytes, _type: object) -> bytes:
        return data


@dataclass
class Served:
    """A node's servers behind its ports."""

    clients: Authority
    peers: Authority
    log: MemoryLog
    gate: PolicyGate
    port: int = 0
    http_port: int = 0
    host: str = "127.0.0.1"
    refused: list[str] | None = None
    raft: list[Recorder] | None = None


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority, object]:
    folder = tmp_path_factory.mktemp("pki")
    clients, peers = Authority(folder, "clients"), Authority(folder, "peers")
    return clients, peers, contexts_of(clients.server(), peers.peer())


@pytest.fixture(params=[True, False], ids=["required", "optional"])
async def served(request: pytest.FixtureRequest, authorities) -> AsyncIterator[Served]:
    clients, peers, contexts = authorities
    log, raft, refused = MemoryLog(), [], []
    await log.append(b"x")
    logs = MemoryLogs(log)
    policy = await asyncio.to_thread(Policy, files(MODEL, POLICY))
    executor = ThreadPoolExecutor(1)
    gate = PolicyGate(lambda: policy, executor, peers_prove=request.param)
    rpc = RpcServer(logs, MemoryCluster(), gate)
    rpc.set_serving(True)
    probes = Probes(live=lambda: "", ready=lambda: "", started=lambda: "")
    gateway = Gateway(logs, Metrics(), browsers=Browsers([]), probes=probes, feed=FEED, gate=gate)
    await gateway.start()
    tls = Tls(
        contexts=lambda: contexts,
        is_required=request.param,
        refused=lambda _source, why: refused.append(why),
    )
    routes = Routes(
        grpc=rpc.protocol_factory,
        http=gateway.factory,
        raft=lambda who: Recorder("raft", raft, who),
    )
    muxes = [
        Mux(listen("127.0.0.1", 0), routes, tls=tls),
        Mux(listen("127.0.0.1", 0), Routes(http=gateway.factory), tls=tls),
    ]
    serving = [asyncio.ensure_future(mux.serve()) for mux in muxes]
    try:
        ports = [mux.address[1] for mux in muxes]
        yield Served(clients, peers, log, gate, *ports, refused=refused, raft=raft)
    finally:
        for mux in muxes:
            await mux.close()
        await asyncio.gather(*serving)
        await rpc.close()
        await gateway.close()
        executor.shutdown()


async def ask_grpc(served: Served, route: str, context: ssl.SSLContext | None) -> Status | None:
    """The status that a call ends with, or None if it is answered."""
    channel = Channel(served.host, served.port, codec=Bytes(), ssl=context)
    try:
        async with (
            asyncio.timeout(20),
            channel.request(route, Cardinality.STREAM_STREAM, bytes, bytes) as stream,
        ):
            await stream.send_message(MESSAGES.get(route, b""), end=True)
            if await stream.recv_message() is not None:
                with contextlib.suppress(StreamClosedError):  # it has ended by itself
                    await stream.cancel()
            return None
    except GRPCError as error:
        return error.status
    finally:
        channel.close()


async def ask_http(session: aiohttp.ClientSession, base: str, route: str) -> int:
    method, path = route.split(" ")
    body = {"json": {}} if path == "/" else {}
    url = base + path.replace("{offset}", "0").replace("{name}", "nothing.css")
    async with session.request(method, url, **body) as response:
        return response.status


GRPC = sorted(route for route in ACCESS if route.startswith("/"))
HTTP = sorted(route for route in ACCESS if not route.startswith("/"))


@pytest.mark.parametrize("who", MAY)
async def test_each_client_at_each_route(served: Served, who: str) -> None:
    certificate = served.clients.client(who)
    for route in GRPC:
        status = await ask_grpc(served, route, certificate.context("h2"))
        assert (status is not Status.PERMISSION_DENIED) is expected(who, route), (route, status)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=certificate.context("http/1.1"))
    ) as session:
        for port in (served.port, served.http_port):
            for route in HTTP:
                status = await ask_http(session, f"https://127.0.0.1:{port}", route)
                assert (status != 403) is expected(who, route), (route, status)


async def test_a_browser_is_shown_a_page_and_nothing_else(served: Served) -> None:
    """What makes a request one for the console opens no other route."""
    context = served.clients.client("nobody").context("http/1.1")
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context), headers={"Accept": "text/html"}
    ) as session:
        base = f"https://127.0.0.1:{served.port}"
        for path in ("/v1/log", "/v1/tail", "/v1/records/0", "/metrics", "/?offset=0"):
            async with session.get(base + path) as response:
                assert response.status == 403, path
        async with session.get(base + "/") as response:
            assert response.status == 200
            assert response.content_type == "text/html"


async def test_a_node_may_call_what_is_between_nodes_only(served: Served) -> None:
    context = served.peers.peer("n1").context(ALPN_CALLS)
    context.load_verify_locations(served.peers.ca)
    channel = Channel(served.host, served.port, codec=Bytes(), ssl=context)
    channel.close()
    for route in GRPC:
        if route.endswith("/RemoveServer"):
            continue
        status = await ask_grpc(served, route, context)
        allowed = route in NODES_MAY | OPEN
        assert (status is not Status.PERMISSION_DENIED) is allowed, (route, status)
    for uuid, removed in (("n1", True), ("n2", False)):
        name = b"\x0a" + bytes([len(uuid)]) + uuid.encode()
        stream_channel = Channel(served.host, served.port, codec=Bytes(), ssl=context)
        method = "/log.v1.Cluster/RemoveServer"
        with pytest.raises(GRPCError) as refused:
            async with stream_channel.request(
                method, Cardinality.UNARY_UNARY, bytes, bytes
            ) as stream:
                await stream.send_message(name, end=True)
                await stream.recv_message()
        stream_channel.close()
        # The double refuses every removal, once it is asked.
        assert (refused.value.status is Status.FAILED_PRECONDITION) is removed


async def test_plaintext_is_anonymous_or_nothing(served: Served) -> None:
    if served.gate._peers_prove:
        for port in (served.port, served.http_port):
            served.port, kept = port, served.port
            assert b"This port speaks TLS" in await talk(served, b"GET /v1/log HTTP/1.1\r\n\r\n")
            served.port = kept
        return
    for route in GRPC:
        status = await ask_grpc(served, route, None)
        # Nodes that do not speak TLS yet prove nothing to each other.
        allowed = route in OPEN or route == "/log.v1.Cluster/Promise"
        assert (status is not Status.PERMISSION_DENIED) is allowed, (route, status)
    async with aiohttp.ClientSession() as session:
        for route in HTTP:
            status = await ask_http(session, f"http://127.0.0.1:{served.port}", route)
            assert (status != 403) is (route in OPEN), (route, status)


BAD: dict[str, Callable[[Served, Path], Files]] = {
    "wrong CA": lambda s, f: Authority(f, "strangers").client(trusts=s.clients),
    "expired": lambda s, _: s.clients.issue(
        Use.CLIENT, "root", begins_in=timedelta(days=-9), days=1
    ),
    "not yet valid": lambda s, _: s.clients.issue(Use.CLIENT, "root", begins_in=timedelta(days=2)),
    "right CA, wrong role": lambda s, _: s.clients.server("root"),
    "a node's": lambda s, _: s.peers.peer("n1"),
    "no CN that a policy can name": lambda s, _: s.clients.client("root, *"),
}
PROBE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
SURFACES: list[tuple[str, ...]] = [("h2",), ("http/1.1",), (), (ALPN_FRAMES,), (ALPN_CALLS,)]


@pytest.mark.parametrize("alpn", SURFACES, ids=str)
async def test_no_bad_certificate_gets_a_word(
    served: Served, alpn: tuple[str, ...], tmp_path: Path
) -> None:
    nobody = ssl.create_default_context(cafile=served.clients.ca)
    contexts = {"none": nobody} | {
        name: make(served, tmp_path).context(*alpn) for name, make in BAD.items()
    }
    if alpn:
        nobody.set_alpn_protocols(alpn)
    if alpn in {(ALPN_FRAMES,), (ALPN_CALLS,)}:
        del contexts["a node's"]
        contexts["a client's"] = served.clients.client("root").context(*alpn)
    for name, context in contexts.items():
        context.load_verify_locations(served.clients.ca)
        context.load_verify_locations(served.peers.ca)
        served.refused.clear()
        try:
            answer = await talk(
                served, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", tls=context
            )
        except (ssl.SSLError, ConnectionError):
            answer = b""
        assert answer == b"", name
        await until(lambda: served.refused, name)
    assert not served.raft


def test_a_client_who_connects_to_another_host_hears_of_it(authorities) -> None:
    """Wrong host: that is the client's to find out, by the names of the server's certificate."""
    clients, _peers, contexts = authorities
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = contexts.clients.wrap_bio(outgoing, incoming, server_side=True)
    client = (
        clients.client()
        .context("h2")
        .wrap_bio(incoming, outgoing, server_hostname="elsewhere.example")
    )
    with pytest.raises(ssl.SSLCertVerificationError, match=r"elsewhere\.example"):
        for _ in range(4):
            for end in (client, server):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue


async def test_every_route_is_in_the_table_and_every_entry_is_served() -> None:
    logs = MemoryLogs(MemoryLog())
    rpc = RpcServer(logs, MemoryCluster())
    assert set(rpc._methods) == set(GRPC)
    probes = Probes(live=lambda: "", ready=lambda: "", started=lambda: "")
    gateway = Gateway(logs, Metrics(), browsers=Browsers([]), probes=probes, feed=FEED)
    served = {
        f"{route.method} {route.resource.canonical}"
        for route in gateway._runner.app.router.routes()
    }
    assert {route.replace("HEAD ", "GET ") for route in served} == set(HTTP)


async def test_a_route_without_an_entry_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, make in (
        ("/log.v1.Log/Consume", lambda: RpcServer(MemoryLogs(MemoryLog()), MemoryCluster())),
        (
            "GET /v1/tail",
            lambda: Gateway(
                MemoryLogs(MemoryLog()),
                Metrics(),
                browsers=Browsers([]),
                probes=Probes(live=lambda: "", ready=lambda: "", started=lambda: ""),
                feed=FEED,
            ),
        ),
    ):
        without = {route: access for route, access in ACCESS.items() if route != missing}
        monkeypatch.setattr("proglog.auth.access.ACCESS", without)
        with pytest.raises(AssertionError, match=f"{missing} has no entry"):
            make()


@pytest.mark.parametrize(
    "path",
    [
        "log.v1.Log/Produce",
        "//log.v1.Log/Produce",
        "/log.v1.Log/Produce/",
        "/log.v1.Log%2FProduce",
        "/LOG.v1.Log/Produce",
        "/log.v1.Log/Produce?x",
    ],
)
async def test_a_path_that_is_nearly_one_is_none(authorities, path: str) -> None:
    """grpc-go CVE-2026-33186: a path without its slash passed rules that deny."""
    clients, _, contexts = authorities
    rpc = RpcServer(MemoryLogs(MemoryLog()), MemoryCluster())
    tls = Tls(contexts=lambda: contexts, is_required=True, refused=lambda *_: None)
    http = Routes(http=lambda who: Recorder("http", [], who), grpc=rpc.protocol_factory)
    mux = Mux(listen("127.0.0.1", 0), http, tls=tls)
    serving = asyncio.ensure_future(mux.serve())
    try:
        served = Served(clients, clients, MemoryLog(), None, mux.address[1])  # type: ignore[arg-type]
        status = await ask_grpc(served, path, clients.client().context("h2"))
        assert status is Status.UNIMPLEMENTED
    finally:
        await rpc.close()
        await mux.close()
        await serving


def test_every_entry_says_something() -> None:
    for access in ACCESS.values():
        assert isinstance(access, Access)
        assert bool(access.action) is (access.scope in {Scope.LOG, Scope.CLUSTER})
