"""The window of appends that were sent to one follower and are not yet acknowledged."""

from __future__ import annotations

from collections import deque


class Inflight:
    """Bounded in messages and in bytes, freed by index.

    A message is freed by an ack of its *last* index or a later one, never by counting acks: acks
    may be duplicated, reordered, or merged (a follower that syncs three messages at once acks
    once), so the n-th ack says nothing about the n-th message.
    """

    __slots__ = ("_bytes", "_bytes_max", "_messages", "_messages_max")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self._messages: deque[tuple[int, int]] = deque()
        self._bytes = 0
        self._messages_max = messages_max
        self._bytes_max = bytes_max

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def full(self) -> bool:
        """The byte bound may be passed by the last message, so that any single one can go."""
        return len(self._messages) >= self._messages_max or self._bytes >= self._bytes_max

    def add(self, last_index: int, size_bytes: int) -> None:
        assert not self.full
        assert not self._messages or last_index > self._messages[-1][0], "sent twice"
        self._messages.append((last_index, size_bytes))
        self._bytes += size_bytes

    def free_to(self, index: int) -> None:
        messages = self._messages
        while messages and messages[0][0] <= index:
            self._bytes -= messages.popleft()[1]

    def clear(self) -> None:
        self._messages.clear()
        self._bytes = 0
