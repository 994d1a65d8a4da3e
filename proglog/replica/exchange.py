"""What a replica says to its peers and hears from them: its core's messages, as frames of its
group. The connections are the node's (`proglog.peers`)."""

from __future__ import annotations

import asyncio
from typing import Protocol

from proglog import limits
from proglog.batch import HEADER_BYTES, Buffer, Kind
from proglog.errors import RangeCorrupt, UnknownFormat
from proglog.log.log import Log
from proglog.peers.frames import Type, UnknownType, frame
from proglog.peers.hello import Life, Refusal
from proglog.peers.local import Known
from proglog.peers.peers import Peers
from proglog.raft.configuration import Configuration
from proglog.raft.driver import Driver, ReceivedBatch
from proglog.raft.messages import AppendRequest, InstallSnapshot, Message
from proglog.replica import commands, messages
from proglog.replica.budgets import Budget
from proglog.replica.intake import Intake
from proglog.replica.outgoing import Outgoing
from proglog.replica.settings import LEVEL
from proglog.replica.standing import Standing, Statement, notes


class Host(Protocol):
    """What is needed of the replica."""

    def configuration_of(self, state: bytes) -> Configuration:
        """The configuration in a snapshot's state."""

    def range_wanted(self, peer: str, first: int, last: int) -> None:
        """A peer whose batches are damaged asks for ours."""

    def range_received(self, batches: list[ReceivedBatch]) -> None:
        """The answer to `Exchange.fetch`, from whoever it is."""

    def damaged(self, error: RangeCorrupt) -> None:
        """A batch that a follower needs cannot be read."""

    def failed(self, error: BaseException) -> None: ...


class Exchange:
    """Of one replica."""

    def __init__(
        self,
        *,
        host: Host,
        log: Log,
        peers: Peers,
        group: int,
        uuid: str,
        held: Budget,
        standing: Standing,
        level_max: int = LEVEL,
    ) -> None:
        """`level_max` is the latest level that can be computed here."""
        self.group = group
        self.log = log
        self.driver: Driver
        """From `begin` on: the two need each other."""
        self._host = host
        self._peers = peers
        self._uuid = uuid
        self._held = held
        self._standing = standing
        self._level_max = level_max
        self._outgoing: dict[str, Outgoing] = {}
        self._intakes: dict[str, Intake] = {}
        self._closed = False
        peers.remember(standing.memory.lives.values())

    def begin(self, driver: Driver) -> None:
        """From now on peers hear of this log: some may be connected already, for another one."""
        self.driver = driver
        self._peers.attach(self.group, self)

    # --- out -------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Sends a message or drops it."""
        if self._closed or self._standing.doubt:
            return
        if self._standing.has_voted_since:
            # What this says may rest on the vote that was saved: whoever counts it must know that
            # there is one, so that this server cannot come back without.
            self._peers.state(self.group)
        if not isinstance(message, AppendRequest | InstallSnapshot):
            self._send_control(message.to, messages.encode(self.group, message))
            return
        peer = self._peers.peer(message.to)
        outgoing = self._outgoing.get(message.to)
        if outgoing is None or outgoing.peer is not peer:
            outgoing = self._outgoing[message.to] = Outgoing(self, peer)
        outgoing.send(message)

    def fetch(self, uuid: str, first: int, last: int) -> None:
        """Asks a peer for committed batches; perhaps it answers by `range_received`."""
        self._send_control(uuid, messages.encode_fetch(self.group, first, last))

    def answer_fetch(self, uuid: str, data: Buffer) -> None:
        """Sends a peer the batches that it asked for, if it can be reached."""
        peer = self._peers.peer(uuid)
        if not peer.bulk.is_blocked:
            peer.bulk.write(messages.encode_fetched(self.group, data))

    def _send_control(self, uuid: str, parts: list[Buffer]) -> None:
        control = self._peers.peer(uuid).control
        if not control.is_blocked:
            control.write(parts)

    def refuse(self, peer: str) -> None:
        """Tells a peer that what it sent was not taken."""
        self._send_control(peer, frame(Type.BUSY, self.group))

    # --- where servers stand ---------------------------------------------------------------------

    def statement(self) -> bytes | None:
        return None if self._closed else self._standing.state()

    def stands(self, life: Life, payload: memoryview) -> Refusal | None:
        return self._standing.judge(life, Statement.decode(payload))

    def notes(self) -> list[str]:
        """Who takes part in nothing, and why."""
        return notes(self._standing.doubt, self._peers.refusals(self.group))

    async def restate(self) -> None:
        """Tells the others where this server stands, while it moves."""
        while True:
            await asyncio.sleep(limits.restate_seconds)
            self._standing.look()
            if self._standing.is_news:
                self._peers.state(self.group)

    # --- what is needed for that -----------------------------------------------------------------

    @property
    def term(self) -> int:
        return self.driver.term

    @property
    def room_batches_max(self) -> int:
        return self.log.room_batches_max

    def damaged(self, error: RangeCorrupt) -> None:
        self._host.damaged(error)

    def failed(self, error: BaseException) -> None:
        self._host.failed(error)

    # --- in --------------------------------------------------------------------------------------

    def receive(self, peer: str, type_: int, payload: memoryview) -> None:
        try:
            if not self._standing.doubt:
                self._receive(peer, type_, payload)
        except UnknownFormat as error:
            # The leader sends what a newer version is needed for: this server cannot follow it.
            self._host.failed(error)

    def _receive(self, peer: str, type_: int, payload: memoryview) -> None:
        if type_ == Type.APPEND:
            request, received = messages.decode_append(payload, peer, self._uuid)
            self._check_commands(received)
            self._intake(peer).append(request, received)
        elif type_ in messages.PLAIN_TYPES:
            self.driver.receive(messages.decode(type_, payload, peer, self._uuid))
        elif type_ == Type.INSTALL:
            self._install(peer, payload)
        elif type_ == Type.FETCH:
            self._host.range_wanted(peer, *messages.decode_fetch(payload))
        elif type_ == Type.FETCHED:
            self._host.range_received(messages.decode_fetched(payload))
        elif type_ == Type.BUSY:
            self.driver.unreachable(peer)
        else:
            raise UnknownType(f"a log knows no frames of type {type_}")

    def _check_commands(self, received: list[ReceivedBatch]) -> None:
        """What cannot be applied here must not be acknowledged. Raises UnknownFormat."""
        for header, data in received:
            if header.kind == Kind.COMMAND:
                commands.decode(memoryview(data)[HEADER_BYTES:], header.index, self._level_max)

    def _intake(self, peer: str) -> Intake:
        intake = self._intakes.get(peer)
        if intake is None:
            intake = self._intakes[peer] = Intake(self, peer, self._held)
        return intake

    def _install(self, peer: str, payload: memoryview) -> None:
        request, snapshot = messages.decode_install(payload, peer, self._uuid)
        configuration = self._host.configuration_of(snapshot.state)
        self._intake(peer).clear()  # What it is to replace need not be taken any more.
        self.driver.receive_snapshot(request._replace(configuration=configuration), snapshot)

    def unreachable(self, peer: str) -> None:
        if not self._closed:
            self.driver.unreachable(peer)

    def reconnected(self, peer: str) -> None:
        if not self._closed:
            self.driver.reconnected(peer)

    def disconnected(self, peer: str) -> None:
        if not self._closed:
            self.driver.disconnected(peer)

    def bulk_ended(self, peer: str) -> None:
        if (intake := self._intakes.pop(peer, None)) is not None:
            intake.clear()

    # --- who there is ----------------------------------------------------------------------------

    def set_configuration(self, configuration: Configuration) -> None:
        """Connections are kept to its servers."""
        self._peers.configure(
            self.group,
            [
                Known(each.uuid, each.name, each.address, configuration.is_voter(each.uuid))
                for each in configuration.servers
            ],
        )
        for uuid in list(self._outgoing):
            if configuration.find(uuid) is None:
                self._outgoing.pop(uuid).close()

    @property
    def cluster_name(self) -> str:
        """What this node calls its cluster."""
        return self._peers.cluster_name

    def is_reached(self, uuid: str) -> bool:
        """Whether a server can be told anything now."""
        return self._peers.peer(uuid).control.is_open

    def name_of(self, uuid: str) -> str:
        """What to call a server in front of people."""
        return self._peers.name_of(uuid)

    def address_of(self, uuid: str) -> str:
        """Where a server is; may be ""."""
        return self._peers.address_of(uuid)

    def tell_level(self, reached: int) -> None:
        """Peers that cannot compute a state of this level are refused from now on."""
        self._peers.tell_levels(self.group, reached, self._level_max)

    def level_of(self, uuid: str) -> int:
        """The latest level that a server can compute; 0 while it is not connected."""
        return self._level_max if uuid == self._uuid else self._peers.level_of(uuid)

    def close(self) -> None:
        self._closed = True
        self._peers.detach(self.group)
        for outgoing in self._outgoing.values():
            outgoing.close()
        for intake in self._intakes.values():
            intake.clear()
