"""One node: the log, its servers, and their lives.

Parts start in the order in which they need each other and stop in reverse, within a deadline. A
part that fails stops the node: a node that half works is worse than one that is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from proglog import __version__, limits
from proglog.agent.addresses import Addresses
from proglog.agent.admin_socket import AdminSocket
from proglog.agent.catching_up import CatchingUp
from proglog.agent.cluster import (
    ClusterAdmin,
    ask_commit,
    ask_identity,
    ask_promise,
    identify,
    leave_configuration,
    newcomer,
)
from proglog.agent.drain import Drain, read_order
from proglog.agent.exposition import LimitsCollector
from proglog.agent.forming import Forming
from proglog.agent.policy import misses_somebody
from proglog.agent.readiness import Readiness
from proglog.agent.reconciler import Reconciler
from proglog.agent.security import Security, check_listener
from proglog.agent.watch import Watch
from proglog.config import Address, NodeConfig
from proglog.errors import ConfigurationError, InvalidRequest, why_not_bound
from proglog.gateway.browsers import Browsers
from proglog.gateway.console.feed import Feed
from proglog.gateway.health import Probes
from proglog.gateway.probing import ProbeServer
from proglog.gateway.server import Gateway
from proglog.membership import (
    CLUSTER_TAG,
    JoinFailed,
    KeyRefused,
    Membership,
    MembershipConfig,
    MembershipError,
    Timing,
    decode_key,
)
from proglog.net.listening import listen
from proglog.observability.exposition import ViewCollector
from proglog.observability.history import History
from proglog.observability.metrics import Metrics
from proglog.peers.peers import Peers
from proglog.ports import Ports
from proglog.raft.config import RaftConfig
from proglog.raft.configuration import Server
from proglog.replica.identity import open_node
from proglog.replica.logs import DEFAULT, Logs
from proglog.replica.replica import Replica, open_replica
from proglog.rpc.mux import Mux
from proglog.rpc.routes import Routes
from proglog.rpc.server import RpcServer

_logger = structlog.get_logger("node")

_SWITCH_INTERVAL_SECONDS = 20e-6
"""How long the writer's thread waits before it asks the loop for the interpreter. With the default
of 5 ms it starves beside a busy loop, and every durable write with it (see `ports`)."""


class Node:
    """A node. `start` it, wait for `failure` or decide to end it, then `stop`."""

    def __init__(self, config: NodeConfig, ports: Ports | None = None) -> None:
        """Raises ConfigurationError."""
        self._config = config
        self._gossip_keys = tuple(map(_gossip_key, config.gossip_keys))
        self._ports = ports or Ports()
        self.security = Security(config, self._ports.clock)
        self._parts = AsyncExitStack()
        self._stopping = False
        self.metrics = Metrics()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the exception of the first part that fails."""
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets a result when the node has left its cluster."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.rpc_addr = config.rpc_addr
        """Where gRPC and HTTP are served; with its real port once started."""
        self.told_addr = self.rpc_addr
        """What other nodes and clients are told, once started."""
        self.http_addr = config.http_addr
        self.health_addr = config.health_addr
        """Where probes and metrics alone are served; with its real port once started."""
        self._is_started = False
        self.peers: Peers
        self.replica: Replica
        self.membership: Membership
        self._reconciler: Reconciler
        self._watch: Watch
        self._catching_up: CatchingUp
        self.drain: Drain
        self.readiness: Readiness
        self._meeting: list[asyncio.Task[None]] = []
        """What speaks to others by gossip, as long as this node takes part in it."""

    async def start(self) -> None:
        """Starts everything. Raises ProglogError or OSError; then nothing is left running."""
        sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
        try:
            await self._start()
        except BaseException:  # cancelled too: nothing is left running
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self._config
        # The port first: it is in the way most often, and its number is part of what follows.
        listener = _listen(config.rpc_addr)
        self._parts.callback(listener.close)
        self._parts.callback(self.security.close)
        port = listener.getsockname()[1]
        check_listener(config, listener.getsockname()[:2])
        if config.health_addr is not None:
            # Before the log is recovered, which may take a while: that it goes on is asked here.
            await self._serve_probes(config.health_addr)
        await self.security.load()
        # By name, not by the address it has now: peers resolve it each time they dial.
        self.rpc_addr = Address(config.bind_addr.host, port)
        self.told_addr = config.told_addr(port)
        directory = await open_node(
            Path(config.data_dir), node_name=config.node_name, ports=self._ports
        )
        self._parts.callback(directory.close)
        # The life that begins once the log is open.
        self.peers = self._make_peers(directory.incarnation + 1)
        self._parts.callback(self.peers.close)
        self.replica = await open_replica(
            DEFAULT,
            directory,
            rpc_addr=str(self.told_addr),
            bootstrap=config.begins_alone,
            config=config.log,
            raft_config=RaftConfig(),
            ports=self._ports,
            observer=self,
            peers=self.peers,
        )
        self._parts.push_async_callback(self.replica.close)
        self._watch_replica()
        self.membership = self._make_membership()
        self._reconciler = self._make_reconciler()
        self._catching_up = CatchingUp(
            self.replica, lambda address: ask_commit(address, self.security.way)
        )
        admin = ClusterAdmin(
            self.replica, self.membership, self._reconciler, self.leave, self.security
        )
        admin.forming = self._make_forming()
        await self._serve(listener, admin)
        await self.membership.start()
        self._parts.push_async_callback(self.membership.close)
        self._supervise(self._gossip())
        self._supervise(self._watch.run())
        self._supervise(self._catching_up.run())
        addresses = Addresses(self.replica, self.membership, self.peers, self._identify)
        self._meeting += [
            self._supervise(self._reconciler.run()),
            self._supervise(self._reconciler.watch()),
            self._supervise(addresses.run()),
        ]
        if config.start_join_addrs:
            self._meeting.append(self._supervise(self._join()))
        if admin.forming is not None:
            self._supervise(admin.forming.run())
        await self._open_admin_socket()
        self._is_started = True
        is_alone = len(self.replica.leadership.configuration.voters) == 1
        if is_alone and config.begins_alone and not self.replica.standing.doubt:
            await self._wait_ready()
        # What recovery left is there for good: the collector need not look at it again.
        gc.collect()
        gc.freeze()

    async def _wait_ready(self) -> None:
        try:
            async with asyncio.timeout(limits.ready_seconds_max):
                await self.replica.wait_ready()
        except TimeoutError:
            # A disk without room for a single batch more, say: what is stored can be read.
            _logger.warning("the node serves reads only for now")

    async def _serve(self, listener: socket.socket, admin: ClusterAdmin) -> None:
        config = self._config
        logs = Logs([self.replica])
        gate = self.security.gate
        rpc = RpcServer(logs, admin, gate)
        self._supervise(self.security.watch())
        if self.security.audit is not None:
            self.security.audit.node = self.replica.identity.name
            self.security.audit.life("start", __version__)
            self._supervise(self.security.audit.run())
            self._parts.push_async_callback(self.security.audit.flush)
        self._supervise(self._end_expired(rpc))
        self.security.measure(self.metrics.gauge)
        self._parts.push_async_callback(rpc.close)
        history = History(self.metrics, lambda: self.replica.next_offset)
        feed = Feed(history)
        self.drain = self._make_drain(rpc.send_away)
        self._parts.callback(self.drain.close)
        self.readiness = Readiness(
            self.replica, self.drain, self._catching_up, lambda: self._stopping
        )
        self.readiness.forming = admin.forming
        gateway = Gateway(
            logs,
            self.metrics,
            browsers=self._browsers(),
            probes=self._probes(),
            feed=feed,
            gate=gate,
        )
        await gateway.start()
        self._parts.push_async_callback(gateway.close)
        routes = Routes(
            grpc=rpc.protocol_factory,
            http=gateway.factory,
            raft=lambda principal: self.peers.accept(self.security.names_of(principal)),
        )
        mux = Mux(listener, routes, tls=self.security.tls(), budgets=rpc.budgets)
        self._parts.push_async_callback(mux.close)
        if config.http_addr is not None:
            self._serve_http(gateway, config.http_addr)
        self._parts.push_async_callback(self._drain, rpc, gateway)
        self._supervise(mux.serve())
        self._supervise(self._tell_health(rpc))
        self._watch = self._make_watch(history, feed)
        self.metrics.registry.register(ViewCollector(lambda: feed.view))
        self.metrics.registry.register(LimitsCollector(rpc.budgets))

    def _serve_http(self, gateway: Gateway, address: Address) -> None:
        listener = _listen(address)
        self._parts.callback(listener.close)
        check_listener(self._config, listener.getsockname()[:2])
        mux = Mux(listener, Routes(http=gateway.factory), tls=self.security.tls())
        self._parts.push_async_callback(mux.close)
        self.http_addr = Address(*mux.address)
        self._supervise(mux.serve())

    async def _serve_probes(self, address: Address) -> None:
        listener = _listen(address)
        self._parts.callback(listener.close)
        self.health_addr = Address(*listener.getsockname()[:2])
        probes = ProbeServer(self._probes(), self.metrics)
        self._parts.push_async_callback(probes.close)
        await probes.start(listener)

    def _browsers(self) -> Browsers:
        config, security = self._config, self.security
        told = self.told_addr.host
        return Browsers(
            (*config.http_hosts, told),
            config.http_origins,
            lambda: () if security.is_off else security.contexts.server.names,
        )

    async def _end_expired(self, rpc: RpcServer) -> None:
        """No connection outlives the certificate by which it was made."""
        while True:
            await asyncio.sleep(limits.certificate_check_seconds)
            rpc.end_expired(self._ports.clock.now_ms() / 1000)

    async def _tell_health(self, rpc: RpcServer) -> None:
        while True:
            rpc.set_serving(not self._why_not_ready())
            await asyncio.sleep(limits.health_seconds)

    async def _drain(self, rpc: RpcServer, gateway: Gateway) -> None:
        rpc.set_serving(False)
        # While clients can still be told where to go.
        await self.replica.hand_over()
        seconds = self._config.drain_seconds
        await asyncio.gather(rpc.drain(seconds), gateway.drain(seconds))

    async def stop(self) -> None:
        """Answers what is under way, then stops everything, newest part first. Every part is
        stopped; what went wrong on the way is raised at the end.

        To the other nodes this one has failed, until it is back: to stop is not to leave.
        """
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await self._say_goodbye()
        await self._parts.aclose()

    async def _say_goodbye(self) -> None:
        """Gossip is told of a stop that a drain announced, so that the name is free at once: the
        next life may be at another address, where it would be ignored while this one is taken for
        alive. The tag says that it is no leaving."""
        if not self._is_started or not self.drain.began or self.drain.has_left:
            return
        with contextlib.suppress(TimeoutError, MembershipError):
            async with asyncio.timeout(limits.goodbye_seconds_max):
                await self.membership.leave()

    def _make_peers(self, incarnation: int) -> Peers:
        return Peers(
            connect=self.security.connect,
            certificate=self.security.names_at,
            chance=random.Random(self._ports.random.getrandbits(64)),
            clock=self._ports.clock,
            rpc_addr=str(self.told_addr),
            cluster_name=self._config.cluster_name,
            incarnation=incarnation,
        )

    # --- membership ------------------------------------------------------------------------------

    def _make_membership(self) -> Membership:
        config = self._config
        # Gossip carries IP addresses, so a name is no help: it is told where it listens.
        told = config.advertise_addr
        return Membership(
            MembershipConfig(
                name=self.replica.identity.name,
                bind_host=config.bind_addr.host,
                bind_port=config.bind_addr.port,
                advertise_host=told.host if told is not None and told.literal else None,
                tags={CLUSTER_TAG: config.cluster_name},
                keys=self._gossip_keys,
                snapshot_path=Path(config.data_dir) / "peers",
                keyring_path=Path(config.data_dir) / "keyring" if config.gossip_keys else None,
                timing=Timing.local() if config.bind_addr.is_loopback else Timing.lan(),
            ),
            ports=self._ports,
        )

    async def _identify(self, rpc_addr: str) -> Server:
        return await identify(rpc_addr, self.replica.identity.cluster_id, self.security.way)

    async def _newcomer(self, rpc_addr: str) -> Server:
        return await newcomer(rpc_addr, self.replica, self.security.way)

    def _make_reconciler(self) -> Reconciler:
        return Reconciler(
            self.replica,
            self.membership,
            self._newcomer,
            cluster_name=self._config.cluster_name,
            rpc_addr=str(self.told_addr),
            expect=self._config.bootstrap_expect,
            dead_server_after_seconds=self._config.dead_server_after_seconds,
            draining=lambda: self.drain.began,
        )

    def _make_drain(self, send_away: Callable[[], None]) -> Drain:
        return Drain(
            self.replica,
            self.membership,
            tell=self._reconciler.tell,
            send_away=send_away,
            leave=self._go,
            now_ms=self._ports.clock.now_ms,
        )

    async def _open_admin_socket(self) -> None:
        admin = AdminSocket(Path(self._config.data_dir), self._administer)
        self._parts.push_async_callback(admin.close)
        try:
            await admin.start()
        except OSError as error:
            # It serves all the same: some file systems have no sockets.
            _logger.warning("no admin.sock, so `proglog drain` cannot be used", why=str(error))

    async def _administer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the owner of the data directory asks for. Raises ProglogError."""
        match request:
            case {"do": "drain", **order}:
                outcome = await self.drain.run(read_order(order))
                return {"result": outcome.result, "said": outcome.said}
            case {"do": "undo"}:
                return {"result": 0, "said": self.drain.undo()}
        raise InvalidRequest("this node knows only how to drain, and to undo that")

    def _make_forming(self) -> Forming | None:
        expect = self._config.bootstrap_expect
        if not expect:
            return None
        return Forming(
            self.replica,
            self.membership,
            expect,
            partial(ask_promise, way=self.security.way),
            partial(ask_identity, way=self.security.way),
            self._ports.random,
        )

    async def _gossip(self) -> None:
        """Ends with the membership. A fault of it stops no node, since gossip only proposes: it
        begins anew, later each time."""
        pause = limits.gossip_restart_seconds_min
        while True:
            try:
                await self.membership.wait_ended()
            except Exception:
                _logger.exception("gossip failed and begins anew", seconds=pause)
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, limits.gossip_restart_seconds_max)
            await self.membership.begin_anew()

    async def _join(self) -> None:
        """Tries the addresses, all of them, while somebody is missed. It never ends: whoever is
        found may be lost again, and pairs that met apart must meet."""
        delay, told = 0.5, ""
        while True:
            if misses_somebody(
                self.replica.leadership.configuration,
                self.membership.members(),
                self.replica.identity.uuid,
            ):
                try:
                    await self.membership.join(self._config.start_join_addrs)
                    told = ""
                except JoinFailed as error:
                    if str(error) != told:
                        told = str(error)
                        _logger.warning("nobody to join yet", why=told)
            await asyncio.sleep(self._ports.random.uniform(delay / 2, delay))
            delay = min(2 * delay, limits.join_retry_seconds_max)

    async def leave(self) -> None:
        """Leaves the cluster for good: out of its configuration, if the rest can do without this
        node, then out of the gossip. Then the node stops. Raises ChangeRefused: it stays."""
        await self.drain.leave()
        if not self.left.done():
            self.left.set_result(None)

    async def _go(self) -> None:
        """As `leave`, but goes on running, by itself."""
        await leave_configuration(self.replica, self.security.way)
        for task in self._meeting:
            task.cancel()
        await self.membership.leave()

    # --- supervision -----------------------------------------------------------------------------

    def _supervise(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._part_ended)
        return task

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """A part cannot go on: the node must stop."""
        if not self.failure.done():
            self.failure.set_exception(error)
            # Whoever stops a node that was failing anyway need not look at why.
            self.failure.exception()

    def group_written(self, batches: int, size: int, seconds: float) -> None:
        self.metrics.group_written(batches, size, seconds)

    def consumed(self, size: int) -> None:
        self.metrics.consumed(size)

    def appended(self, records: int, size: int, seconds: float) -> None:
        self.metrics.appended(records, size, seconds)

    def _make_watch(self, history: History, feed: Feed) -> Watch:
        probes = self._probes()
        return Watch(
            self.replica,
            self.membership,
            self._ports,
            cluster_name=self._config.cluster_name,
            data_dir=Path(self._config.data_dir),
            answers=lambda uuid: self.peers.peer(uuid).control.is_open,
            not_ready=probes.ready,
            not_live=probes.live,
            history=history,
            feed=feed,
        )

    # --- looking ---------------------------------------------------------------------------------

    def _watch_replica(self) -> None:
        replica, gauge = self.replica, self.metrics.gauge
        gauge("log_earliest_offset", "Oldest offset retained.", lambda: replica.earliest)
        gauge("log_next_offset", "Next offset.", lambda: replica.next_offset)
        gauge("log_commit_index", "Batches committed.", lambda: replica.commit_index)
        gauge("log_bytes", "Bytes retained.", lambda: replica.log.bytes_upto(replica.applied_index))

    def _why_not_ready(self) -> str:
        return self.readiness.why_not() if self._is_started else "it is starting"

    def _probes(self) -> Probes:
        return Probes(
            live=lambda: "a part of it failed" if self.failure.done() else "",
            ready=self._why_not_ready,
            started=lambda: "" if self._is_started else "the log is recovered",
        )


def _gossip_key(text: str) -> bytes:
    try:
        return decode_key(text)
    except KeyRefused as error:
        raise ConfigurationError(f"gossip-keys: {error}", setting="gossip-keys") from None


def _listen(address: Address) -> socket.socket:
    try:
        return listen(*address)
    except OSError as error:
        raise _cannot_listen(address, error) from None


def _cannot_listen(address: Address, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot listen on {address}: {why_not_bound(error)} another --rpc-port, --bind-addr, "
        "--http-addr or --health-addr",
        address=address,
    )
