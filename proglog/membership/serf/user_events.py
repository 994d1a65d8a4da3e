"""Serf's user events: told once to every member, by gossip."""

from __future__ import annotations

from collections.abc import Iterable

from proglog.membership import limits
from proglog.membership.codec.serf_messages import (
    KeptEvent,
    KeptEvents,
    UserEventMessage,
    encode_serf,
)
from proglog.membership.codec.wire import encode
from proglog.membership.events import UserEvent
from proglog.membership.serf.lamport import LamportClock, RecentPast
from proglog.membership.serf.queries import require_size
from proglog.membership.swim.broadcast import BroadcastQueue
from proglog.membership.swim.outbox import Outbox


class UserEvents:
    """Sends, passes on and reports them; each is reported once, by its time, name and payload."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._past: RecentPast[KeptEvent] = RecentPast(limits.events_kept_max)
        self.clock = LamportClock()
        self.queue = BroadcastQueue(limits.broadcasts_max)

    def ignore_before(self, ltime: int) -> None:
        self._past.ignore_before(ltime)

    def fire(self, name: str, payload: bytes) -> None:
        """Raises EventTooLarge."""
        message = UserEventMessage(ltime=self.clock.time, name=name, payload=payload)
        encoded = encode_serf(message)
        require_size("user event", encoded, limits.user_event_bytes_max)
        self.clock.advance()
        self.on_event(message, encoded)

    def on_event(self, message: UserEventMessage, encoded: bytes) -> None:
        if self._is_news(message.ltime, KeptEvent(name=message.name, payload=message.payload)):
            self.queue.add(encoded)

    def _is_news(self, ltime: int, event: KeptEvent) -> bool:
        self.clock.witness(ltime)
        if not self._past.add(ltime, event):
            return False
        self._outbox.report(UserEvent(event.name, event.payload, ltime))
        return True

    def state(self) -> tuple[KeptEvents, ...]:
        """The recent past for a push/pull: the newest that fit."""
        kept, space = [], limits.events_state_bytes_max
        for ltime, events in self._past.newest_first():
            group = KeptEvents(ltime=ltime, events=tuple(events))
            space -= len(encode(group))
            if space < 0:
                break
            kept.append(group)
        return tuple(reversed(kept))

    def merge(self, groups: Iterable[KeptEvents | None]) -> None:
        """Events that gossip has not brought us: told here, but not passed on again."""
        for group in groups:
            if group is not None:
                for event in group.events:
                    self._is_news(group.ltime, event)
