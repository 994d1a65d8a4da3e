"""Who may take the place of whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proglog.errors import ChangeRefused, ProglogError, Unavailable
from proglog.raft.configuration import AddLearner, Change, Configuration, Remove, Server
from proglog.replica.members import Members

SERVERS = tuple(Server(uuid, uuid) for uuid in "abc")
NEW = Server("new", "c")


class Cluster:
    """Led by `a`; what is known of `c` is up to the test."""

    def __init__(self, *, active: bool, silent: bool) -> None:
        self.changes: list[Change] = []
        peers = [
            SimpleNamespace(id="b", active=True, silent=False),
            SimpleNamespace(id="c", active=active, silent=silent),
        ]
        status = SimpleNamespace(
            id="a",
            peers=peers,
            committed_own_term=True,
            transferee=None,
            configuration_index=1,
            commit=1,
        )
        driver = SimpleNamespace(
            raft=SimpleNamespace(status=lambda: status),
            propose_change=self.propose_change,
            pending_bytes=0,
            pending_batches=0,
        )
        self.leadership = SimpleNamespace(configuration=Configuration(SERVERS), is_mine=True)
        log = SimpleNamespace(has_room=lambda *_: True)
        self.members = Members(*cast("Any", (self.leadership, driver, log, self)))

    def propose_change(self, change: Change) -> tuple[int, int]:
        self.changes.append(change)
        return 2, 1

    async def add(self, *_: object) -> None:
        """Everything is committed at once."""
        if isinstance(self.changes[-1], Remove):
            self.leadership.configuration = Configuration(SERVERS[:2])


async def test_a_server_that_is_silent_is_replaced_by_one_of_its_name() -> None:
    cluster = Cluster(active=False, silent=True)
    await cluster.members.add(NEW)
    assert cluster.changes == [Remove("c"), AddLearner(NEW)]


@pytest.mark.parametrize(("active", "refusal"), [(True, ChangeRefused), (False, Unavailable)])
async def test_one_that_answers_or_may_yet_is_not(
    active: bool, refusal: type[ProglogError]
) -> None:
    """A leader has not heard from everybody when it has only just taken over."""
    cluster = Cluster(active=active, silent=False)
    with pytest.raises(refusal, match="answers"):
        await cluster.members.add(NEW)
    assert cluster.changes == []
