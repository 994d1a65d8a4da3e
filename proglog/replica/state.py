"""The replicated state: what committed batches built, the same on every node after each index."""

from __future__ import annotations

import enum
import struct

from proglog.batch import BatchHeader, Buffer, Kind
from proglog.errors import CorruptionError
from proglog.raft.configuration import Configuration, MalformedConfiguration
from proglog.replica.producers import Producers

_COMMAND = struct.Struct("<BQ")
_HEAD = struct.Struct("<IQQI")
_VERSION = 1


class Command(enum.IntEnum):
    """What a command batch does."""

    SET_START = 1
    """Moves the logical start: records below the given offset are gone."""


def encode_command(command: Command, number: int) -> bytes:
    return _COMMAND.pack(command, number)


class ReplicatedState:
    """Changed only by `apply`, in the order of the log."""

    def __init__(self) -> None:
        self.start_offset = 0
        """Records below it are not served any more."""
        self.configuration_index = 0
        self.configuration = Configuration()
        self.producers = Producers()

    def apply(self, header: BatchHeader, body: Buffer) -> None:
        """Takes in a committed batch."""
        if header.kind == Kind.DATA:
            if header.producer_id:
                self.producers.apply(header)
        elif header.kind == Kind.COMMAND:
            command, number = _COMMAND.unpack(body)
            if command == Command.SET_START:
                self.start_offset = max(self.start_offset, number)
        elif header.kind == Kind.CONFIGURATION:
            self.configuration_index = header.index
            self.configuration = Configuration.decode(bytes(body))

    def copy(self) -> ReplicatedState:
        """The state as it is now, for a snapshot that is encoded elsewhere. Takes microseconds."""
        copied = ReplicatedState()
        copied.start_offset = self.start_offset
        copied.configuration_index = self.configuration_index
        copied.configuration = self.configuration
        copied.producers = self.producers.copy()
        return copied

    def encode(self) -> bytes:
        configuration = self.configuration.encode()
        head = _HEAD.pack(_VERSION, self.start_offset, self.configuration_index, len(configuration))
        return head + configuration + self.producers.encode()

    @classmethod
    def decode(cls, data: bytes) -> ReplicatedState:
        """The inverse of `encode`. Raises CorruptionError: the checksum held, so it was written by
        another version or is not ours."""
        state = cls()
        try:
            version, state.start_offset, state.configuration_index, size = _HEAD.unpack_from(data)
            if version != _VERSION:
                raise CorruptionError(f"a snapshot of version {version} is not known here")
            configuration = data[_HEAD.size : _HEAD.size + size]
            state.configuration = Configuration.decode(configuration)
            state.producers = Producers.decode(data[_HEAD.size + size :])
        except (struct.error, MalformedConfiguration) as error:
            raise CorruptionError(f"the snapshot's state is malformed: {error}") from error
        return state
