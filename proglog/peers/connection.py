"""One connection, whoever dialled it: frames in, frames out, and whether the other end lives."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

import structlog

from proglog import limits
from proglog.batch import Buffer
from proglog.peers.frames import (
    FRAME_BYTES_MAX,
    NODE,
    SKIPPABLE,
    FrameError,
    FrameReader,
    Type,
    UnknownType,
    frame,
)
from proglog.peers.hello import Life, Refusal, decode_refusal, encode_refusal
from proglog.peers.local import Local
from proglog.peers.pulse import Pulse

_logger = structlog.get_logger("peers")

_PING = struct.Struct("<Q")
_PONG = struct.Struct("<QQ")
UNASKED = 0
"""In the place of a PING's number: a PONG that answers none."""
_WHETHER_THERE = 1 << 63
"""Numbers from here on are of questions whether anybody is still there."""
_NOBODY = Life("", "", 0, "")


class Connection(asyncio.Protocol):
    """What both ends have in common."""

    def __init__(self, local: Local, pulse: Pulse) -> None:
        self._local = local
        self.pulse = pulse
        self.wire: asyncio.Transport | None = None
        self.life = _NOBODY
        """Who the other one is."""
        self.given_up = ""
        """Why we ended it, if we did."""
        self._reader = FrameReader()
        self._greeting: asyncio.TimerHandle | None = None
        self._questions = 0
        self._asked_whether_there: dict[int, asyncio.Future[bool]] = {}

    @property
    def peer(self) -> str:
        """The uuid of the other one; empty until it has said who it is."""
        return self.life.uuid

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.wire = cast("asyncio.Transport", transport)  # by its methods: uvloop has its own
        if self.given_up:
            self.wire.abort()
            return
        _limit_unacknowledged(transport)
        self._greeting = self._local.loop.call_later(
            limits.greeting_seconds_max, self.give_up, "no greeting in time"
        )

    def greeted(self, life: Life) -> None:
        """The other end has said who it is, and it is who it should be."""
        self.life = life
        self._reader.bytes_max = FRAME_BYTES_MAX
        self._end_greeting()
        self.pulse.heard()

    def _end_greeting(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        self.wire = None
        self._end_greeting()
        for answer in list(self._asked_whether_there.values()):
            if not answer.done():
                answer.set_result(False)

    def refuse(self, refusal: Refusal) -> None:
        """Ends it, and tells the other end why."""
        self.write(encode_refusal(refusal))
        self.given_up = refusal.why
        if self.wire is not None:
            self.wire.close()

    def give_up(self, why: str) -> None:
        """Ends it at once."""
        self.given_up = self.given_up or why
        if self.wire is not None:
            self.wire.abort()

    # --- frames ----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.pulse.heard()
        self._reader.feed(data)
        self._take()

    def _take(self) -> None:
        """Does what the frames that are whole say."""
        try:
            while self._may_take() and (got := self._reader.next()) is not None:
                self._take_one(*got)
        except FrameError as error:
            if self.peer:
                _logger.warning("connection of a peer ended", peer=self.peer, why=str(error))
            self.give_up(str(error))
        except BaseException as error:
            # A broken promise: the node must end, whatever else it does.
            self._local.home.failed(error)
            raise

    def _may_take(self) -> bool:
        return not self.given_up

    def _take_one(self, type_: int, group: int, payload: memoryview) -> None:
        if not self.peer:
            self._greet(type_, payload)
            return
        try:
            if group == NODE:
                self._take_of_node(type_, payload)
            else:
                self._take_of_group(type_, group, payload)
        except UnknownType:
            if type_ < SKIPPABLE:
                raise

    def _greet(self, type_: int, payload: memoryview) -> None:
        raise NotImplementedError

    def _take_of_group(self, type_: int, group: int, payload: memoryview) -> None:
        raise NotImplementedError

    def _take_of_node(self, type_: int, payload: memoryview) -> None:
        if type_ == Type.PING:
            self._answer(_unpack(_PING, payload)[0])
        elif type_ == Type.PONG:
            number, wall_ms = _unpack(_PONG, payload)
            self._is_there(number)
            self.answered(number, wall_ms)
        elif type_ == Type.REFUSAL:
            refusal = decode_refusal(payload)
            self._local.home.doubted(refusal, self.life.name)
            self.give_up(refusal.why)
        else:
            raise UnknownType(f"a frame of type {type_} is not expected here")

    # --- signs of life ---------------------------------------------------------------------------

    def ask(self, number: int) -> None:
        """Wants an answer, which tells this number."""
        self.write(frame(Type.PING, NODE, _PING.pack(number)))

    def answered(self, number: int, wall_ms: int) -> None:
        """The other end has answered, and told its wall clock."""

    def ask_whether_there(self) -> asyncio.Future[bool]:
        """True once the process at the other end answers what it is asked now; false if that ends
        first. Cancel it when that is not of interest any more."""
        answer: asyncio.Future[bool] = self._local.loop.create_future()
        self._questions += 1
        number = _WHETHER_THERE + self._questions
        self._asked_whether_there[number] = answer
        answer.add_done_callback(lambda _: self._asked_whether_there.pop(number, None))
        self.ask(number)
        return answer

    def _is_there(self, number: int) -> None:
        answer = self._asked_whether_there.get(number)
        if answer is not None and not answer.done():
            answer.set_result(True)

    def _answer(self, number: int) -> None:
        self.pulse.told()
        now = self._local.clock.now_ms()
        self.write(frame(Type.PONG, NODE, _PONG.pack(number, max(now, 0))))

    def write(self, parts: list[Buffer]) -> None:
        """Sends, if there is still anybody."""
        if self.wire is not None and not self.wire.is_closing():
            self.wire.writelines(parts)


def _unpack(packer: struct.Struct, payload: memoryview) -> tuple[int, ...]:
    try:
        return packer.unpack_from(payload)
    except struct.error:
        raise FrameError("malformed sign of life: cut short") from None


def _limit_unacknowledged(transport: asyncio.BaseTransport) -> None:
    """The kernel, too, gives up whoever acknowledges nothing, or takes nothing, for so long."""
    connected: socket.socket | None = transport.get_extra_info("socket")
    if connected is not None and connected.family in {socket.AF_INET, socket.AF_INET6}:
        connected.setsockopt(
            socket.IPPROTO_TCP,
            socket.TCP_USER_TIMEOUT,
            round(1000 * limits.peer_unacked_seconds_max),
        )
