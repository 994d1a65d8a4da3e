"""Changes of the cluster: add, promote, remove, hand over. One at a time, by the leader."""

from __future__ import annotations

import asyncio
import contextlib

from proglog import limits
from proglog.batch import HEADER_BYTES
from proglog.errors import ChangeRefused, NotLeader, Unavailable, quoted
from proglog.log.log import Log
from proglog.raft.configuration import AddLearner, Change, Promote, Remove, Server, changed
from proglog.raft.driver import Driver
from proglog.replica.leadership import Leadership
from proglog.replica.timekeeper import Timekeeper
from proglog.replica.waiters import CommitWaiters


class Members:
    """See the module. Belongs to a replica."""

    def __init__(
        self, leadership: Leadership, driver: Driver, log: Log, waiters: CommitWaiters
    ) -> None:
        self._leadership = leadership
        self._driver = driver
        self._log = log
        self._waiters = waiters
        self._loop = asyncio.get_running_loop()
        self._asked_for: set[str] = set()
        """Servers whose vote an operator wants, whatever comes of it. As leader, in this life."""

    def has_room(self, size: int = limits.control_bytes_reserved) -> bool:
        """Whether a batch of our own of this size can be appended; a small one unless given."""
        return self._log.has_room(
            self._driver.pending_bytes + size, self._driver.pending_batches + 1
        )

    def _size_of(self, change: Change | None) -> int:
        """Of the batch with the next configuration; without a change one that adds a server whose
        name and address are not long. Raises ChangeRefused."""
        configuration = self._leadership.configuration
        if change is None:
            return len(configuration.encode()) + limits.control_bytes_reserved
        return HEADER_BYTES + len(changed(configuration, change).encode())

    async def add(self, server: Server, *, by_operator: bool = False) -> None:
        """Adds a learner, which becomes a voter by itself once it has caught up: see `promote`. A
        server of the same name that lost its disk, and so its uuid, is removed first.

        Returns when the change is committed. Raises NotLeader, ChangeRefused, Unavailable,
        OutcomeUnknown.
        """
        await self.turn()
        configuration = self._leadership.configuration
        if by_operator:
            self._asked_for = {each for each in self._asked_for if configuration.find(each)}
            self._asked_for.add(server.uuid)
        if configuration.find(server.uuid) is not None:
            return
        others = {peer.id: peer for peer in self._driver.raft.status().peers}
        for old in configuration.servers:
            if old.name == server.name:
                peer = others.get(old.uuid)
                if peer is None or peer.active:  # None: this server itself
                    raise ChangeRefused(f"there is a {old.name} that answers: choose another name")
                if not peer.silent:
                    raise Unavailable(f"whether the old {old.name} answers is not known yet")
                await self._change(Remove(old.uuid))
        await self._change(AddLearner(server))

    async def remove(self, name: str) -> None:
        """Removes a server by its name or uuid. Returns and raises as `add`."""
        await self._change(Remove(self._uuid_of(name)))

    async def turn(self, change: Change | None = None) -> None:
        """Until a change may be proposed: the one before is committed, and so is the beginning of
        this leadership, and there is room for it. A change that the caller then decides on, without
        waiting in between, is proposed in the same step.

        Raises NotLeader, ChangeRefused, DiskFull, or Unavailable where that takes too long.
        """
        deadline = self._loop.time() + limits.answer_seconds_max
        while True:
            if self._is_settled():
                size = self._size_of(change)
                if self.has_room(size):
                    return
                await self._log.make_room(size)
            elif not self._leadership.is_mine:
                raise self._leadership.refusal()
            if self._loop.time() >= deadline:
                raise Unavailable("another change of the cluster is not committed yet")
            await asyncio.sleep(limits.tick_seconds)

    def _is_settled(self) -> bool:
        status = self._driver.raft.status()
        return (
            status.committed_own_term
            and status.transferee is None
            and status.configuration_index <= status.commit
        )

    def _uuid_of(self, name: str) -> str:
        for server in self._leadership.configuration.servers:
            if name in {server.name, server.uuid}:
                return server.uuid
        raise ChangeRefused(f"no server of the cluster is called {quoted(name)}", server=name)

    async def _change(self, change: Change) -> None:
        await self.turn(change)
        try:
            index, term = self._driver.propose_change(change)
        except NotLeader:
            raise self._leadership.refusal() from None
        await self._waiters.add(index, term, self._loop.time() + limits.answer_seconds_max)

    async def fix_time(self, timekeeper: Timekeeper) -> int:
        """Sets log time, which was ahead, to the agreed time: by an operator's word, as nobody else
        can know who was wrong. By how many ms it goes back, once that is committed.

        Stamps never go back by themselves. The correction is one batch that is stamped with the
        right time and begins a segment; behind it stamps ascend again. It needs no place in the
        state: a batch counts as appended no later than any that follows it (`Contents`). So those
        that were stamped ahead count as appended when that was corrected: seeking finds them too
        early rather than too late, and for their age they go too late rather than too early.

        Raises ChangeRefused where log time is not ahead, or the voters' clocks do not all agree;
        else as `add`.
        """
        while True:
            await self.turn()
            if (why_not := timekeeper.why_not_corrected()) is not None:
                raise ChangeRefused(why_not)
            # Nothing else may take the room, and what was appended before is stamped before.
            if self._driver.pending_batches:
                await self._driver.taken.wait()
            elif self._log.has_room_to_roll(HEADER_BYTES):
                break
            else:
                self._log.ask_for_room(HEADER_BYTES)
                await asyncio.sleep(limits.tick_seconds)
        stamp = timekeeper.stamp_ms
        back = self._log.tip.timestamp - stamp
        try:
            index, term = self._driver.propose_command(b"", stamp=stamp)
        except NotLeader:
            raise self._leadership.refusal() from None
        await self._waiters.add(index, term, self._loop.time() + limits.answer_seconds_max)
        return back

    def promote(self) -> None:
        """Makes a learner that has caught up a voter, while there are not too many.

        Not the second of two, unless an operator wants it: two voters do not write without each
        other, so the first would depend on whoever came by. Two learners become voters, one after
        the other, once both have caught up.
        """
        configuration = self._leadership.configuration
        if (
            not configuration.learners
            or not self._leadership.is_mine
            or len(configuration.voters) >= limits.voters_max
        ):
            return
        ready = [
            peer.id
            for peer in self._driver.raft.status().peers
            if peer.caught_up and not configuration.is_voter(peer.id)
        ]
        if len(configuration.voters) == 1 and len(ready) == 1:
            ready = [uuid for uuid in ready if uuid in self._asked_for]
        if ready:
            change = Promote(ready[0])
            with contextlib.suppress(ChangeRefused, Unavailable):
                # Another change or a transfer is under way: the next tick tries again.
                if self.has_room(self._size_of(change)):
                    self._driver.propose_change(change)

    async def transfer(self, name: str = "") -> None:
        """Hands leadership to a voter by name or uuid, or to the best one. Proposals are refused
        until it is done; those made before are committed first.

        Raises NotLeader, ChangeRefused, or Unavailable if it did not come about in time.
        """
        leadership = self._leadership
        if not leadership.is_mine:
            raise leadership.refusal()
        self._driver.transfer(self._uuid_of(name) if name else None)
        try:
            async with asyncio.timeout(limits.transfer_seconds_max):
                while leadership.is_mine or leadership.state.leader is None:
                    await leadership.changed.wait()
        except TimeoutError:
            raise Unavailable("no other server took over in time; this one leads on") from None
