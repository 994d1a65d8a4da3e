"""A release in real containers, under load from outside, through all that happens to pods.

PROGLOG_PODS_OPERATIONS: how many operations are done at random after those that are named here.
PROGLOG_PODS_SEED: which. PROGLOG_PODS_PAUSE: if set, the longest pause, in seconds, that planned
work may make (a machine that does something else at the same time makes pauses of its own).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.certificates import certificate_for
from tests.pods.driver import Cluster, Load, running, together, until

OPERATIONS = int(os.environ.get("PROGLOG_PODS_OPERATIONS", "3"))
SEED = int(os.environ.get("PROGLOG_PODS_SEED", "1"))
PAUSE = float(os.environ.get("PROGLOG_PODS_PAUSE", "0"))
pytestmark = pytest.mark.timeout(900 + 60 * OPERATIONS)


class Story:
    """What was done, how long it took, and how long the load stood still."""

    def __init__(self, cluster: Cluster, load: Load) -> None:
        self._cluster = cluster
        self._load = load

    def tell(self, what: str, act: Callable[[], object], *, planned: bool = True) -> None:
        since = self._load.mark()
        act()
        self._cluster.wait_ready()
        # One more acknowledgement ends the pause that there may be.
        now = self._load.mark()
        until(lambda: self._load.has_told_since(now), "records go on")
        pause = self._load.pause_since(since)
        print(f"{what}: {time.time() - since:.1f} s, longest pause {pause:.2f} s", flush=True)
        assert not (planned and PAUSE and pause > PAUSE), f"{what} made a pause of {pause:.2f} s"


def test_all_that_happens_to_pods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o755)
    with running(tmp_path) as cluster, capsys.disabled():
        print()
        began = time.monotonic()
        cluster.scale(3)
        print(f"three pods formed a cluster in {time.monotonic() - began:.1f} s")
        assert cluster.voters() == {cluster.pod(each) for each in range(3)}
        cluster.helm_test()
        load = Load(cluster, tmp_path / "load")
        story = Story(cluster, load)
        story.tell("rolling restart of three, new addresses", cluster.roll)
        # 3, not safe within 10 s, is for a machine that is busy with something else.
        assert all(said[0] in "03" for said in cluster.said), cluster.said
        story.tell("kill -9 of the leader", lambda: cluster.kill(cluster.leader()), planned=False)
        story.tell(
            "the leader's pod deleted by force",
            lambda: cluster.delete_by_force(cluster.leader()),
            planned=False,
        )
        story.tell(
            "the leader runs out of memory",
            lambda: cluster.run_out_of_memory(cluster.leader()),
            planned=False,
        )
        story.tell("3 -> 5", lambda: scaled(cluster, 5))
        cluster.said.clear()
        story.tell("5 -> 3", lambda: scaled(cluster, 3))
        assert sorted(cluster.said) == ["0 left the cluster"] * 2
        story.tell("a volume is lost", lambda: lost(cluster), planned=False)
        story.tell("two evicted at once", lambda: evicted(cluster), planned=False)
        story.tell("to none and back", lambda: paused(cluster), planned=False)
        at_random(cluster, story)
        found = load.finish()
        print(f"{found['told']} records acknowledged in all")
        assert (found["lost"], found["doubled"], found["failed"]) == ([], [], [])
        assert found["told"] > 100


def test_tls_is_turned_on_by_two_upgrades(tmp_path: Path) -> None:
    """Each a rolling restart, with one certificate for all pods, as a Secret is."""
    tmp_path.chmod(0o755)
    with running(tmp_path) as cluster:
        cluster.scale(3)
        tls = tmp_path / "tls"
        tls.mkdir()
        certificate, key = certificate_for(f"*.{cluster.domain}", "localhost")
        for name, data in (("tls.crt", certificate), ("tls.key", key), ("ca.crt", certificate)):
            (tls / name).write_bytes(data)
        cluster.tls = tls
        for mode in ("optional", "required"):
            cluster.render(tls={"mode": mode, "existingSecret": "mine"})
            # Each pod is ready, and so knows a leader, among some of the old kind and of the new.
            cluster.roll()


def scaled(cluster: Cluster, replicas: int) -> None:
    cluster.scale(replicas)
    names = {cluster.pod(each) for each in range(replicas)}
    until(lambda: cluster.voters() == names, f"{replicas} voters")


def lost(cluster: Cluster) -> None:
    """A follower's, whose name comes back as a new server."""
    ordinal = (cluster.leader() + 1) % cluster.replicas
    before = {each["id"]: each["uuid"] for each in cluster.cluster_status()["servers"]}
    cluster.lose_volume(ordinal)
    name = cluster.pod(ordinal)
    other = (ordinal + 1) % cluster.replicas

    def is_new() -> bool:
        found = {each["id"]: each for each in cluster.cluster_status(other)["servers"]}
        return (
            name in found
            and found[name]["uuid"] != before[name]
            and found[name]["suffrage"] == "voter"
        )

    until(is_new, f"{name} is a new server")


def evicted(cluster: Cluster) -> None:
    together(cluster.stop, (0, 1))
    together(cluster.start, (0, 1))


def paused(cluster: Cluster) -> None:
    replicas = cluster.replicas
    cluster.said.clear()
    cluster.scale(0)
    # A pause, and no leaving: the volumes come back to the cluster that they left.
    assert not any("left the cluster" in said for said in cluster.said), cluster.said
    cluster.scale(replicas)


def at_random(cluster: Cluster, story: Story) -> None:
    chance = random.Random(SEED)

    def some() -> int:
        return chance.randrange(cluster.replicas)

    def replaced(ordinal: int) -> None:
        cluster.stop(ordinal)
        cluster.start(ordinal)

    operations: dict[str, Callable[[], object]] = {
        "one is stopped and started": lambda: replaced(some()),
        "one is killed": lambda: cluster.kill(some()),
        "one is deleted by force": lambda: cluster.delete_by_force(some()),
        "a rolling restart": cluster.roll,
        "to five": lambda: scaled(cluster, 5),
        "to three": lambda: scaled(cluster, 3),
        "a volume is lost": lambda: lost(cluster),
    }
    for number in range(OPERATIONS):
        what = chance.choice(sorted(operations))
        story.tell(f"{number + 1}. {what}", operations[what], planned=False)
