"""The gRPC server of a node, without a port of its own: the mux hands it connections."""

from __future__ import annotations

import asyncio
from typing import cast

from grpclib.config import Configuration
from grpclib.health.check import ServiceStatus

from proglog import limits
from proglog.aio.turns import Turns
from proglog.auth.access import access_of
from proglog.auth.gate import Gate, OpenGate
from proglog.auth.principal import ANONYMOUS, Principal
from proglog.errors import ProglogError, Unavailable
from proglog.grpc import http2
from proglog.grpc.budgets import Budgets, Seldom
from proglog.rpc.calls import Calls
from proglog.rpc.cluster import Cluster, ClusterService
from proglog.rpc.health import ServerCodec, with_health_and_reflection
from proglog.rpc.quick import Deadlines, Processor
from proglog.rpc.service import LogService
from proglog.types import Logs


class RpcServer:
    """Serves log.v1.Log, log.v1.Cluster, grpc.health.v1 and reflection."""

    def __init__(self, logs: Logs, cluster: Cluster, gate: Gate | None = None) -> None:
        """Without a gate all may all."""
        self._gate = gate or OpenGate()
        self._status = ServiceStatus()
        self.budgets = Budgets()
        self._seldom = Seldom(asyncio.get_running_loop().time)
        self._looking: asyncio.TimerHandle | None = None
        self._turns = Turns()
        self._log_service = LogService(logs, cluster.servers, self._turns, self._gate)
        services = with_health_and_reflection(
            [self._log_service, ClusterService(cluster)], self._status
        )
        self._methods = {
            name: method for service in services for name, method in service.__mapping__().items()
        }
        for name in self._methods:
            access_of(name)
        self._codec = ServerCodec()
        self._deadlines = Deadlines()
        self._connections: set[_Connection] = set()
        self._refusal: ProglogError | None = None

    def set_serving(self, serving: bool) -> None:
        """What health checks and watches answer; unknown until it is first set."""
        self._status.set(serving)

    def protocol_factory(self, principal: Principal = ANONYMOUS) -> http2.Protocol:
        """The protocol of a new connection, and who is at its other end."""
        calls = Calls(
            self._methods,
            self._codec,
            lambda: self._refusal,
            principal,
            self._log_service.quick,
            self._deadlines,
            self._gate,
        )
        self._begin_looking()
        return _Connection(calls, self._connections, self._turns, self.budgets, self._seldom)

    def _begin_looking(self) -> None:
        if self._looking is None:
            loop = asyncio.get_running_loop()
            self._looking = loop.call_later(limits.edge_look_seconds, self._look)

    def _look(self) -> None:
        """Ends connections that do nothing."""
        self._looking = None
        now = asyncio.get_running_loop().time()
        for connection in list(self._connections):
            connection.look(now)
        if self._connections:
            self._begin_looking()

    def send_away(self) -> None:
        """Ends the streams that are under way with Unavailable: clients go on with them elsewhere.
        New calls are answered."""
        for connection in self._connections:
            connection.calls.end(Unavailable("the node is about to stop: go on with another one"))

    def end_expired(self, now: float) -> None:
        """Ends the connections of those whose certificate is void by `now`, a Unix time: what is
        under way ends as on a node that stops, and goes on over another connection."""
        for connection in list(self._connections):
            if connection.calls.principal.not_after <= now:
                connection.calls.end(Unavailable("your certificate has expired: connect anew"))
                connection.end_soon()

    async def drain(self, seconds: float) -> None:
        """Refuses new calls, ends streams with Unavailable, and waits for the answers to calls that
        are under way; then says GOAWAY and closes the connections. What has not ended within
        `seconds` is left to `close`."""
        self._refusal = Unavailable("the node is shutting down: try another one, or again later")
        for connection in self._connections:
            connection.refuse_further()
            connection.calls.end(self._refusal)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(connection.leave() for connection in self._connections))
        except TimeoutError:
            return

    async def close(self) -> None:
        """Cancels what still runs and closes all connections."""
        self._refusal = self._refusal or Unavailable("the node has stopped")
        for connection in list(self._connections):
            connection.abort()
        self._deadlines.close()
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.gather(*(connection.wait_lost() for connection in list(self._connections)))


class _Connection(http2.Protocol):
    """One connection, from when it is made until it is lost and its calls are over."""

    def __init__(
        self,
        calls: Calls,
        connections: set[_Connection],
        turns: Turns,
        budgets: Budgets,
        seldom: Seldom,
    ) -> None:
        super().__init__(
            calls,
            Configuration().__for_server__(),
            http2.configuration(client_side=False),
            turns,
            budgets,
            seldom,
        )
        self._made = self._busy = asyncio.get_running_loop().time()
        self._unread_since: float | None = None
        self.calls = calls
        self._connections = connections
        self._lost = asyncio.Event()
        self._is_ending = False

    def new_processor(self) -> http2.Processor:
        return Processor(self.calls, cast("http2.Connection", self.connection))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._connections.discard(self)
        self._lost.set()

    def look(self, now: float) -> None:
        """Ends the connection where it is not used, or its peer takes nothing."""
        if self.connection.is_closing():
            return
        self.refuse_further()  # what has begun long ago has deadlines from here on
        why = self._why_over(now)
        if why is None:
            return
        assert self._budgets is not None
        self._budgets.count(why)
        if why == "idle_seconds":
            self._say_goodbye()
        else:
            self.abort()

    def _why_over(self, now: float) -> str | None:
        """The limit that it has reached, if it has."""
        if not self.state.has_begun:
            return "preface_seconds" if now - self._made > limits.sniff_seconds_max else None
        if not self.connection.write_ready.is_set():
            since = self._unread_since = self._unread_since or now
            if now - since > limits.http2_unread_seconds_max:
                return "unread_seconds"
        else:
            self._unread_since = None
        if len(self.calls):
            self._busy = now
        return "idle_seconds" if now - self._busy > limits.http2_idle_seconds_max else None

    def refuse_further(self) -> None:
        """Calls that have only begun get the refusal that is in force."""
        cast("Processor", self.processor).settle_all()

    async def leave(self) -> None:
        """Closes the connection once its calls are over."""
        await self.calls.wait_idle()
        self._say_goodbye()
        await self._lost.wait()

    def _say_goodbye(self) -> None:
        if not self.connection.is_closing():
            self.connection._connection.close_connection()
            self.connection.flush()
            self.connection._transport.close()

    def end_soon(self) -> None:
        """Ends a little later, whatever is under way then."""
        if not self._is_ending:
            self._is_ending = True
            asyncio.get_running_loop().call_later(limits.expired_grace_seconds, self.abort)

    def abort(self) -> None:
        if not self.connection.is_closing():
            self.connection._transport.abort()
        self.processor.close("the server closes")

    async def wait_lost(self) -> None:
        await self._lost.wait()
        await self.calls.wait_idle()
