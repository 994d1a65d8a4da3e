"""What other nodes dial: they say who they are, are welcomed, and send frames."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from proglog import limits
from proglog.batch import Buffer
from proglog.errors import ProglogError
from proglog.peers.connection import UNASKED, Connection
from proglog.peers.frames import PROLOGUE, FrameError, Lane, Type, frame
from proglog.peers.hello import (
    Hello,
    Life,
    Refusal,
    Welcome,
    common_protocol,
    decode_hello,
    encode_welcome,
)
from proglog.peers.local import Local, Names, Receiver, host_of
from proglog.peers.pulse import Pulse

_logger = structlog.get_logger("peers")


class Host(Protocol):
    """Who keeps the connections that were accepted."""

    def arrived(self, accepted: Accepted) -> None: ...

    def welcomed(self, accepted: Accepted, hello: Hello) -> None:
        """A connection has a peer and a lane from now on."""

    def why_not(self, life: Life) -> Refusal | None:
        """Why one that calls itself this is not believed."""

    async def is_twin(self, life: Life) -> bool:
        """Whether an earlier life of this node is still there. Takes a moment if one may be."""

    def stood(self, accepted: Accepted) -> None:
        """Its statement was accepted."""

    def refused(self, hello: Hello, refusal: Refusal) -> None: ...

    def configured(self, uuid: str) -> tuple[str, str] | None:
        """Name and address of a server."""

    def ended(self, accepted: Accepted) -> None: ...


class Accepted(Connection):
    """One connection that another node dialled."""

    def __init__(self, local: Local, host: Host, names: Names | None = None) -> None:
        super().__init__(local, Pulse(local.awake, 0, 2 * limits.control_silence_seconds_max))
        self._host = host
        self._names = names
        self._prologue_seen = False
        self._checking: asyncio.Task[None] | None = None
        self._hello: Hello
        self._standing: set[int] = set()
        """The groups in which it has said where it stands, and may."""
        self.lane = Lane.CONTROL
        self.protocol = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._host.arrived(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._checking is not None:
            self._checking.cancel()
        self._host.ended(self)

    def data_received(self, data: bytes) -> None:
        if not self._prologue_seen and data:
            self._prologue_seen = True
            if data[:1] != PROLOGUE:
                self.give_up("it does not begin as a connection between nodes")
                return
            data = data[1:]
        super().data_received(data)
        if self.peer and self.pulse.is_answer_due(limits.control_ping_seconds):
            self._answer(UNASKED)

    def write(self, parts: list[Buffer]) -> None:
        super().write(parts)
        # All that is said here are answers: whoever leaves thousands of them unread asks too much.
        if self.wire is not None and self.wire.get_write_buffer_size() > limits.answers_bytes_max:
            self.give_up("it does not read what it is answered")

    def _may_take(self) -> bool:
        return self._checking is None and super()._may_take()

    def _take_of_group(self, type_: int, group: int, payload: memoryview) -> None:
        receiver = self._local.groups.get(group)
        if receiver is None:
            self.write(frame(Type.NO_GROUP, group))
        elif type_ == Type.STAND:
            self._take_statement(receiver, group, payload)
        elif group in self._standing:
            receiver.receive(self.peer, type_, payload)

    def _take_statement(self, receiver: Receiver, group: int, payload: memoryview) -> None:
        refusal = receiver.stands(self.life, payload)
        if refusal is None:
            self._standing.add(group)
            self._host.stood(self)
        else:
            self._host.refused(self._hello, refusal)
            self.refuse(refusal)

    # --- the beginning ---------------------------------------------------------------------------

    def _greet(self, type_: int, payload: memoryview) -> None:
        if type_ != Type.HELLO:
            raise FrameError("a connection begins with a greeting")
        assert self.wire is not None
        # It takes a write to the disk, perhaps.
        self.wire.pause_reading()
        self._checking = self._local.loop.create_task(self._check(decode_hello(payload)))

    async def _check(self, hello: Hello) -> None:
        try:
            refusal = await self._why_not(hello)
        except ProglogError as error:
            refusal = Refusal("UNAVAILABLE", str(error))
        except Exception as error:
            self._local.home.failed(error)
            raise
        if self.wire is None or self.given_up:
            return
        if refusal is not None:
            self._host.refused(hello, refusal)
            self.refuse(refusal)
            return
        self._hello = hello
        self.lane, self.protocol = Lane(hello.lane), common_protocol(hello.protocols)
        if self.lane is Lane.BULK:
            self.pulse = Pulse(self._local.awake, 0, 2 * limits.bulk_silence_seconds_max)
        local, cluster_id = self._local, self._local.home.identity.cluster_id
        welcome = Welcome(local.life, cluster_id, self.protocol, level=local.level_max)
        self.write(encode_welcome(welcome))
        self.greeted(hello.life)
        self._host.welcomed(self, hello)
        self._checking = None
        self.wire.resume_reading()
        self._take()

    async def _why_not(self, hello: Hello) -> Refusal | None:
        """Why this connection is refused, if it is."""
        home, ours = self._local.home, self._local.cluster_name
        # Before anything else: a stranger learns nothing of this node.
        if self._names is not None and not self._is_named(hello, self._names):
            name = hello.life.name
            return Refusal("CERTIFICATE", f"the certificate is not that of the node {name!r:.40}")
        if hello.to != home.identity.uuid:
            identity = home.identity
            return Refusal("NAME", f"this is {identity.name} ({identity.uuid}), not {hello.to}")
        if not common_protocol(hello.protocols):
            return Refusal("PROTOCOL", "the versions have no protocol in common")
        if hello.lane not in {lane.value for lane in Lane}:
            return Refusal("LANE", f"there is no lane {hello.lane!r:.40} here")
        if not hello.cluster_id:
            return Refusal("CLUSTER", "the caller belongs to no cluster")
        if not home.identity.cluster_id:
            if hello.cluster_name != ours:
                return Refusal("CLUSTER", f"this node waits for a cluster called {ours!r}")
            await home.adopt_cluster(hello.cluster_id)
        elif hello.cluster_id != home.identity.cluster_id:
            return Refusal("CLUSTER", f"this server belongs to cluster {home.identity.cluster_id}")
        if hello.level < (needed := self._local.level_needed):
            return Refusal(
                "LEVEL",
                f"this cluster has reached level {needed}, and the caller's version of Proglog "
                f"knows {hello.level} only: start it with a newer one",
            )
        return await self._why_not_believed(hello.life)

    async def _why_not_believed(self, life: Life) -> Refusal | None:
        refusal = self._host.why_not(life)
        if refusal is not None and refusal.code != "TWIN":
            return refusal
        if await self._host.is_twin(life):
            return Refusal(
                "TWIN",
                f"another start of {life.name} runs and answers: there are two processes, or a "
                "copy of its directory is in use",
            )
        # Another one may have come meanwhile; from here on nothing waits.
        refusal = self._host.why_not(life)
        if refusal is not None and refusal.code == "TWIN":
            # The other one is gone. Its number was on its disk before anybody heard of it, so this
            # is not that disk as it was: nothing is gained by another start.
            return refusal._replace(code="OLD_LIFE")
        return refusal

    def _is_named(self, hello: Hello, names: Names) -> bool:
        """A server is who the configuration says, wherever it calls from; any other node is who it
        says that it is."""
        configured = self._host.configured(hello.life.uuid)
        name, address = configured or (hello.life.name, hello.address)
        return names(name, host_of(address))
