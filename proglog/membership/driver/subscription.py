"""Events on their way to one subscriber."""

from __future__ import annotations

import asyncio
from collections import deque

from proglog.membership import limits
from proglog.membership.events import Event, EventsLost


class Subscription:
    """An async iterator of events, in their order. It ends when it or the membership is closed.

    A subscriber that is too slow loses events rather than hold up the protocol, and is told how
    many by an `EventsLost` in their place.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._lost = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, event: Event) -> bool:
        """False if the event is lost."""
        kept = len(self._events) < limits.subscription_events_max
        if kept:
            self._mark_lost()
            self._events.append(event)
        else:
            self._lost += 1
        self._wake()
        return kept

    def close(self) -> None:
        """What is waiting can still be read."""
        self._closed = True
        self._wake()

    def __aiter__(self) -> Subscription:
        return self

    def get_nowait(self) -> Event | None:
        """The next event, if there is one."""
        if not self._events:
            self._mark_lost()
        return self._events.popleft() if self._events else None

    async def __anext__(self) -> Event:
        while True:
            event = self.get_nowait()
            if event is not None:
                return event
            if self._closed:
                raise StopAsyncIteration
            assert self._waiter is None, "a subscription has one reader"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _mark_lost(self) -> None:
        if self._lost:
            self._events.append(EventsLost(self._lost))
            self._lost = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
