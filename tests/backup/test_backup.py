"""Backups of a log in use, and what is restored from them."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import proglog
from proglog import limits
from proglog.agent.embedded import open as open_log
from proglog.backup.contents import Contents, Refused, Status, load
from proglog.backup.place import Place
from proglog.backup.restore import restore, verify
from proglog.backup.take import Taking
from proglog.batch import walk
from proglog.cli.app import run
from proglog.client.network import NetworkBackend
from proglog.config import Address, LogConfig
from proglog.errors import ConfigurationError
from proglog.ports import Ports
from tests.agent.nodes import Nodes, some_nodes
from tests.waiting import meanwhile, until


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with some_nodes(tmp_path) as made:
        yield made


async def take(address: Address, dest: Path | str, **options: object) -> Contents:
    node = NetworkBackend([address], "", None)
    try:
        return await Taking(
            Place(str(dest)), node, address, now_ms=Ports().clock.now_ms, **options
        ).run()
    finally:
        await node.close()


async def batches_at(address: Address) -> list[tuple[object, ...]]:
    """All that a consumer can know of each batch: all but index, term and chain."""
    node = NetworkBackend([address], "", None)
    found: list[tuple[object, ...]] = []
    try:
        async for chunk in node.consume("earliest", follow=False, at=address):
            for header, body in walk(chunk.data):
                found.append(
                    (
                        header.base_offset,
                        header.count,
                        header.timestamp,
                        header.codec,
                        header.columns,
                        header.producer_id,
                        header.sequence,
                        bytes(body),
                    )
                )
    finally:
        await node.close()
    return found


async def fill(nodes: Nodes, count: int, size: int = 100) -> None:
    async with proglog.connect(nodes.url()) as log:
        await asyncio.gather(*(log.produce(b"%d " % each * (size // 4)) for each in range(count)))


async def test_what_is_restored_is_what_was_there_to_the_byte(nodes: Nodes, tmp_path: Path) -> None:
    node = await nodes.start("n0", bootstrap=True)
    async with proglog.connect(nodes.url(), compress=True) as log:
        await log.produce(b"value", key=b"key", headers={"a": b"b"}, timestamp=1_700_000_000_000)
        for _ in range(40):
            await log.produce_many([b"x" * 50] * 20)
    await fill(nodes, 50)
    before = await batches_at(node.rpc_addr)
    old = node.replica.identity
    contents = await take(node.rpc_addr, tmp_path / "backup")
    assert (contents.first, contents.next) == (0, node.replica.next_offset)
    await restore(Place(str(tmp_path / "backup")), tmp_path / "n1", node_name="n1", ports=Ports())
    # `verify` knows nothing of backups: what was made is a log like any other.
    assert await asyncio.to_thread(run, ["verify", str(tmp_path / "n1")]) == 0
    made = await nodes.start("n1")
    assert await batches_at(made.rpc_addr) == before
    new = made.replica.identity
    assert new.cluster_id != old.cluster_id
    assert new.uuid != old.uuid
    # It goes on, and others may join it.
    async with proglog.connect(f"proglog://{made.rpc_addr}") as log:
        assert await log.produce(b"more") == contents.next


async def test_a_backup_grows_by_what_is_new(nodes: Nodes, tmp_path: Path) -> None:
    node = await nodes.start("n0", bootstrap=True)
    dest = tmp_path / "backup"
    assert (await take(node.rpc_addr, dest)).next == 0
    for round_ in range(1, 4):
        await fill(nodes, 30)
        contents = await take(node.rpc_addr, dest)
        assert contents.next == 30 * round_
    # With nothing new, nothing is written.
    parts = sorted(path.name for path in (dest / "parts").iterdir())
    assert await take(node.rpc_addr, dest) == contents
    assert sorted(path.name for path in (dest / "parts").iterdir()) == parts
    await verify(Place(str(dest)))


async def test_taken_under_load_from_a_follower_it_is_a_prefix(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes.form("n0", "n1", "n2")
    leader = await nodes.find_leader()
    follower = next(node for node in nodes.running.values() if node is not leader)
    monkeypatch.setattr(limits, "backup_part_bytes", 2000)  # so that there are many
    dest = tmp_path / "backup"

    async def produce() -> None:
        async with proglog.connect(nodes.url()) as log:
            while True:
                await log.produce_many([b"x" * 100] * 10)

    async with meanwhile(produce()):
        for _ in range(5):
            await take(follower.rpc_addr, dest)
            await until(
                lambda before=leader.replica.next_offset: leader.replica.next_offset > before + 50
            )
        contents = await take(follower.rpc_addr, dest)
    assert len(contents.parts) >= 5
    await restore(Place(str(dest)), tmp_path / "new", node_name="new", ports=Ports())
    whole = await batches_at(leader.rpc_addr)
    new = await nodes.start("new")
    restored = await batches_at(new.rpc_addr)
    assert restored == whole[: len(restored)]
    assert restored[-1][0] + restored[-1][1] == contents.next  # type: ignore[operator]


async def test_a_log_whose_beginning_is_gone(nodes: Nodes, tmp_path: Path) -> None:
    """As after retention: offsets stay, and those before the first are out of range."""
    node = await nodes.start("n0", bootstrap=True)
    await fill(nodes, 40)
    whole = await take(node.rpc_addr, tmp_path / "whole")
    await restore(Place(str(tmp_path / "whole")), tmp_path / "n1", node_name="n1", ports=Ports())
    config = LogConfig.for_tests()
    made = await nodes.start(
        "n1",
        log=LogConfig(
            segment_bytes=config.segment_bytes,
            segment_batches=config.segment_batches,
            retention_bytes=config.segment_bytes,
            retention_check_seconds=0.05,
        ),
    )
    async with proglog.connect(f"proglog://{made.rpc_addr}") as log:
        while made.replica.earliest == 0:
            await log.produce(b"y" * 2000)
    first = made.replica.earliest
    assert 0 < first
    contents = await take(made.rpc_addr, tmp_path / "rest")
    assert contents.first >= first
    await restore(Place(str(tmp_path / "rest")), tmp_path / "n2", node_name="n2", ports=Ports())
    again = await nodes.start("n2")
    assert (again.replica.earliest, again.replica.next_offset) == (contents.first, contents.next)
    async with proglog.connect(f"proglog://{again.rpc_addr}") as log:
        with pytest.raises(proglog.OffsetOutOfRange):
            await log.read(contents.first - 1)
        assert (await log.read(contents.first)).offset == contents.first
    # A backup that is so old that retention was quicker has a hole, and says so.
    with pytest.raises(Refused, match="another destination") as refused:
        await take(again.rpc_addr, tmp_path / "whole")
    assert whole.cluster_id != contents.cluster_id
    assert refused.value.status == 1


async def test_retention_that_was_quicker_leaves_no_hole(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await nodes.start("n0", bootstrap=True)
    await fill(nodes, 10)
    await take(node.rpc_addr, tmp_path / "backup")
    await fill(nodes, 10)
    describe = NetworkBackend.describe

    async def later(self: NetworkBackend, **where: Any) -> object:
        return dataclasses.replace(await describe(self, **where), earliest=15)

    monkeypatch.setattr(NetworkBackend, "describe", later)
    with pytest.raises(Refused, match="offsets 10 to 14 are gone by retention") as refused:
        await take(node.rpc_addr, tmp_path / "backup")
    assert refused.value.status == Status.HOLE


async def test_another_log_is_not_taken_for_the_same(nodes: Nodes, tmp_path: Path) -> None:
    node = await nodes.start("n0", bootstrap=True)
    await fill(nodes, 10)
    await take(node.rpc_addr, tmp_path / "backup")
    other = await nodes.start("n1", bootstrap=True)
    with pytest.raises(Refused, match="choose another destination"):
        await take(other.rpc_addr, tmp_path / "backup")


async def test_the_same_cluster_id_with_another_history_is_seen(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await nodes.start("n0", bootstrap=True)
    await fill(nodes, 10)
    contents = await take(node.rpc_addr, tmp_path / "backup")
    other = await nodes.start("n1", bootstrap=True)
    await asyncio.gather(*(fill(nodes, 1) for _ in range(2)))
    async with proglog.connect(f"proglog://{other.rpc_addr}") as log:
        await log.produce_many([b"z"] * 20)
    describe = NetworkBackend.describe

    async def lie(self: NetworkBackend, **where: Any) -> object:
        found = await describe(self, **where)
        return dataclasses.replace(found, cluster_id=contents.cluster_id)

    monkeypatch.setattr(NetworkBackend, "describe", lie)
    with pytest.raises(Refused, match="another batch at offset"):
        await take(other.rpc_addr, tmp_path / "backup")


async def test_any_flipped_bit_is_refused_with_its_place(nodes: Nodes, tmp_path: Path) -> None:
    node = await nodes.start("n0", bootstrap=True)
    await fill(nodes, 5, size=20)
    dest = tmp_path / "backup"
    await take(node.rpc_addr, dest)
    chance = random.Random(1)
    for path in (dest / "backup.json", next((dest / "parts").iterdir())):
        whole = await asyncio.to_thread(path.read_bytes)
        for _ in range(60):
            position = chance.randrange(len(whole))
            changed = bytearray(whole)
            changed[position] ^= 1 << chance.randrange(8)
            if path.suffix == ".json" and bytes(changed).rstrip(b"\n") == whole.rstrip(b"\n"):
                continue
            await asyncio.to_thread(path.write_bytes, changed)
            with pytest.raises(Refused, match=path.name) as refused:
                await verify(Place(str(dest)))
            assert refused.value.status in {Status.DAMAGED, 3}
        await asyncio.to_thread(path.write_bytes, whole[:-3])
        with pytest.raises(Refused, match=path.name):
            await restore(Place(str(dest)), tmp_path / "new", node_name="n", ports=Ports())
        assert not await asyncio.to_thread((tmp_path / "new").exists)
        await asyncio.to_thread(path.write_bytes, whole)
    await verify(Place(str(dest)))
    await asyncio.to_thread(next((dest / "parts").iterdir()).unlink)
    with pytest.raises(Refused, match="is missing"):
        await verify(Place(str(dest)))


async def test_a_killed_backup_goes_on(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await nodes.start("n0", bootstrap=True)
    await fill(nodes, 50)
    monkeypatch.setattr(limits, "backup_part_bytes", 500)
    dest = tmp_path / "backup"
    writes = 0

    async def write(self: Place, name: str, data: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes % 4 == 0:  # a part is there, and what would name it is not
            raise OSError("killed")
        await asyncio.to_thread(self._write, name, data)

    monkeypatch.setattr(Place, "write", write)
    for _ in range(100):
        try:
            contents = await take(node.rpc_addr, dest)
            break
        except OSError:
            there = await load(Place(str(dest)))
            assert there is None or await verify(Place(str(dest))) == there
    assert contents.next == 50
    await verify(Place(str(dest)))


async def test_a_restore_makes_a_new_directory_only(nodes: Nodes, tmp_path: Path) -> None:
    node = await nodes.start("n0", bootstrap=True)
    await take(node.rpc_addr, tmp_path / "backup")
    with pytest.raises(Refused, match="is not empty"):
        await restore(
            Place(str(tmp_path / "backup")), tmp_path / "backup", node_name="n", ports=Ports()
        )
    with pytest.raises(Refused, match="there is no backup in"):
        await restore(Place(str(tmp_path / "none")), tmp_path / "n", node_name="n", ports=Ports())
    # Of an empty log, an empty log.
    await restore(Place(str(tmp_path / "backup")), tmp_path / "n1", node_name="n1", ports=Ports())
    async with open_log(tmp_path / "n1", segment_bytes=64 * 1024) as log:
        assert await log.produce(b"first") == 0


async def test_a_retry_across_a_restore_is_appended_once(nodes: Nodes, tmp_path: Path) -> None:
    node = await nodes.start("n0", bootstrap=True)
    await fill(nodes, 3)
    await take(node.rpc_addr, tmp_path / "backup")
    await restore(Place(str(tmp_path / "backup")), tmp_path / "n1", node_name="n1", ports=Ports())
    made = await nodes.start("n1")
    assert len(made.replica._applier.state.producers.encode()) == len(
        node.replica._applier.state.producers.encode()
    )


async def test_the_commands(nodes: Nodes, tmp_path: Path) -> None:
    node = await nodes.start("n0", bootstrap=True)
    await fill(nodes, 3)
    dest = tmp_path / "backup"

    async def proglog_cli(*words: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proglog.cli", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    server = f"--server={node.rpc_addr}"
    status, said = await proglog_cli("backup", str(dest), server, "--from=leader")
    assert status == 0
    assert said.startswith(f"backed up to {dest}\n3 records, offsets 0 to 2, ")
    assert (await proglog_cli("backup", str(dest), server, "--from=follower"))[0] == 1
    assert await proglog_cli("backup", str(dest), "--check") == (
        0,
        said.replace(f"backed up to {dest}", f"{dest} is whole"),
    )
    status, said = await proglog_cli("restore", str(dest), f"--data-dir={tmp_path / 'n1'}")
    assert status == 0
    assert f"proglog serve --data-dir {tmp_path / 'n1'}" in said
    part = next((dest / "parts").iterdir())
    await asyncio.to_thread(part.write_bytes, b"")
    status, said = await proglog_cli("backup", str(dest), "--check")
    assert status == 6
    assert part.name in said
    await asyncio.to_thread(shutil.rmtree, dest)


def test_an_address_that_nobody_knows() -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        Place("nowhere://bucket/folder")


async def test_after_a_majority_is_lost_for_good(nodes: Nodes, tmp_path: Path) -> None:
    """The procedure of docs/operations.md: one more backup from who is left, then a new cluster."""
    await nodes.form("n0", "n1", "n2")
    await fill(nodes, 20)
    leader = await nodes.find_leader()
    dest = tmp_path / "backup"
    await take(leader.rpc_addr, dest)
    async with proglog.connect(nodes.url()) as log:
        await log.produce_many([b"after the backup"] * 10)
    await nodes.voters("n0", "n1", "n2")  # all have applied it
    await nodes.stop("n0", "n1", "n2")
    for name in ("n0", "n1"):
        await nodes.wipe(name)
    left = await nodes.start("n2", start_join_addrs=())
    assert not left.replica.is_ready
    contents = await take(left.rpc_addr, dest)
    assert contents.next >= 20
    await restore(Place(str(dest)), tmp_path / "new", node_name="new", ports=Ports())
    made = await nodes.start("new")
    async with proglog.connect(f"proglog://{made.rpc_addr}") as log:
        assert await log.produce(b"goes on") == contents.next
    await nodes.stop("n2")
