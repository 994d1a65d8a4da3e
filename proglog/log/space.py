"""Space for the next segment: allocated before it is needed, so that a full disk is a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from proglog import limits
from proglog.batch import HEADER_BYTES
from proglog.config import LogConfig
from proglog.errors import DiskFull, reason_of
from proglog.log import format as fmt
from proglog.log.operations import Operation, Reserve, Reserved
from proglog.log.segment import Segment
from proglog.ports import File


class Space:
    """The reserved files, and who waits for them. Belongs to a log."""

    def __init__(
        self, folder: Path, config: LogConfig, submit: Callable[[Operation], None]
    ) -> None:
        self._folder = folder
        self._config = config
        self._submit = submit
        self._loop = asyncio.get_running_loop()
        self._asking = False
        self._taken_since = False
        """Whether the reserved files were taken after those under way were asked for."""
        self._refused_at = -limits.reserve_retry_seconds
        self._refusal = ""
        self.is_refused = False
        """Whether the newest answer is that there is no space."""
        self._failure: BaseException | None = None
        self._changed: asyncio.Future[None] = self._loop.create_future()
        self.reserved: Reserved | None = None

    def fits(self, size: int, batches: int) -> bool:
        """Whether so many batches of `size` bytes in all fit into the reserved segment."""
        return (
            self.reserved is not None
            and capacity_for(size) <= self.reserved.capacity
            and batches <= self._config.segment_batches
        )

    async def wait(self, size: int, active: Segment) -> None:
        """Asks for space for `size` bytes and waits for the answer, which may be for less.

        Raises DiskFull if there is none, or what the log failed with.
        """
        if self._failure is not None:
            raise self._failure
        if not self._may_ask():
            raise DiskFull(self._refusal)
        self._ask(size, active)
        await asyncio.shield(self._changed)

    def ask(self, size: int, active: Segment) -> None:
        """Asks for space, unless that is under way or was just refused."""
        if self._may_ask():
            self._ask(size, active)

    def _may_ask(self) -> bool:
        return self._loop.time() - self._refused_at >= limits.reserve_retry_seconds

    def _ask(self, size: int, active: Segment) -> None:
        if self._asking:
            return
        self._asking = True
        self._taken_since = False
        self._submit(
            Reserve(
                capacity=max(self._config.segment_bytes, capacity_for(size)),
                index_bytes=fmt.index_bytes_max(self._config.segment_batches),
                active_index=active.index_path if active.index_file is None else None,
            )
        )

    def take(self, size: int) -> Reserved:
        """The reserved files become the active segment, whose first batch has `size` bytes."""
        reserved = self.reserved
        assert reserved is not None, "a batch was appended without room"
        assert capacity_for(size) <= reserved.capacity
        self.reserved = None
        self._taken_since = True
        return reserved

    # --- answers ---------------------------------------------------------------------------------

    def granted(self, reserved: Reserved, active: Segment) -> None:
        self._asking = self.is_refused = False
        if self._taken_since:
            # It grew the file that became the active segment meanwhile; another one is to be made.
            reserved.store.close()
            reserved.index_file.close()
        else:
            # The same file, larger. What is reserved is never given up before: batches may have
            # been admitted into it that are not appended yet.
            self.forget()
            self.reserved = reserved
        if reserved.active_index is not None:
            self._hand_over(*reserved.active_index, active)
        self._tell()

    @staticmethod
    def _hand_over(path: Path, index_file: File, active: Segment) -> None:
        # Meanwhile a roll, a cut or a snapshot may have made another segment the active one.
        if path == active.index_path and active.index_file is None:
            active.index_file = index_file
        else:
            index_file.close()

    def refused(self, error: OSError) -> None:
        self._asking = False
        self.is_refused = True
        self._refused_at = self._loop.time()
        self._refusal = (
            f"no room for another segment in {self._folder}: {reason_of(error)}. What is "
            "stored stays readable; free some and writing goes on by itself"
        )
        self._tell()

    def failed(self, error: BaseException) -> None:
        """The log can write no more: nobody need wait."""
        self._failure = error
        self._tell()

    def _tell(self) -> None:
        self._changed.set_result(None)
        self._changed = self._loop.create_future()

    def forget(self) -> None:
        """Lets go of the reserved files."""
        if self.reserved is not None:
            self.reserved.store.close()
            self.reserved.index_file.close()
            self.reserved = None


def capacity_for(size: int) -> int:
    """Space that a segment needs to hold one batch of `size` bytes."""
    return fmt.PREAMBLE_BYTES + size + HEADER_BYTES
