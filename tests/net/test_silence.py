"""Real nodes on hosts of their own, whose network loses everything for a while."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.judges import leave_out
from tests.net.network import ROOT, why_not, within

HEALED_SECONDS_MAX = 2.0
FAULTS = ("mute", "vanish", "stop", "bridge")


@pytest.mark.timeout(300)
async def test_somebody_leads_soon_after_a_network_is_whole_again() -> None:
    """After 5 s of silence TCP alone takes longer than that; `make net` has longer ones. Without
    another node's word a client waits longer for a leader that nobody hears, or that hangs."""
    if why := why_not():
        leave_out("a network of its own", why)
    process = await asyncio.create_subprocess_exec(
        *within("0.9", "5", *FAULTS),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    told = [json.loads(line) for line in out.splitlines()]
    assert [each["loss"] for each in told] == [0.9, 5.0, *FAULTS]
    assert all(each["leader"] < HEALED_SECONDS_MAX for each in told if "leader" in each), told
    assert all(each["write"] < HEALED_SECONDS_MAX + 1.0 for each in told), told
