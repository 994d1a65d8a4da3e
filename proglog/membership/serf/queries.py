"""Serf's queries: asked by gossip, answered directly to the one who asks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import msgpack

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.keyring import Keyring
from proglog.membership.codec.serf_messages import (
    ConflictResponse,
    QueryFlag,
    QueryMessage,
    QueryResponse,
    RelayDestination,
    RelayHeader,
    SerfType,
    encode_serf,
)
from proglog.membership.codec.wire import UNPACK_ERRORS, UNPACK_LIMITS, encode, from_map, pack
from proglog.membership.errors import EventTooLarge, MalformedMessage
from proglog.membership.events import KeyringChanged, Query, QueryResult, Status
from proglog.membership.serf.filters import is_asked
from proglog.membership.serf.keys import answer_key_query
from proglog.membership.serf.lamport import LamportClock, RecentPast
from proglog.membership.serf.members import MemberRecord
from proglog.membership.swim.broadcast import BroadcastQueue
from proglog.membership.swim.outbox import Outbox
from proglog.membership.swim.timers import Timers

INTERNAL_PREFIX = "_serf_"
_RELAY_PROTOCOL = 5
_STATUS_CODES = {Status.ALIVE: 1, Status.LEAVING: 2, Status.LEFT: 3, Status.FAILED: 4}


class Cluster(Protocol):
    """What queries need to know and do."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> Address: ...

    @property
    def tags(self) -> dict[str, str]: ...

    def member(self, name: str) -> MemberRecord | None: ...

    def records(self) -> Iterable[MemberRecord]: ...

    def send_to(self, address: Address, payload: bytes) -> None: ...


@dataclass(slots=True, kw_only=True)
class _Running:
    """A query of ours, and what came back so far."""

    id: int
    acknowledged: dict[str, None] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)

    def add(self, response: QueryResponse) -> None:
        """Takes a node's first ack and first answer; relayed copies change nothing."""
        if len(self.acknowledged) + len(self.answers) >= limits.query_answers_max:
            return
        if response.flags & QueryFlag.ACK:
            self.acknowledged.setdefault(response.source)
        else:
            self.answers.setdefault(response.source, response.payload)


class Queries:
    """Asks and answers."""

    def __init__(
        self,
        cluster: Cluster,
        keyring: Keyring,
        timers: Timers,
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._cluster = cluster
        self._keyring = keyring
        self._timers = timers
        self._outbox = outbox
        self._rng = rng
        self._past: RecentPast[int] = RecentPast(limits.events_kept_max)
        self._running: dict[int, _Running] = {}
        self.clock = LamportClock()
        self.queue = BroadcastQueue(limits.broadcasts_max)

    def ignore_before(self, ltime: int) -> None:
        self._past.ignore_before(ltime)

    # --- asking ----------------------------------------------------------------------------------

    def ask(
        self,
        name: str,
        payload: bytes,
        timeout_s: float,
        on_done: Callable[[QueryResult], None],
    ) -> None:
        """Asks all members, this one included. Raises EventTooLarge."""
        address = self._cluster.address
        message = QueryMessage(
            ltime=self.clock.time,
            id=self._rng.getrandbits(31),
            host=address.packed,
            port=address.port,
            source=self._cluster.name,
            flags=QueryFlag.ACK,
            timeout_ns=round(timeout_s * 1e9),
            name=name,
            payload=payload,
        )
        encoded = encode_serf(message)
        require_size("query", encoded, limits.query_bytes_max)
        if len(self._running) >= limits.queries_running_max:
            raise EventTooLarge(f"{limits.queries_running_max} queries are running already")
        self.clock.advance()
        running = self._running[message.ltime] = _Running(id=message.id)

        def finish() -> None:
            del self._running[message.ltime]
            on_done(QueryResult(tuple(running.acknowledged), running.answers))

        self._timers.after(timeout_s, finish)
        self.on_query(message, encoded)

    def on_response(self, response: QueryResponse) -> None:
        running = self._running.get(response.ltime)
        if running is not None and running.id == response.id:
            running.add(response)

    # --- answering -------------------------------------------------------------------------------

    def on_query(self, message: QueryMessage, encoded: bytes) -> None:
        """Raises MalformedMessage."""
        self.clock.witness(message.ltime)
        if not self._past.add(message.ltime, message.id):
            return
        if not message.flags & QueryFlag.NO_BROADCAST:
            self.queue.add(encoded)
        if not is_asked(message.filters, self._cluster.name, self._cluster.tags):
            return
        query = Query(
            name=message.name,
            payload=message.payload,
            source=message.source,
            reply_to=message.reply_to,
            ltime=message.ltime,
            id=message.id,
            timeout_s=message.timeout_ns / 1e9,
            relay_factor=message.relay_factor,
        )
        if message.flags & QueryFlag.ACK:
            self._reply(query, b"", QueryFlag.ACK)
        if query.name.startswith(INTERNAL_PREFIX):
            self._answer_internal(query, query.name.removeprefix(INTERNAL_PREFIX))
        else:
            self._outbox.report(query)

    def respond(self, query: Query, payload: bytes) -> None:
        """Answers a query. Raises EventTooLarge."""
        self._reply(query, payload, 0)

    def _answer_internal(self, query: Query, verb: str) -> None:
        if verb == "conflict":
            self._answer_conflict(query)
            return
        before = self._keyring.keys
        answer = answer_key_query(verb, query.payload, self._keyring)
        if answer is not None:
            if self._keyring.keys != before:
                self._outbox.report(KeyringChanged(self._keyring.keys))
            self.respond(query, encode_serf(answer))

    def _answer_conflict(self, query: Query) -> None:
        """Two nodes claim a name, and ask the others whom they know by it."""
        name = query.payload.decode(errors="replace")
        if name == self._cluster.name:
            return
        record = self._cluster.member(name)
        if record is None:
            self.respond(query, bytes([SerfType.CONFLICT_RESPONSE]) + pack(None))
            return
        versions = record.versions
        answer = ConflictResponse(
            node=record.name,
            host=record.address.packed,
            port=record.address.port,
            tags=record.tags,
            status=_STATUS_CODES[record.status],
            **versions._asdict(),
        )
        self.respond(query, encode_serf(answer))

    def _reply(self, query: Query, payload: bytes, flags: int) -> None:
        response = encode_serf(
            QueryResponse(
                ltime=query.ltime,
                id=query.id,
                source=self._cluster.name,
                flags=flags,
                payload=payload,
            )
        )
        require_size("answer to a query", response, limits.query_bytes_max)
        self._cluster.send_to(query.reply_to, response)
        if query.relay_factor:
            self._relay_through_others(query, response)

    # --- relaying --------------------------------------------------------------------------------

    def _relay_through_others(self, query: Query, response: bytes) -> None:
        """Sends copies by way of random members, for one who asked for that redundancy."""
        destination = RelayDestination(host=query.reply_to.packed, port=query.reply_to.port)
        header = encode(RelayHeader(destination=destination, name=query.source))
        relayed = bytes([SerfType.RELAY]) + header + response
        if len(relayed) > limits.query_bytes_max:
            return
        helpers = [
            record
            for record in self._cluster.records()
            if record.status is Status.ALIVE
            and record.versions.delegate_max >= _RELAY_PROTOCOL
            and record.name != self._cluster.name
        ]
        for helper in self._rng.sample(helpers, min(query.relay_factor, len(helpers))):
            self._cluster.send_to(helper.address, relayed)

    def on_relay(self, payload: bytes) -> None:
        """Passes a message on, as its sender asks. Raises MalformedMessage.

        Only to a member: a node that sends anything to anywhere for anybody is a weapon.
        """
        unpacker = msgpack.Unpacker(max_buffer_size=limits.stream_bytes_max, **UNPACK_LIMITS)
        try:
            unpacker.feed(payload)
            header = from_map(RelayHeader, unpacker.unpack())
        except UNPACK_ERRORS as error:
            raise MalformedMessage("relayed message without its header") from error
        if not any(record.address == header.address for record in self._cluster.records()):
            raise MalformedMessage("relayed message to somebody who is no member")
        self._cluster.send_to(header.address, payload[unpacker.tell() :])


def require_size(what: str, encoded: bytes, bytes_max: int) -> None:
    """Raises EventTooLarge."""
    if len(encoded) > bytes_max:
        raise EventTooLarge(
            f"{what} of {len(encoded)} bytes, more than {bytes_max}",
            bytes=len(encoded),
            bytes_max=bytes_max,
        )
