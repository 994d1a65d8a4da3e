"""The replicated state: what committed batches built, the same on every node after each index."""

from __future__ import annotations

import struct

from proglog.batch import BatchHeader, Buffer, Kind
from proglog.errors import CorruptionError
from proglog.raft.configuration import Configuration, MalformedConfiguration
from proglog.replica import commands, sections
from proglog.replica.commands import Command, SetLevel, SetStart
from proglog.replica.producers import Producers
from proglog.replica.sections import Tag
from proglog.replica.settings import LEVEL, Settings

_LOG = struct.Struct("<Q")
_INDEX = struct.Struct("<Q")


class ReplicatedState:
    """Changed only by `apply`, in the order of the log."""

    def __init__(self, settings: Settings | None = None, level_max: int = LEVEL) -> None:
        self.level_max = level_max
        """The latest level that can be computed here; no part of the state."""
        self.start_offset = 0
        """Records below it are not served any more."""
        self.configuration_index = 0
        self.configuration = Configuration()
        self.settings = settings or Settings.first()
        self.producers = Producers(self.settings)

    def apply(self, header: BatchHeader, body: Buffer) -> None:
        """Takes in a committed batch.

        Raises UnknownFormat if a newer version is needed to; then nothing of it was taken in.
        """
        if header.kind == Kind.DATA:
            if header.producer_id:
                self.producers.apply(header)
        elif header.kind == Kind.COMMAND:
            for command in commands.decode(body, header.index, self.level_max):
                self._do(command, header.index)
        elif header.kind == Kind.CONFIGURATION:
            self.configuration = Configuration.decode(bytes(body))
            self.configuration_index = header.index

    def _do(self, command: Command, index: int) -> None:
        match command:
            case SetStart(offset):
                self.start_offset = max(self.start_offset, offset)
            case SetLevel(settings) if settings.level > self.settings.level:
                # Two leaders, one after the other, may raise it.
                self.settings = settings._replace(since=index)
                self.producers.settings = self.settings

    def copy(self) -> ReplicatedState:
        """The state as it is now, for a snapshot that is encoded elsewhere. Takes microseconds."""
        copied = ReplicatedState(self.settings, self.level_max)
        copied.start_offset = self.start_offset
        copied.configuration_index = self.configuration_index
        copied.configuration = self.configuration
        copied.producers = self.producers.copy()
        return copied

    def encode(self) -> bytes:
        configuration = _INDEX.pack(self.configuration_index) + self.configuration.encode()
        return sections.join(
            {
                Tag.LOG: _LOG.pack(self.start_offset),
                Tag.CONFIGURATION: configuration,
                Tag.PRODUCERS: self.producers.encode(),
                Tag.SETTINGS: self.settings.encode(),
            }
        )

    @classmethod
    def decode(
        cls, data: bytes, source: object = "a snapshot", level_max: int = LEVEL
    ) -> ReplicatedState:
        """The inverse of `encode`; `source` is where it comes from.

        Raises UnknownFormat, and CorruptionError for what is none: the checksum held.
        """
        parts = sections.split(data, source)
        settings = Settings.decode(parts[Tag.SETTINGS], f"the state in {source}", level_max)
        state = cls(settings, level_max)
        configuration = parts[Tag.CONFIGURATION]
        try:
            (state.start_offset,) = _LOG.unpack(parts[Tag.LOG])
            (state.configuration_index,) = _INDEX.unpack_from(configuration)
            state.configuration = Configuration.decode(configuration[_INDEX.size :])
            state.producers = Producers.decode(parts[Tag.PRODUCERS], state.settings)
        except (struct.error, MalformedConfiguration) as error:
            raise CorruptionError(f"the state in {source} is malformed: {error}") from error
        return state
