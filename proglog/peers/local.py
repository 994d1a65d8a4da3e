"""This end of all connections: who we are, and whose frames go where."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from proglog import limits
from proglog.batch import Buffer
from proglog.peers.frames import Lane
from proglog.peers.hello import Hello, Life, Refusal
from proglog.peers.pulse import AwakeClock
from proglog.ports import Clock

Connect = Callable[[str, Callable[[], asyncio.Protocol]], Awaitable[object]]
"""Opens a connection to an address with a protocol. Raises OSError."""


Names = Callable[[str, str], bool]
"""Whether the certificate at the other end of a connection is that of a node, by its name and by
the host of its address."""
Certificate = Callable[[asyncio.BaseTransport], Names | None]
"""Of a connection that we dialled; None where it is not encrypted, and that is allowed."""


def host_of(address: str) -> str:
    """Of "host:port", without brackets."""
    return address.rpartition(":")[0].strip("[]")


class Identity(Protocol):
    """Who a node is. Ids are UUIDs as text; the name is for people."""

    @property
    def cluster_id(self) -> str:
        """Empty while it belongs to none."""

    @property
    def uuid(self) -> str: ...

    @property
    def name(self) -> str: ...


class Home(Protocol):
    """The node that the connections belong to."""

    @property
    def identity(self) -> Identity: ...

    async def adopt_cluster(self, cluster_id: str) -> None:
        """This node joins a cluster, durably. Raises Unavailable if it belongs to another."""

    def doubted(self, refusal: Refusal, by: str) -> None:
        """Another node, whom people know by this name, has refused this one as what it says that
        it is."""

    def failed(self, error: BaseException) -> None:
        """A promise is broken: the node must end."""


class Receiver(Protocol):
    """A log, as the frames of its group reach it. Nothing here waits: a connection is everybody's,
    and is never held up for one."""

    def statement(self) -> Buffer | None:
        """What this server states of itself at the beginning of every connection, before anything
        else. None: it may take part in nothing, and says nothing."""

    def stands(self, life: Life, payload: memoryview) -> Refusal | None:
        """A peer's statement. Why nothing of what it says counts, if so. Raises FrameError."""

    def receive(self, peer: str, type_: int, payload: memoryview) -> None:
        """A frame of a peer that stands. Raises FrameError; UnknownType if it does not know the
        type."""

    def unreachable(self, peer: str) -> None:
        """What was sent to a peer in bulk may be lost, or it has no such log."""

    def reconnected(self, peer: str) -> None:
        """What is said to a peer on the control lane gets there again."""

    def disconnected(self, peer: str) -> None:
        """A peer has ended the control lane that it had dialled; there is no other one."""

    def bulk_ended(self, peer: str) -> None:
        """The bulk lane that a peer had dialled is over."""


class Known(NamedTuple):
    """A server that a log knows of, to which connections are kept."""

    uuid: str
    name: str
    address: str
    is_voter: bool
    """Others can wait a little longer to be dialled again."""


@dataclass(slots=True, kw_only=True)
class Local:
    """Shared by all connections."""

    connect: Connect
    chance: random.Random
    clock: Clock
    rpc_addr: str
    cluster_name: str
    incarnation: int
    session: str
    loop: asyncio.AbstractEventLoop
    certificate: Certificate = lambda _: None
    awake: AwakeClock = field(init=False)
    groups: dict[int, Receiver] = field(default_factory=dict)
    levels: dict[int, int] = field(default_factory=dict)
    """The level that the state of each group has reached,"""
    level_max: int = 1
    """and the latest that we can compute."""
    home: Home = field(init=False)

    def __post_init__(self) -> None:
        self.awake = AwakeClock(self.loop.time, limits.peer_beat_seconds)

    @property
    def level_needed(self) -> int:
        """Who cannot compute replicated state of this level is refused."""
        return max(self.levels.values(), default=1)

    @property
    def life(self) -> Life:
        identity = self.home.identity
        return Life(identity.uuid, identity.name, self.incarnation, self.session)

    def hello(self, to: str, lane: Lane) -> Hello:
        return Hello(
            life=self.life,
            address=self.rpc_addr,
            cluster_id=self.home.identity.cluster_id,
            cluster_name=self.cluster_name,
            to=to,
            lane=lane.value,
            level=self.level_max,
        )
