"""What anybody may send to the gossip port of a node: fourteen attacks, and well-formed packets
without any sense. Nothing here knows a key: whoever sends may seal what it makes, or send it again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proglog.membership import limits
from proglog.membership.address import Address
from proglog.membership.codec.messages import (
    OURS,
    Ack,
    Alive,
    Dead,
    IndirectPing,
    Nack,
    NodeState,
    Ping,
    State,
    Suspect,
    Type,
    encode_message,
)
from proglog.membership.codec.serf_messages import (
    JoinIntent,
    LeaveIntent,
    QueryFlag,
    QueryMessage,
    QueryResponse,
    SerfState,
    UserEventMessage,
    encode_serf,
    encode_tags,
)
from proglog.membership.codec.streams import PushPull
from tests.membership.test_hostile_addresses import UNREACHABLE, hostile, push_pull, user

NOBODY = Address("127.0.0.1", 1)
FAR = limits.lamport_time_max - 1
LAST = limits.incarnation_max


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A node as the network knows it."""

    name: str
    uuid: str
    rpc_addr: str
    gossip: Address


class Forger:
    """Makes messages, each of one datagram, about some nodes."""

    def __init__(self, targets: Sequence[Target], cluster_id: str, chance: random.Random) -> None:
        self._targets = targets
        self._cluster_id = cluster_id
        self._chance = chance
        self._count = 0

    @property
    def attacks(self) -> list[Callable[[], list[bytes]]]:
        return [
            self.addresses_that_cannot_be,
            self.leaves,
            self.phantoms,
            self.deaths,
            self.last_incarnations,
            self.other_addresses,
            self.leave_intents,
            self.late_times,
            self.queries,
            self.fake_members,
            self.fake_newcomers,
            self.fake_candidates,
            self.same_names,
            self.strangers,
        ]

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _tags(self, target: Target, **changed: str) -> dict[str, str]:
        own = {"cluster_name": "proglog", "role": "proglog", "cluster": self._cluster_id}
        return {**own, "uuid": target.uuid, "rpc_addr": target.rpc_addr, **changed}

    # --- attacks ---------------------------------------------------------------------------------

    def addresses_that_cannot_be(self) -> list[bytes]:
        return hostile(self._chance.choice(UNREACHABLE))

    def leaves(self) -> list[bytes]:
        """ "I have left", from each, faster than it can object."""
        far = 1000 * self._next()
        return [
            encode_message(Dead(incarnation=far % LAST, node=each.name, source=each.name))
            for each in self._targets
        ]

    def phantoms(self) -> list[bytes]:
        """A node that nobody runs has a server's uuid, and leaves."""
        target, name = self._chance.choice(self._targets), f"phantom{self._next() % 50}"
        alive = member(name, NOBODY, self._next(), self._tags(target))
        return [alive, encode_message(Dead(incarnation=self._count, node=name, source=name))]

    def deaths(self) -> list[bytes]:
        near = 50 * self._next()
        return [
            encode_message(kind(incarnation=near % LAST, node=each.name, source="somebody"))
            for each in self._targets
            for kind in (Suspect, Dead)
        ]

    def last_incarnations(self) -> list[bytes]:
        return [
            encode_message(Dead(incarnation=LAST, node=each.name, source=each.name))
            for each in self._targets
        ]

    def other_addresses(self) -> list[bytes]:
        """ "This server is now there", where nobody is."""
        number = self._next()
        return [
            member(
                each.name,
                each.gossip,
                10_000 + number,
                self._tags(each, rpc_addr=f"127.0.0.{2 + number % 200}:1"),
            )
            for each in self._targets
        ]

    def leave_intents(self) -> list[bytes]:
        times = (FAR, limits.lamport_ahead_max // 2 + self._next())
        return [
            user(LeaveIntent(ltime=ltime, node=each.name, prune=bool(self._count % 2)))
            for each in self._targets
            for ltime in times
        ]

    def late_times(self) -> list[bytes]:
        name = f"somebody{self._next()}"
        return [
            user(JoinIntent(ltime=FAR, node=name)),
            user(UserEventMessage(ltime=FAR, name=name)),
            user(UserEventMessage(ltime=self._count, name=name, payload=bytes(400))),
        ]

    def queries(self) -> list[bytes]:
        """Whose answers should go somewhere else."""
        return [
            user(
                QueryMessage(
                    ltime=self._next(),
                    id=self._count,
                    host=NOBODY.packed,
                    port=9,
                    source="q",
                    flags=QueryFlag.ACK,
                    relay_factor=5,
                    timeout_ns=10**10,
                    name=name,
                )
            )
            for name in ("_serf_ping", "_serf_conflict", "_serf_install-key", "x")
        ]

    def fake_members(self) -> list[bytes]:
        return [
            member(f"fake{self._next() % 5000}", NOBODY, 1, {"role": "proglog"}) for _ in range(8)
        ]

    def fake_newcomers(self) -> list[bytes]:
        """Who would become learners, if they answered."""
        name = f"new{self._next() % 300}"
        tags = {"role": "proglog", "uuid": name, "rpc_addr": "127.0.0.1:1"}
        return [member(name, NOBODY, self._count, tags)]

    def fake_candidates(self) -> list[bytes]:
        name = f"expects{self._next() % 300}"
        tags = {"role": "proglog", "uuid": name, "rpc_addr": "127.0.0.1:1", "expect": "3"}
        return [member(name, NOBODY, self._count, tags)]

    def same_names(self) -> list[bytes]:
        """A second node of each name, at an address of its own."""
        at = Address("127.0.0.1", 1 + self._next() % 60_000)
        return [member(each.name, at, LAST // 2, self._tags(each)) for each in self._targets]

    def strangers(self) -> list[bytes]:
        tags = {"cluster_name": f"other{self._next()}", "role": "proglog", "uuid": "u"}
        return [member(f"stranger{self._count}", NOBODY, 1, tags)]

    # --- the same by TCP -------------------------------------------------------------------------

    def push_pulls(self) -> list[PushPull]:
        """Whole states of others, all of it made up."""
        states = [
            NodeState(
                node=each.name,
                host=each.gossip.packed,
                port=each.gossip.port,
                incarnation=self._chance.choice([0, 7 * self._next(), LAST]) % (LAST + 1),
                state=self._chance.choice(list(State)),
                versions=OURS,
            )
            for each in self._targets
        ]
        serf = SerfState(
            ltime=self._chance.choice([self._next(), FAR]),
            status_ltimes={each.name: self._chance.choice([3, FAR]) for each in self._targets},
            left=tuple(each.name for each in self._targets),
            event_ltime=self._chance.choice([5, FAR]),
        )
        told = PushPull(join=True, nodes=tuple(states), user_state=encode_serf(serf))
        return [push_pull(*UNREACHABLE), told]

    # --- without any sense -----------------------------------------------------------------------

    def nonsense(self) -> bytes:
        """One well-formed message: every field is one that a message may have."""
        chance = self._chance
        name = chance.choice([*(each.name for each in self._targets), f"f{chance.randrange(400)}"])
        number = chance.choice([0, 1, chance.getrandbits(8), chance.getrandbits(32), LAST])
        ltime = chance.choice([0, 1, chance.getrandbits(10), chance.getrandbits(62)])
        host = chance.choice([chance.randbytes(4), chance.randbytes(16), NOBODY.packed])
        port = chance.randrange(1, 65536)
        payload = chance.randbytes(chance.randrange(300))
        source = chance.choice([name, self._targets[0].name, ""])
        at = {"host": host, "port": port}
        made: list[Callable[[], bytes]] = [
            lambda: encode_message(Ping(sequence=number, node=name, source_name=source)),
            lambda: encode_message(IndirectPing(sequence=number, node=name, nack=True, **at)),
            lambda: encode_message(Ack(sequence=number, payload=payload)),
            lambda: encode_message(Nack(sequence=number)),
            lambda: encode_message(Suspect(incarnation=number, node=name, source=source)),
            lambda: encode_message(Dead(incarnation=number, node=name, source=source)),
            lambda: encode_message(
                Alive(incarnation=number, node=name, meta=payload, versions=OURS, **at)
            ),
            lambda: user(JoinIntent(ltime=ltime, node=name)),
            lambda: user(LeaveIntent(ltime=ltime, node=name, prune=True)),
            lambda: user(UserEventMessage(ltime=ltime, name=name, payload=payload)),
            lambda: user(
                QueryMessage(
                    ltime=ltime, id=number, name=name, source=source, payload=payload, **at
                )
            ),
            lambda: user(QueryResponse(ltime=ltime, id=number, source=name, payload=payload)),
            lambda: bytes([chance.choice(list(Type))]) + payload,
        ]
        return chance.choice(made)()


def member(name: str, at: Address, incarnation: int, tags: dict[str, str]) -> bytes:
    return encode_message(
        Alive(
            incarnation=incarnation,
            node=name,
            host=at.packed,
            port=at.port,
            meta=encode_tags(tags),
            versions=OURS,
        )
    )
