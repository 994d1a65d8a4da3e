"""What would be left of a running node's disk if the power went at this moment, or a bit rotted.

Each probe takes a copy of the disk as it may be after a power cut, has the copy recovered, and
compares: everything that the node has called durable is there, byte for byte, nothing that it has
cut comes back, and it remembers its term and its vote. Rot may make recovery refuse, never forget.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from proglog.errors import CorruptionError, ProglogError
from proglog.log.reading import Damage
from proglog.log.recovery import Recovered, recover
from proglog.log.segment import Segment
from proglog.raft.hard_state import HardStateFile
from tests.doubles import crash
from tests.doubles.files import SimFiles
from tests.sim.disks import FOLDER, PREAMBLE_BYTES, position_of_newest_mark, read_batches
from tests.sim.oracle import Violation, require

if TYPE_CHECKING:
    from tests.sim.node import SimNode

_NO_CUT = 2**64


class Probe:
    """One look at one node."""

    def __init__(self, node: SimNode, chance: random.Random) -> None:
        self._folder = FOLDER
        self._node = node
        self._chance = chance
        self._log = node.replica.log
        self._durable = node.replica.log.durable_index
        self._promised = node.spoken
        changes = node.disk.unsynced()
        plan = crash.subset(changes, chance)
        self._label = plan.label
        self._disk = node.disk.crash(plan.fates)

    def run(self) -> None:
        """Raises Violation."""
        self._node.oracle.counts["probes"] += 1
        rots = self._chance.random() < 0.3
        if rots:
            self._rot()
        try:
            recovered = self._recover()
        except CorruptionError as error:
            if rots:
                return
            what = f"{self._node.name} after {self._label}: {error}"
            raise Violation("recovery refuses", what) from error
        self._check_log(recovered)
        self._check_promise()

    def _recover(self) -> Recovered:
        settings = self._node.world.settings
        return recover(
            SimFiles(self._disk),
            self._folder,
            segment_bytes=settings.log.segment_bytes,
            segment_batches=settings.log.segment_batches,
        )

    def _rot(self) -> None:
        """One bit of what is in use: a store, an index or the hard state."""
        names = [
            name
            for name in sorted(self._disk.listing(self._folder))
            if name.endswith((".store", ".index", "hard-state"))
        ]
        path = self._folder / self._chance.choice([*names[-8:], "hard-state"])
        first, last = self._rottable(path)
        if last > first:
            self._label += f", rot in {path.name}"
            self._disk.flip_bit(path, self._chance.randrange(first * 8, last * 8))

    def _rottable(self, path: Path) -> tuple[int, int]:
        """Which bytes of a file one may lose without a second fault. Behind the newest mark, rot
        cannot be told from a write that was torn: see the log's DESIGN.md."""
        inode = self._disk.find(path)
        if path.name == "hard-state":
            if self._node.disk.find(path).unsynced:
                # One copy may be torn: the other one is all there is.
                return 0, 0
            place = self._chance.choice((0, 4096))
            length = int.from_bytes(inode.cached.read(4, place + 12), "little")
            return place, place + length
        if path.suffix == ".index":
            return 0, inode.cached.size
        return PREAMBLE_BYTES, position_of_newest_mark(self._disk, path)

    def _check_log(self, recovered: Recovered) -> None:
        node = self._node
        found = {batch.index: batch.crc for batch in read_batches(self._disk, self._folder)}
        base = max(recovered.segments[0].index.before.index, node.base_index)
        rotten = "rot" in self._label
        for index in range(base + 1, self._durable + 1):
            known = node.logged.get(index)
            require(
                known is None or found.get(index) == known.crc or (rotten and index not in found),
                "durable is lost",
                f"{node.name} would lose batch {index} of {self._durable}: {self._label}",
            )
        require(
            recovered.tip.index >= self._durable,
            "durable is lost",
            f"{node.name} would end at {recovered.tip.index}, not {self._durable}: {self._label}",
        )
        if self._log._old_reports_hold_to == _NO_CUT:
            for index in range(self._durable + 1, recovered.tip.index + 1):
                known = node.logged.get(index)
                require(
                    known is not None
                    and (known.crc == found.get(index) or (rotten and index not in found)),
                    "a cut suffix comes back",
                    f"{node.name} would have a batch {index} that it cut: {self._label}",
                )
        for segment in recovered.segments:
            self._check_index(segment)

    def _check_index(self, segment: Segment) -> None:
        """Batches are where the index says, all of them if it was damaged, unless they are."""
        if segment.store_path.name in self._label:
            return
        damaged = segment.index_path.name in self._label
        for index in range(segment.first_index, segment.last_index + 1, 1 if damaged else 8):
            position, size = segment.extent(index, index, 1)
            data = segment.read(size, position)
            try:
                if isinstance(data, Damage):
                    raise segment.damaged(data, index)
                headers = segment.check(data, position, index)
            except ProglogError as error:
                raise Violation("index", f"{self._label}: {error}") from error
            offset = segment.index.base_offset(index - segment.first_index)
            require(headers[0].base_offset == offset, "index", f"{self._label}: {index}")

    def _check_promise(self) -> None:
        try:
            kept = HardStateFile(SimFiles(self._disk), self._folder).hard_state
        except CorruptionError as error:
            raise Violation("promise is lost", f"{self._label}: {error}") from error
        promised = self._promised
        require(
            kept.term > promised.term
            or (kept.term == promised.term and promised.vote in {"", kept.voted_for}),
            "promise is lost",
            f"{self._node.name} would forget {promised}, has {kept}: {self._label}",
        )
