"""The port between the client and a log: four calls, whether the log is here or far away.

A backend tries each call once. Trying again is the client's business: it knows the deadlines, and
which refusals are final.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeGuard

from proglog import limits
from proglog.batch import NO_TIMESTAMP, ProposedBatch, Record
from proglog.errors import ConfigurationError, InvalidRequest, LogClosed, ProglogError
from proglog.types import Appended, Chunk, Description

OFFSETS_END = 2**64


def log_closed(message: str = "the log is closed") -> LogClosed:
    """What a log that its user has closed answers to everything."""
    return LogClosed(message)


class At(NamedTuple):
    """The first record appended at or after this time, in milliseconds since the epoch."""

    timestamp: int


Start: TypeAlias = int | At | Literal["earliest", "latest"]
"""Where reading begins: an offset, a time, the oldest record retained, or the next to come."""


class ProduceStream(Protocol):
    """Batches of one producer, appended in the order of `submit`."""

    async def submit(self, batch: ProposedBatch) -> asyncio.Future[Appended]:
        """Hands over one batch, waiting while the log has no room for it.

        The answers come in order. Once a batch is refused, by an exception here or in its future,
        the stream appends nothing more: later batches fail too, with EarlierRefused.

        Raises ProglogError.
        """

    async def close(self) -> None:
        """Ends the stream. Answers that are still out may never come."""


class Backend(Protocol):
    """Reaches one log."""

    async def open(self) -> None:
        """Makes it ready, once, on the loop that it is used from. Raises ProglogError."""

    async def open_produce(self) -> ProduceStream:
        """A new stream for batches. Nothing is appended if it fails. Raises ProglogError."""

    def consume(
        self,
        start: Start,
        *,
        follow: bool,
        linearizable: bool = False,
        leader: bool = False,
        bytes_max: int = 0,
    ) -> AsyncGenerator[Chunk, None]:
        """Whole data batches from `start` on, in chunks of about `bytes_max` (0: as the log likes).

        The first batch may begin before an offset asked for. The first chunk comes at once; it may
        be empty, and says where reading begins. `follow` waits at the end instead of ending there.
        `linearizable`: whatever was acknowledged anywhere before this call is there to be read.
        `leader`: only the node is asked that is believed to lead.

        A reader that finds a chunk damaged throws the error in here, so that it is known.

        Raises ProglogError; OffsetOutOfRange also midway, when retention overtakes the reader.
        """

    async def read(self, offset: int, *, leader: bool = False) -> Record:
        """One record. Raises ProglogError."""

    async def describe(self, *, leader: bool = False) -> Description:
        """What the log holds and who leads it. Raises ProglogError."""

    async def close(self) -> None:
        """Lets go of everything."""

    def abort(self) -> None:
        """As `close`, where nobody can wait for it: its object was dropped."""


def to_offset(offset: object) -> int:
    """Checks an offset that came from a user. Raises InvalidRequest."""
    if not _is_int(offset) or not 0 <= offset < OFFSETS_END:
        raise InvalidRequest(f"an offset is a number from 0 to 2**64 - 1, not {offset!r}")
    return offset


def to_milliseconds(moment: int | datetime) -> int:
    """A time as milliseconds since the epoch. Raises InvalidRequest."""
    time: object = moment
    if isinstance(moment, datetime):
        if moment.utcoffset() is None:
            raise InvalidRequest(
                f"{moment} names no time zone: give it one, as in {moment}+00:00 (tzinfo=UTC), or"
                " milliseconds since the epoch"
            )
        time = round(moment.timestamp() * 1000)
    if not _is_int(time) or not 0 <= time < NO_TIMESTAMP:
        raise InvalidRequest(
            f"a time is milliseconds since the epoch, or a datetime with a zone, not {moment!r}"
        )
    return time


def to_timeout(seconds: object, error: type[ProglogError] = ConfigurationError) -> float:
    """Checks how long calls may take. Raises ConfigurationError, or another."""
    if (
        not isinstance(seconds, int | float)
        or isinstance(seconds, bool)
        or not 0 < seconds <= limits.client_timeout_seconds_max  # Also where it is nan.
    ):
        raise error(
            "timeout_seconds is a number of seconds, more than 0 and at most"
            f" {limits.client_timeout_seconds_max}, not {seconds!r}"
        )
    return float(seconds)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
