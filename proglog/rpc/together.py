"""Records of unary produces that arrive in one turn of the loop, appended as one batch.

They share one outcome, as the records of a stream that arrive together do. So each is checked by
itself before it joins: nobody's record can make another's fail.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from proglog import errors, limits
from proglog.auth.principal import Principal
from proglog.batch import Body, ProposedBatch
from proglog.rpc.quick import Answer
from proglog.types import Appended
from proglog.wire import produce_response

_STEP_ANSWERS = 64
log = logging.getLogger(__name__)


class Appendable(Protocol):
    """What records are appended to."""

    async def propose(
        self, batch: ProposedBatch, after: asyncio.Future[Appended] | None = None
    ) -> asyncio.Future[Appended]: ...


class Together:
    """See the module."""

    def __init__(
        self,
        opened: Callable[[Principal, str], Awaitable[Appendable]],
        encode: Callable[[list[Any]], Body],
    ) -> None:
        """`opened` decides whether somebody may append to a log, and gives it; `encode` makes a
        batch of records that were checked."""
        self._opened = opened
        self._encode = encode
        self._gathering: dict[tuple[Principal, str], _Group] = {}
        self._is_due = False
        self._appending: set[asyncio.Task[None]] = set()

    def add(self, name: str, record: Any, size: int, answer: Answer) -> None:
        """A record of `size` bytes for a log; its offset is what `answer` is given."""
        key = answer.principal, name
        group = self._gathering.get(key)
        if group is not None and not group.has_room(size):
            self._start(key)
            group = None
        if group is None:
            group = self._gathering[key] = _Group()
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._append)
        group.records.append(record)
        group.answers.append(answer)
        group.size += size

    def _append(self) -> None:
        self._is_due = False
        for key in list(self._gathering):
            self._start(key)

    def _start(self, key: tuple[Principal, str]) -> None:
        group = self._gathering.pop(key)
        task = asyncio.get_running_loop().create_task(self._run(*key, group))
        self._appending.add(task)
        task.add_done_callback(self._appending.discard)

    async def _run(self, principal: Principal, name: str, group: _Group) -> None:
        try:
            target = await self._opened(principal, name)
            appended = await (await target.propose(ProposedBatch(self._encode(group.records))))
        except errors.ProglogError as error:
            await group.fail(error)
        except Exception as error:
            log.exception("appending failed", exc_info=error)
            await group.fail(
                errors.Internal("the server failed to handle the call; its log says why")
            )
        else:
            for number, answer in enumerate(group.answers):
                answer.send(produce_response(appended.offset + number))
                await _rest_after(number)


async def _rest_after(number: int) -> None:
    """An answer takes 15 us of the loop: others have their turn between some of them."""
    if number % _STEP_ANSWERS == _STEP_ANSWERS - 1:
        await asyncio.sleep(0)


class _Group:
    """What goes into one batch."""

    __slots__ = ("answers", "records", "size")

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.answers: list[Answer] = []
        self.size = 0

    def has_room(self, size: int) -> bool:
        return (
            len(self.records) < limits.together_records_max
            and self.size + size <= limits.client_batch_bytes_target
        )

    async def fail(self, error: errors.ProglogError) -> None:
        for number, answer in enumerate(self.answers):
            answer.fail(error)
            await _rest_after(number)
