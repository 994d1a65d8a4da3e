"""Every error a user or a peer can meet, and what it means: the outcome table.

An error answers three questions. *What happened?* `reason` is stable and machine-readable; `facts`
are its numbers and names; the message is one line for a person. *Did it happen?* `outcome` says
whether the request certainly had no effect (DEFINITE) or may have had one (UNKNOWN). *What now?*
`action` is what a client does about it. `status` is the gRPC status it travels as, `http_status`
the HTTP one. Each class below is one row of the table and `ROWS` is the whole of it: servers encode
errors from it, clients decode from it, tests enumerate it.
"""

from __future__ import annotations

import enum
import errno
import os
import socket
from pathlib import Path
from typing import ClassVar

from proglog import limits

DOMAIN = "proglog"
"""Domain of the google.rpc.ErrorInfo that carries reason and facts."""


class Status(enum.IntEnum):
    """The gRPC status codes in use (grpc/doc/statuscodes.md)."""

    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Outcome(enum.Enum):
    """Whether a request that failed may nevertheless have taken effect."""

    DEFINITE = "definite"
    UNKNOWN = "unknown"


class Action(enum.Enum):
    """What a client does about an error before it tells its user."""

    GIVE_UP = "give up"
    RETRY_HERE = "retry here"
    RETRY_ELSEWHERE = "retry elsewhere"
    RAISE_UNKNOWN = "raise OutcomeUnknown"


class ProglogError(Exception):
    """Root of all errors of this package.

    Attributes:
        facts: what the error is about, as text by name; the same on the server and on a client.
    """

    reason: ClassVar[str] = "INTERNAL"
    status: ClassVar[Status] = Status.INTERNAL
    http_status: ClassVar[int] = 500
    outcome: ClassVar[Outcome] = Outcome.UNKNOWN
    action: ClassVar[Action] = Action.RAISE_UNKNOWN

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = {name: str(value) for name, value in facts.items()}

    def __str__(self) -> str:
        return str(self.args[0])

    def number(self, name: str) -> int | None:
        """The named fact as a number, or None where it is absent or is none."""
        text = self.facts.get(name, "")
        return int(text) if text.isdecimal() else None


class _Definite(ProglogError):
    outcome = Outcome.DEFINITE
    action = Action.GIVE_UP


class OffsetOutOfRange(_Definite):
    """The offset is not, or not any more, in the log. Facts: offset, earliest, next."""

    reason = "OFFSET_OUT_OF_RANGE"
    status = Status.OUT_OF_RANGE
    http_status = 404

    @classmethod
    def of(cls, offset: int, earliest: int, next_offset: int) -> OffsetOutOfRange:
        return cls(
            f"offset {offset} is out of range: the log holds [{earliest}, {next_offset})",
            offset=offset,
            earliest=earliest,
            next=next_offset,
        )


class InvalidRequest(_Definite):
    """The request is malformed; sending it again changes nothing."""

    reason = "INVALID_REQUEST"
    status = Status.INVALID_ARGUMENT
    http_status = 400


class InvalidBatch(_Definite):
    """The batch is malformed, too large, or fails its checksum."""

    reason = "INVALID_BATCH"
    status = Status.INVALID_ARGUMENT
    http_status = 400


class PartialDuplicate(_Definite):
    """A retry that overlaps what was appended without being the same batch."""

    reason = "PARTIAL_DUPLICATE"
    status = Status.INVALID_ARGUMENT
    http_status = 400


class TooLarge(_Definite):
    """A message, record or request exceeds its bound. Facts: bytes, bytes_max."""

    reason = "TOO_LARGE"
    status = Status.RESOURCE_EXHAUSTED
    http_status = 413


class UnknownLog(_Definite):
    """There is no log of this name. Facts: log."""

    reason = "UNKNOWN_LOG"
    status = Status.NOT_FOUND
    http_status = 404


class NotLeader(_Definite):
    """This node does not lead. Facts: leader, leader_addr (empty while none is known), term."""

    reason = "NOT_LEADER"
    status = Status.FAILED_PRECONDITION
    http_status = 421
    action = Action.RETRY_ELSEWHERE


class Unavailable(_Definite):
    """The node cannot serve this now: it starts, drains, transfers, or has no leader."""

    reason = "UNAVAILABLE"
    status = Status.UNAVAILABLE
    http_status = 503
    action = Action.RETRY_ELSEWHERE


class Overloaded(_Definite):
    """A bound on work in flight is reached: of the server, or of the client's connections to it."""

    reason = "OVERLOADED"
    status = Status.RESOURCE_EXHAUSTED
    http_status = 503
    action = Action.RETRY_HERE


class DiskFull(_Definite):
    """No space could be reserved for the batch; nothing was appended. Service resumes by itself."""

    reason = "DISK_FULL"
    status = Status.RESOURCE_EXHAUSTED
    http_status = 507


class EarlierRefused(_Definite):
    """An earlier batch of the same produce stream was refused, so this one was not appended."""

    reason = "EARLIER_REFUSED"
    status = Status.ABORTED
    http_status = 409
    action = Action.RETRY_HERE


class OffsetMismatch(_Definite):
    """Compare-and-append: the log's next offset is not the expected one. Facts: expected, next."""

    reason = "OFFSET_MISMATCH"
    status = Status.FAILED_PRECONDITION
    http_status = 409


class UnknownProducer(_Definite):
    """The producer's earlier batches are not known any more, or it cannot be told whether there
    were any. Nothing was appended this time; an earlier try may have been.

    Facts: producer_id, and seen_index for the next id that the client makes up.
    """

    reason = "UNKNOWN_PRODUCER"
    status = Status.FAILED_PRECONDITION
    http_status = 409


class SequenceGap(_Definite):
    """A batch of an idempotent producer came before its predecessor. Facts: expected, sequence."""

    reason = "SEQUENCE_GAP"
    status = Status.FAILED_PRECONDITION
    http_status = 409


class ChangeRefused(_Definite):
    """A change of the cluster is not allowed now; the message says why."""

    reason = "CHANGE_REFUSED"
    status = Status.FAILED_PRECONDITION
    http_status = 409


class Unauthenticated(_Definite):
    """The caller did not prove who it is."""

    reason = "UNAUTHENTICATED"
    status = Status.UNAUTHENTICATED
    http_status = 401


class PermissionDenied(_Definite):
    """The caller may not do this. Facts: subject, action, log."""

    reason = "PERMISSION_DENIED"
    status = Status.PERMISSION_DENIED
    http_status = 403


class RangeCorrupt(_Definite):
    """Stored bytes fail their checks and are not served. Facts: file, position, offset."""

    reason = "RANGE_CORRUPT"
    status = Status.UNAVAILABLE
    http_status = 503
    action = Action.RETRY_ELSEWHERE


class RecordLost(_Definite):
    """The record was damaged, and `proglog repair` gave it up. Facts: offset, next: the offset of
    the first record after it that is there."""

    reason = "RECORD_LOST"
    status = Status.DATA_LOSS
    http_status = 410

    @classmethod
    def of(cls, offset: int, next_offset: int) -> RecordLost:
        return cls(
            f"the records [{offset}, {next_offset}) were damaged, and a repair gave them up",
            offset=offset,
            next=next_offset,
        )


class OutcomeUnknown(ProglogError):
    """The request may or may not take effect: its answer did not come before the deadline or the
    connection, leadership or node was lost while it was under way."""

    reason = "OUTCOME_UNKNOWN"
    status = Status.UNAVAILABLE
    http_status = 504


class DeadlineExceeded(ProglogError):
    """No answer within the caller's deadline."""

    reason = "DEADLINE_EXCEEDED"
    status = Status.DEADLINE_EXCEEDED
    http_status = 504


class Internal(ProglogError):
    """A fault of the server; its log says more."""


ROWS: tuple[type[ProglogError], ...] = (
    OffsetOutOfRange,
    InvalidRequest,
    InvalidBatch,
    PartialDuplicate,
    TooLarge,
    UnknownLog,
    NotLeader,
    Unavailable,
    Overloaded,
    DiskFull,
    EarlierRefused,
    OffsetMismatch,
    UnknownProducer,
    SequenceGap,
    ChangeRefused,
    Unauthenticated,
    PermissionDenied,
    RangeCorrupt,
    RecordLost,
    OutcomeUnknown,
    DeadlineExceeded,
    Internal,
)
BY_REASON = {row.reason: row for row in ROWS}
assert len(BY_REASON) == len(ROWS), "two errors share a reason"


def from_reason(reason: str, message: str, facts: dict[str, str]) -> ProglogError:
    """The error a server named by its reason; one it may not know of yet is Internal."""
    error = BY_REASON.get(reason, Internal)(message)
    error.facts = dict(facts)
    return error


def clip(text: str, bytes_max: int) -> str:
    """The beginning of a text that may be anybody's, at most so many bytes of UTF-8."""
    return text[:bytes_max].encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")


def quoted(name: str) -> str:
    """A name of somebody's choice as an error shows it: in quotes, and shortened if it is long."""
    shown = clip(name, limits.error_name_bytes_max)
    return repr(shown) if len(shown) == len(name) else f"{shown!r}..."


def let_go(error: BaseException) -> None:
    """To be called with an error that is dealt with: it keeps its own text and nothing else.

    Its trace holds the frames that it passed, and these whatever was under way in them. Often that
    leads back to the error, as where a future failed that stands in one of them: then megabytes
    would wait for the garbage collector.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None


def reason_of(error: OSError) -> str:
    """What the system says, without the address that asyncio adds to it."""
    if error.errno is None or isinstance(error, socket.gaierror):  # has numbers of its own
        return error.strerror or str(error)
    return os.strerror(error.errno)


def why_not_bound(error: OSError) -> str:
    """Why nothing can listen on an address, and what to do: choose … (the caller says what)."""
    why = reason_of(error)
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved ({why}). Choose"
    if error.errno == errno.EADDRINUSE:
        return f"{why}. Is another node running? Stop it, or choose"
    return f"{why}. Choose"


# --- errors that never cross the network ---------------------------------------------------------


class UsageError(InvalidRequest):
    """The program uses an object in a way that cannot work: it has not entered it, or uses it from
    another event loop, or from two tasks where there is room for one."""


class LogClosed(UsageError):
    """The log was closed by the program."""


class ConfigurationError(_Definite):
    """A setting, file or command line is wrong: says which, where, and what to do."""


class CorruptionError(_Definite):
    """Durable bytes fail their checks: the node refuses to start. Facts: file, position."""


class UnknownFormat(_Definite):
    """A file is whole, but of a version that is not known here: nothing was touched. Facts: file,
    version."""

    exit_status = 3
    """Of a program that ends for it."""

    @classmethod
    def of(cls, path: Path, version: str) -> UnknownFormat:
        return cls(
            f"{path} has format version {version}, which this version of Proglog does not know. "
            "Nothing was changed; use the version that wrote it, or another directory",
            file=path,
            version=version,
        )


class StorageFailed(ProglogError):
    """The disk refused a write or a sync of reserved space: fatal, never retried."""


class ConsumerGap(_Definite):
    """Retention overtook a consumer, or a repair gave up what was damaged. Facts: lost_from,
    lost_until (exclusive)."""
