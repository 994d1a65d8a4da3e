"""A distributed commit log for asyncio programs.

async with proglog.connect("proglog://127.0.0.1:8400") as log:
    offset = await log.produce(b"hello")
    async for record in log.consume(offset):
        ...

Names are imported when they are first used, so that the command line starts quickly and a client
loads nothing of the server.
"""

from __future__ import annotations

# As typing has it, which takes a while to load, like importlib: until the command line has the
# first word, Ctrl-C shows a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from proglog.agent.embedded import open  # noqa: A004  # as in gzip.open
    from proglog.batch import Record, RecordBatch
    from proglog.client.client import Log, connect
    from proglog.client.columns import NewRecord
    from proglog.client.consumer import Consumer, Last
    from proglog.client.producer import Producer
    from proglog.client.tls import Tls
    from proglog.errors import (
        ChangeRefused,
        ConfigurationError,
        ConsumerGap,
        CorruptionError,
        DeadlineExceeded,
        DiskFull,
        EarlierRefused,
        Internal,
        InvalidBatch,
        InvalidRequest,
        LogClosed,
        NotLeader,
        OffsetMismatch,
        OffsetOutOfRange,
        OutcomeUnknown,
        Overloaded,
        PartialDuplicate,
        PermissionDenied,
        ProglogError,
        RangeCorrupt,
        RecordLost,
        SequenceGap,
        StorageFailed,
        TooLarge,
        Unauthenticated,
        Unavailable,
        UnknownFormat,
        UnknownLog,
        UnknownProducer,
        UsageError,
    )
    from proglog.types import Description

__version__ = "0.1.0"

__all__ = [
    "ChangeRefused",
    "ConfigurationError",
    "Consumer",
    "ConsumerGap",
    "CorruptionError",
    "DeadlineExceeded",
    "Description",
    "DiskFull",
    "EarlierRefused",
    "Internal",
    "InvalidBatch",
    "InvalidRequest",
    "Last",
    "Log",
    "LogClosed",
    "NewRecord",
    "NotLeader",
    "OffsetMismatch",
    "OffsetOutOfRange",
    "OutcomeUnknown",
    "Overloaded",
    "PartialDuplicate",
    "PermissionDenied",
    "Producer",
    "ProglogError",
    "RangeCorrupt",
    "Record",
    "RecordBatch",
    "RecordLost",
    "SequenceGap",
    "StorageFailed",
    "Tls",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnknownFormat",
    "UnknownLog",
    "UnknownProducer",
    "UsageError",
    "__version__",
    "connect",
    "open",
]

_HOMES = {
    "Consumer": "proglog.client.consumer",
    "Description": "proglog.types",
    "Last": "proglog.client.consumer",
    "Log": "proglog.client.client",
    "NewRecord": "proglog.client.columns",
    "Producer": "proglog.client.producer",
    "Record": "proglog.batch",
    "RecordBatch": "proglog.batch",
    "Tls": "proglog.client.tls",
    "connect": "proglog.client.client",
    "open": "proglog.agent.embedded",
}


if not TYPE_CHECKING:
    # A type checker would take any name for one of the package's.
    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(_HOMES.get(name, "proglog.errors")), name)
        globals()[name] = value
        return value
