"""All connections of one node to others. Who they are is proved first; then frames flow, from the
one that dialled to the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

import structlog

from proglog import limits
from proglog.aio.ticker import Ticker
from proglog.peers.accepted import Accepted
from proglog.peers.connection import Connection
from proglog.peers.frames import Lane
from proglog.peers.hello import Hello, Life, Refusal
from proglog.peers.local import Certificate, Connect, Home, Known, Local, Names, Receiver
from proglog.peers.peer import Peer
from proglog.ports import Clock

_logger = structlog.get_logger("peers")


class Peers:
    """See the module. `attach` a log, and tell by `configure` who its servers are."""

    def __init__(
        self,
        *,
        connect: Connect,
        chance: random.Random,
        clock: Clock,
        rpc_addr: str,
        cluster_name: str = "",
        incarnation: int = 1,
        certificate: Certificate = lambda _: None,
    ) -> None:
        self._local = Local(
            connect=connect,
            chance=chance,
            clock=clock,
            rpc_addr=rpc_addr,
            cluster_name=cluster_name,
            incarnation=incarnation,
            session=f"{chance.getrandbits(128):032x}",
            loop=asyncio.get_running_loop(),
            certificate=certificate,
        )
        self._peers: dict[str, Peer] = {}
        # In the order of their making, unlike sets: so that a simulated run is always the same.
        self._strangers: dict[Accepted, None] = {}
        """Accepted, but not greeted yet."""
        self._accepted: dict[tuple[str, Lane], Accepted] = {}
        self._refused: dict[str, Refusal] = {}
        """Why each of those that called was refused last; they call again all the time."""
        self.ticker = Ticker(limits.tick_seconds)
        """The one of the node: whatever else has to look at something now and then shares it."""
        self._closed = False
        self.has_begun = False
        """Whether somebody speaks for this node."""

    @property
    def cluster_name(self) -> str:
        """What this node calls its cluster."""
        return self._local.cluster_name

    # --- groups ----------------------------------------------------------------------------------

    def begin(self, home: Home) -> None:
        """From now on others can be told who we are, by the one that speaks for this node."""
        assert not self.has_begun, "a node is one"
        self.has_begun = True
        self._local.home = home
        self.ticker.add(self._beat)

    def attach(self, group: int, receiver: Receiver) -> None:
        """The frames of this group go there."""
        assert group not in self._local.groups, "a group is one log"
        self._local.groups[group] = receiver
        for lane in Lane:
            for peer in self._peers.values():
                peer.state(group, lane)

    def remember(self, lives: Iterable[Life]) -> None:
        """The latest lives that this node, in an earlier one of its own, knew of others."""
        for life in lives:
            self.peer(life.uuid).lives_as(life)

    def state(self, group: int) -> None:
        """Tells all others where we stand in a log, as far as they can be reached."""
        for peer in self._peers.values():
            peer.state(group, Lane.CONTROL)

    def detach(self, group: int) -> None:
        """There is no such group any more."""
        self._local.groups.pop(group, None)
        self._local.levels.pop(group, None)
        self.configure(group, ())

    def configure(self, group: int, servers: Iterable[Known]) -> None:
        """The servers of a group: connections are kept to all of them. Those to servers of no group
        are forgotten."""
        known = {server.uuid: server for server in servers}
        known.pop(self._local.home.identity.uuid, None)
        for uuid, peer in list(self._peers.items()):
            if group in peer.known and uuid not in known:
                del peer.known[group]
                if not self._is_kept(peer):
                    self._peers.pop(uuid).close()
        for uuid, server in known.items():
            peer = self.peer(uuid)
            peer.known[group] = server
            if not self._closed:
                peer.dial_soon()

    def _is_kept(self, peer: Peer) -> bool:
        return peer.is_wanted or peer.is_hinted

    # --- others ----------------------------------------------------------------------------------

    def peer(self, uuid: str) -> Peer:
        """The node of this uuid, of which perhaps nothing is known."""
        peer = self._peers.get(uuid)
        if peer is None:
            peer = self._peers[uuid] = Peer(self._local, uuid)
            self._forget_oldest()
        return peer

    def _forget_oldest(self) -> None:
        """There is a bound on those that were only heard of."""
        if len(self._peers) > limits.peers_max:
            unwanted = (uuid for uuid, peer in self._peers.items() if not peer.is_wanted)
            if (uuid := next(unwanted, None)) is not None:
                self._peers.pop(uuid).close()

    def address_of(self, uuid: str) -> str:
        """Where a node is; may be ""."""
        if uuid == self._local.home.identity.uuid:
            return self._local.rpc_addr
        peer = self._peers.get(uuid)
        return peer.address if peer else ""

    def name_of(self, uuid: str) -> str:
        """What to call a node in front of people."""
        peer = self._peers.get(uuid)
        return peer.name if peer else uuid

    def clock_offset(self, uuid: str) -> float | None:
        """A node's wall clock less our loop's time, in ms; None if it has not told it lately."""
        peer = self._peers.get(uuid)
        return peer.offsets.best(self._local.loop.time()) if peer else None

    def tell_levels(self, group: int, reached: int, level_max: int) -> None:
        """Who cannot compute replicated state of the level that a group has reached is refused
        from now on, and others are told that we can up to `level_max`."""
        self._local.levels[group] = reached
        self._local.level_max = level_max

    def level_of(self, uuid: str) -> int:
        """The latest level that a node says it can compute; 0 while it is not connected."""
        peer = self._peers.get(uuid)
        return peer.control.level if peer else 0

    def hint(self, uuid: str, name: str, address: str) -> None:
        """Someone told where a node can be reached. The handshake proves who answers there."""
        if address and uuid != self._local.home.identity.uuid:
            self.peer(uuid).hint(name, address)

    def _beat(self, _ticks: int) -> int:
        """Looks at all connections. After a stall nobody is judged before what waits is read."""
        if self._local.awake.beat():
            self._look()
        return max(round(limits.peer_beat_seconds / limits.tick_seconds), 1)

    def _look(self) -> None:
        for peer in list(self._peers.values()):
            peer.beat()
        for accepted in list(self._accepted.values()):
            if accepted.pulse.is_lost:
                accepted.give_up("it says nothing")

    # --- connections that others dialled ---------------------------------------------------------

    def accept(self, names: Names | None = None) -> asyncio.Protocol:
        """The protocol of a connection that another node dialled; PROLOGUE comes first. `names`
        says whose certificate it has, where it is encrypted."""
        return Accepted(self._local, self, names)

    def configured(self, uuid: str) -> tuple[str, str] | None:
        """Name and address of a server of some log, as its configuration has them."""
        peer = self._peers.get(uuid)
        return peer.configured if peer else None

    def arrived(self, accepted: Accepted) -> None:
        """A connection is there, and has said nothing yet."""
        if self._closed:
            accepted.give_up("this node stops")
        self._strangers[accepted] = None
        if len(self._strangers) > limits.peer_strangers_max:
            next(iter(self._strangers)).give_up("too many connections wait for a greeting")

    def why_not(self, life: Life) -> Refusal | None:
        """Why one that calls itself this is not believed."""
        peer = self._peers.get(life.uuid)
        return None if peer is None else peer.why_not(life)

    async def is_twin(self, life: Life) -> bool:
        """Whether an earlier life of this node is still there, at the other end of some lane: its
        process answers what it is asked now. After a plain restart there is none to ask."""
        lanes: list[Connection | None] = [self._accepted.get((life.uuid, lane)) for lane in Lane]
        if (peer := self._peers.get(life.uuid)) is not None:
            lanes.append(peer.control.connection)
        older = [lane for lane in lanes if lane is not None and lane.life != life]
        if not older:
            return False
        asked = [lane.ask_whether_there() for lane in older]
        await asyncio.wait(asked, timeout=limits.twin_seconds_max)
        is_there = any(answer.done() and answer.result() for answer in asked)
        for answer in asked:
            answer.cancel()
        return is_there

    def welcomed(self, accepted: Accepted, hello: Hello) -> None:
        """It takes the place of an older one: whoever dials again knows that that is lost."""
        self._strangers.pop(accepted, None)
        self.peer(hello.life.uuid).lives_as(hello.life)
        for lane in Lane:
            of_old = self._accepted.get((accepted.peer, lane))
            if of_old is not None and of_old.life != hello.life:
                of_old.give_up("it was started anew")
        key = (accepted.peer, accepted.lane)
        older, self._accepted[key] = self._accepted.get(key), accepted
        if older is not None:
            older.give_up("there is a newer one")
        self.hint(hello.life.uuid, hello.life.name, hello.address)
        self._bound_lanes()
        # It is there: no pause is needed to find out.
        self.peer(hello.life.uuid).control.dial_soon(now=True)

    def _bound_lanes(self) -> None:
        if len(self._accepted) > limits.peer_lanes_max:
            unwanted = (a for a in self._accepted.values() if not self.peer(a.peer).is_wanted)
            if (oldest := next(unwanted, None)) is not None:
                oldest.give_up("too many lanes of nodes that are no servers")

    def refused(self, hello: Hello, refusal: Refusal) -> None:
        """A caller is turned away; told once."""
        uuid = hello.life.uuid
        if self._refused.get(uuid) != refusal:
            if len(self._refused) >= limits.peers_max:
                self._refused.pop(next(iter(self._refused)))
            self._refused[uuid] = refusal
            peer = f"{hello.life.name} at {hello.address}"
            _logger.warning("peer refused", peer=peer, code=refusal.code, why=refusal.why)
        known = self._peers.get(uuid)
        if known is not None and known.life != hello.life:
            known.give_up(hello.life, refusal.why)

    def stood(self, accepted: Accepted) -> None:
        """It may take part."""
        self._refused.pop(accepted.peer, None)

    def refusal_of(self, uuid: str) -> Refusal | None:
        """Why a node was refused here, if it has not been accepted since."""
        return self._refused.get(uuid)

    def refusals(self, group: int) -> list[tuple[str, Refusal]]:
        """The servers of a log that are refused here, by name, and why."""
        peers = [peer for peer in self._peers.values() if group in peer.known]
        return [(p.name, self._refused[p.uuid]) for p in peers if p.uuid in self._refused]

    def ended(self, accepted: Accepted) -> None:
        """A connection is gone; by now there may be another one in its place."""
        self._strangers.pop(accepted, None)
        key = (accepted.peer, accepted.lane)
        if self._accepted.get(key) is not accepted:
            return
        del self._accepted[key]
        for receiver in list(self._local.groups.values()):
            if accepted.lane is Lane.BULK:
                receiver.bulk_ended(accepted.peer)
            elif not accepted.given_up:
                # What we ended for its silence says nothing about the process at the other end.
                receiver.disconnected(accepted.peer)

    def close(self) -> None:
        """Ends all connections."""
        self._closed = True
        self.ticker.remove(self._beat)
        for peer in self._peers.values():
            peer.close()
        for accepted in [*self._strangers, *self._accepted.values()]:
            accepted.give_up("this node stops")
