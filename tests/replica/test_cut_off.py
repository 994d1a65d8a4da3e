"""A leader that is cut off tells whoever waits that it does not know, once it leads no more."""

from __future__ import annotations

import asyncio

import pytest

from proglog import limits
from proglog.errors import OutcomeUnknown
from proglog.log.names import DEFAULT_GROUP
from proglog.raft.config import RaftConfig
from tests.doubles.loop import SimLoop
from tests.replica.support import proposed
from tests.replica.test_two_logs import three_nodes

pytestmark = pytest.mark.virtual_time


async def test_what_a_cut_off_leader_took_is_answered_soon_after_it_leads_no_more() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    async with three_nodes() as nodes:
        first = nodes[0].logs[DEFAULT_GROUP]
        loop.network.partition(["n0"], ["n1", "n2"])
        answer = await first.propose(proposed(b"lost or not"))
        began = loop.time()
        with pytest.raises(OutcomeUnknown):
            await answer
        election = limits.tick_seconds * RaftConfig().election_ticks
        took = loop.time() - began
        assert took < 2 * election + limits.deposed_answer_seconds_max + 0.1
        assert not first.leadership.is_mine
        loop.network.heal()
