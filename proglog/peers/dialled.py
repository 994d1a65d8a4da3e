"""What this node dials: one lane to one peer, dialled again for as long as it is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import structlog

from proglog import limits
from proglog.batch import Buffer
from proglog.errors import ProglogError, Unavailable, reason_of
from proglog.peers.connection import Connection
from proglog.peers.frames import PROLOGUE, FrameError, Lane, Type, UnknownType
from proglog.peers.hello import Life, Refusal, decode_refusal, decode_welcome, encode_hello
from proglog.peers.local import Local, Names, host_of
from proglog.peers.offsets import Offsets
from proglog.peers.pulse import Pulse
from proglog.peers.racing import first_of

_logger = structlog.get_logger("peers")

_PING_SECONDS = {
    Lane.CONTROL: limits.control_ping_seconds,
    Lane.BULK: limits.bulk_ping_seconds,
}
_SILENCE_SECONDS = {
    Lane.CONTROL: limits.control_silence_seconds_max,
    Lane.BULK: limits.bulk_silence_seconds_max,
}


class Owner(Protocol):
    """Who a lane belongs to."""

    @property
    def uuid(self) -> str: ...

    @property
    def name(self) -> str:
        """What to call it in front of people."""

    @property
    def configured(self) -> tuple[str, str] | None:
        """Its name and address as a configuration has them."""

    @property
    def offsets(self) -> Offsets:
        """What it tells of its clock."""

    @property
    def redial_seconds_max(self) -> float: ...

    @property
    def is_wanted(self) -> bool:
        """Whether it is dialled again by itself."""

    def addresses(self, lane: Lane) -> Sequence[str]:
        """Where to dial now, the best one first; perhaps nowhere."""

    def why_not(self, life: Life) -> Refusal | None:
        """Why one that welcomes us as this is not believed."""

    def refused(self, refusal: Refusal, address: str) -> None:
        """Whoever answers at this address does not take us for what we say."""

    def opened(self, lane: Lane, address: str) -> None:
        """The peer has proved who it is, at this address."""

    def lost(self, lane: Lane) -> None:
        """What was sent last may be lost."""


class Dialled(Connection):
    """One connection that we dial: Hello, Welcome, then frames from us."""

    def __init__(
        self,
        local: Local,
        owner: Owner,
        address: str,
        lane: Lane,
        ended: Callable[[Dialled], None],
    ) -> None:
        super().__init__(local, Pulse(local.awake, _PING_SECONDS[lane], _SILENCE_SECONDS[lane]))
        self._owner = owner
        self._address = address
        self._lane = lane
        self._ended = ended
        self.level = 0
        """The latest level of replicated state that the other end can compute."""
        self._pings = 0
        self._asked: dict[int, float] = {}
        """When the last of them were asked."""
        self._paused: asyncio.Future[None] | None = None
        self.welcome: asyncio.Future[None] = local.loop.create_future()
        """Done once the peer has proved who it is. Raises Unavailable."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        names = self._local.certificate(transport)
        if names is not None and not self._is_named(names):
            # Before a word is said: whoever answers at this address is somebody else.
            self.give_up("the certificate there is another node's")
            return
        self.write([PROLOGUE, *encode_hello(self._local.hello(self._owner.uuid, self._lane))])

    def _is_named(self, names: Names) -> bool:
        """Whether a certificate is that of who is meant."""
        name, address = self._owner.configured or (self._owner.name, self._address)
        return names(name, host_of(address))

    def _greet(self, type_: int, payload: memoryview) -> None:
        if type_ == Type.REFUSAL:
            refusal = decode_refusal(payload)
            self._owner.refused(refusal, self._address)
            self.give_up(refusal.why)
            return
        if type_ != Type.WELCOME:
            raise FrameError(f"a frame of type {type_} is not expected here")
        welcome = decode_welcome(payload)
        self.level, life = welcome.level, welcome.life
        if life.uuid != self._owner.uuid:
            raise FrameError(f"{life.uuid} answers at the address of {self._owner.uuid}")
        if (why_not := self._owner.why_not(life)) is not None:
            self.refuse(why_not)
            self._fail(why_not.why)
            return
        self.greeted(life)
        # What its clock shows is wanted before anybody can be elected.
        self.ping()
        if not self.welcome.done():
            self.welcome.set_result(None)

    def _take_of_group(self, type_: int, group: int, payload: memoryview) -> None:
        del payload
        if type_ != Type.NO_GROUP:
            raise UnknownType(f"a frame of type {type_} is not expected here")
        if (receiver := self._local.groups.get(group)) is not None:
            receiver.unreachable(self.peer)

    def ping(self) -> None:
        """Asks for a sign of life, and for the time."""
        self._pings += 1
        self._asked[self._pings] = self._local.loop.time()
        if len(self._asked) > limits.pings_asked_max:
            del self._asked[next(iter(self._asked))]
        self.ask(self._pings)

    def answered(self, number: int, wall_ms: int) -> None:
        asked_at = self._asked.pop(number, None)
        if asked_at is not None:
            self._owner.offsets.add(asked_at, self._local.loop.time(), wall_ms)

    def give_up(self, why: str) -> None:
        super().give_up(why)
        self._fail(why)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._fail(str(exc or "closed by the peer"))
        self.resume_writing()
        self._ended(self)

    def _fail(self, why: str) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(Unavailable(why))
            self.welcome.exception()  # Whoever dialled may have lost interest.

    @property
    def is_blocked(self) -> bool:
        """It takes no more at the moment."""
        return self._paused is not None

    def pause_writing(self) -> None:
        self._paused = self._local.loop.create_future()

    def resume_writing(self) -> None:
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)
        self._paused = None

    async def writable(self) -> None:
        """Until it takes more, or is lost."""
        while self._paused is not None:
            await self._paused


class DialledLane:
    """One lane to one peer. Sending never waits: what cannot be sent is dropped."""

    def __init__(self, local: Local, owner: Owner, lane: Lane) -> None:
        self._local = local
        self._owner = owner
        self._lane = lane
        self._open: Dialled | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._failures = 0
        self._closed = False

    @property
    def is_open(self) -> bool:
        """The peer has proved who it is."""
        return self._open is not None

    @property
    def connection(self) -> Connection | None:
        """The one that is open, if it is."""
        return self._open

    @property
    def level(self) -> int:
        """The latest level of replicated state that the peer says it can compute; 0 while the lane
        is not open."""
        return self._open.level if self._open else 0

    @property
    def is_blocked(self) -> bool:
        """Nothing can be sent now. Begins to dial where that is why."""
        if self._open is None:
            self.dial_soon()
            return True
        return self._open.is_blocked

    def write(self, parts: list[Buffer]) -> None:
        """Raises Unavailable."""
        if self._open is None:
            raise Unavailable("the connection to the peer is lost")
        self._open.write(parts)

    async def writable(self) -> None:
        """Until it takes more. Raises Unavailable if it is gone."""
        if (connection := self._open) is not None:
            await connection.writable()
        if connection is None or connection is not self._open:
            raise Unavailable("the connection to the peer is lost")

    # --- life ------------------------------------------------------------------------------------

    def dial_soon(self, *, now: bool = False) -> None:
        """Dials, unless that is under way; after a failure a little later, or `now`."""
        if now and self._pause is not None:
            self._end_pause()
        if self._open is not None or self._dialling is not None or self._closed:
            return
        if self._pause is None and (addresses := self._owner.addresses(self._lane)):
            self._dialling = self._local.loop.create_task(self._dial(addresses))

    async def _dial(self, addresses: Sequence[str]) -> None:
        try:
            ways = [partial(self._try, address) for address in addresses]
            address, connection = await first_of(ways, limits.dial_apart_seconds, _drop)
        except (OSError, ValueError, ProglogError) as error:
            # Gossip and greetings tell addresses: one may be none, or no name.
            self._dialling = None
            self._failures += 1
            self._tell(error)
            self._wait()
        except Exception as error:
            self._local.home.failed(error)
            raise
        else:
            self._dialling = None
            self._begin(address, connection)

    async def _try(self, address: str) -> tuple[str, Dialled]:
        connection = Dialled(self._local, self._owner, address, self._lane, self._ended)
        try:
            async with asyncio.timeout(limits.dial_seconds_max):
                await self._local.connect(address, lambda: connection)
            async with asyncio.timeout(limits.greeting_seconds_max):
                await connection.welcome
        except BaseException:
            if not connection.given_up:  # else it is perhaps being told why
                connection.give_up("it was not welcomed")
            raise
        return address, connection

    def _begin(self, address: str, connection: Dialled) -> None:
        if self._closed or connection.wire is None or connection.given_up:
            _drop((address, connection))
            self._wait()
            return
        if self._failures >= 3 and self._lane is Lane.CONTROL:
            _logger.info("peer reached again", peer=self._owner.name)
        self._failures = 0
        self._open = connection
        self._owner.opened(self._lane, address)

    def _ended(self, connection: Dialled) -> None:
        """A connection is lost."""
        if connection is self._open:
            self._open = None
            self._wait()
            self._owner.lost(self._lane)

    def _wait(self) -> None:
        """A pause before the next dial: at random, so that two do not meet for ever."""
        if self._closed:
            return
        longest = min(
            self._owner.redial_seconds_max,
            limits.redial_seconds_first * 2 ** min(self._failures, 10),
        )
        seconds = longest * self._local.chance.uniform(0.5, 1.0)
        self._end_pause()
        self._pause = self._local.loop.call_later(seconds, self._pause_over)

    def _pause_over(self) -> None:
        self._pause = None
        if self._owner.is_wanted:
            self.dial_soon()

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _tell(self, error: Exception) -> None:
        # Both lanes fail alike: one of them tells.
        if self._lane is Lane.CONTROL and (self._failures in {3, 10} or self._failures % 1000 == 0):
            why = reason_of(error) if isinstance(error, OSError) else str(error)
            _logger.info(
                "cannot reach peer",
                peer=self._owner.name,
                why=why or f"no connection in {limits.dial_seconds_max:g} s",
                failures=self._failures,
            )

    def beat(self) -> None:
        """Time has passed."""
        connection = self._open
        if connection is None:
            return
        if connection.pulse.is_lost:
            _logger.info("peer is silent", peer=self._owner.name, lane=self._lane.value)
            self.give_up("it says nothing")
        elif connection.pulse.is_ping_due():
            connection.ping()

    def give_up(self, why: str) -> None:
        """Ends the connection that there is."""
        if self._open is not None:
            self._open.give_up(why)

    def close(self) -> None:
        self._closed = True
        self._end_pause()
        if self._dialling is not None:
            self._dialling.cancel()
        self.give_up("this node stops")


def _drop(dialled: tuple[str, Dialled]) -> None:
    dialled[1].give_up("another one was faster")
