"""Who is looked for, where, and how often: the finder alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from proglog.membership import Status, Timing, limits
from proglog.membership.address import Address
from proglog.membership.codec.messages import OURS
from proglog.membership.serf.finder import Finder
from proglog.membership.serf.members import MemberRecord
from proglog.membership.swim.timers import Timers


def record(number: int, status: Status = Status.ALIVE, *, heard: bool = True) -> MemberRecord:
    return MemberRecord(
        name=f"n{number}", address=at(number), versions=OURS, tags={}, status=status, heard=heard
    )


def at(number: int) -> Address:
    return Address(f"10.0.0.{number}", 7946)


class Alone:
    """A node with a finder: its owner, and its SWIM as well."""

    name, address = "n1", at(1)

    def __init__(self, *others: MemberRecord) -> None:
        self.is_running = True
        self.members = [record(1), *others]
        self.tried: list[tuple[float, Address]] = []
        self.joining: set[bool] = set()
        self.timers = Timers(0.0)
        self.timing = Timing.lan()
        self.finder = Finder(self, self, self.timing, self.timers, random.Random(1))
        self.finder.start()

    def records(self) -> list[MemberRecord]:
        return self.members

    def rejoined(self) -> None: ...

    def synchronise_with(
        self,
        address: Address,
        *,
        join: bool,
        joining: bool,
        on_merged: Callable[[], None] = lambda: None,
    ) -> int:
        assert join
        self.joining.add(joining)
        self.tried.append((self.timers.now, address))
        return 0

    def times(self) -> dict[float, int]:
        """When it tried whom it tried last, and how many then."""
        return Counter(when for when, _ in self.tried)

    def run(self, seconds: float) -> list[Address]:
        """Whom it tries meanwhile."""
        self.tried.clear()
        end = self.timers.now + seconds
        while (due := self.timers.next_deadline) is not None and due <= end:
            self.timers.fire(due)
        return [address for _, address in self.tried]


def test_who_failed_is_tried_by_turns_for_ever() -> None:
    """All together about once a second: of four who are there, each in one of four."""
    node = Alone(*(record(number) for number in (2, 3, 4)), record(9, Status.FAILED))
    for _ in range(5):
        assert node.run(40.0) == [at(9)] * 10
    times = [when for when, _ in node.tried]
    assert max(b - a for a, b in pairwise(times)) < 5.0, "no luck is needed"


def test_who_has_answered_before_is_tried_rather_than_who_is_made_up() -> None:
    made_up = [record(number, Status.FAILED, heard=False) for number in range(20, 60)]
    node = Alone(record(2), *made_up, record(9, Status.FAILED))
    assert set(node.run(40.0)) == {at(9)}
    node = Alone(record(2), *made_up)
    assert len(node.run(40.0)) >= 40, "who failed is tried, if nobody better did"


def test_nobody_is_looked_for_by_who_leaves_or_misses_nobody() -> None:
    node = Alone(record(2), record(9, Status.FAILED))
    node.is_running = False
    assert node.run(40.0) == []
    node = Alone(record(2), record(3, Status.LEFT))
    assert node.run(40.0) == []


def test_once_one_is_back_all_others_are_tried_at_once() -> None:
    node = Alone(record(2), *(record(number, Status.FAILED) for number in (7, 8, 9)))
    node.finder.returned()
    assert set(node.run(node.timing.reconnect_interval_s)) == {at(7), at(8), at(9)}


def test_what_another_life_is_told_begins_with_who_has_answered() -> None:
    node = Alone(
        record(2, heard=False),
        record(3, Status.FAILED),
        record(4, Status.LEFT),
        record(5),
    )
    node.finder.former = (at(6), at(4), at(1))
    assert node.finder.known() == (at(5), at(3), at(6), at(2))
    node.finder.remember()
    node.members = [record(1)]
    assert node.finder.known() == (at(5), at(3), at(6), at(2)), "whoever is not listed any more"


def test_the_only_one_left_tries_who_failed_each_time() -> None:
    node = Alone(record(9, Status.FAILED))
    assert node.run(40.0) == [at(9)] * 40
    assert node.joining == {False}, "it knows the past of the cluster"


def test_the_eager_time_is_bounded() -> None:
    node = Alone(record(2), *(record(number, Status.FAILED) for number in (7, 8, 9)))
    node.finder.returned()
    node.run(node.timing.reconnect_eager_s)
    assert [count for _, count in sorted(node.times().items())] == [3, 3, 3, 3, 1]


FORMER = tuple(at(number) for number in range(20, 30))


def test_former_peers_are_tried_ever_more_rarely_by_who_is_alone() -> None:
    node = Alone()
    node.finder.former = FORMER
    node.run(200.0)
    assert set(node.times().values()) == {limits.rejoins_max}
    gaps = [later - sooner for sooner, later in pairwise(node.times())]
    for gap, pause in zip(gaps, [1, 2, 4, 8, 16, 30, 30, 30], strict=False):
        assert pause / 2 <= gap <= pause
    assert node.joining == {True}, "as one who joins anew"
    # Beside somebody else one is tried, now and then; alone again, it begins as before.
    node.members = [record(1), record(2), record(3, Status.FAILED)]
    node.run(120.0)
    rare = {when: count for when, count in node.times().items() if (when, at(3)) not in node.tried}
    assert set(rare.values()) == {1}
    assert min(later - sooner for sooner, later in pairwise(rare)) >= 15.0
    node.members = [record(1)]
    node.run(60.0)
    gaps = [later - sooner for sooner, later in pairwise(node.times())]
    assert gaps[0] <= 1.0


def test_who_leaves_tries_nobody_of_old() -> None:
    node = Alone()
    node.finder.former = FORMER
    node.is_running = False
    assert node.run(60.0) == []
    node.is_running = True
    node.finder.former = ()
    assert node.run(60.0) == []
