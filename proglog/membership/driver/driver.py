"""The membership of one node in an asyncio program: the Serf core, driven by the loop's time and
connected to a transport. What a user of the package sees."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proglog.errors import ConfigurationError, UnknownFormat
from proglog.membership import limits
from proglog.membership.address import Address, split_host_port
from proglog.membership.codec.keyring import Keyring, decode_keyring, encode_keyring
from proglog.membership.codec.snapshot import (
    NewerVersion,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
)
from proglog.membership.codec.streams import StreamMessage
from proglog.membership.config import DEFAULT_PORT, MembershipConfig
from proglog.membership.driver.keeper import Keeper
from proglog.membership.driver.subscription import Subscription
from proglog.membership.driver.transport import NetworkTransport, Transport, TransportStatistics
from proglog.membership.errors import (
    ExchangeFailed,
    JoinFailed,
    KeyRefused,
    MalformedMessage,
    MembershipError,
    NotRunning,
)
from proglog.membership.events import (
    Event,
    KeyringChanged,
    Member,
    Query,
    QueryResult,
)
from proglog.membership.serf.serf import CoreStatistics, Phase, Serf
from proglog.membership.swim.outbox import OpenExchange, Report, SendPacket
from proglog.membership.swim.timers import PauseClock
from proglog.net.listening import EVERYWHERE
from proglog.ports import Ports

_SNAPSHOT_DELAY_S = 1.0
_SLEEP_MIN_S = 0.001
"""A wake-up that comes too early by a rounding error must not spin until time has moved on."""

MakeTransport = Callable[[MembershipConfig, Keyring], Transport]


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipStatistics:
    core: CoreStatistics
    transport: TransportStatistics
    events_lost: int
    """Events that slow subscribers missed."""
    file_failures: int
    last_file_failure: str


def network(config: MembershipConfig, keyring: Keyring) -> Transport:
    """The transport of a real node."""
    timeout_s = config.timing.stream_timeout_s
    return NetworkTransport(config.bind_host, config.bind_port, keyring, timeout_s)


class _Unreadable(ConfigurationError):
    """The disk has lost the file."""


class Membership:
    """One node's membership in a Serf cluster. Started once, closed once; `leave` is optional.

    All methods that are not coroutines return at once. Names are resolved at each `join`.
    """

    def __init__(
        self,
        config: MembershipConfig,
        *,
        ports: Ports | None = None,
        transport: MakeTransport = network,
    ) -> None:
        self._config = config
        self._ports = ports or Ports()
        self._make_transport = transport
        self._keeper = Keeper(self._ports.files)
        self._keyring = Keyring(config.keys, self._ports.random.randbytes)
        self._subscriptions: list[Subscription] = []
        self._events_lost = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._exchanged: dict[int, asyncio.Future[str | None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline = 0.0
        self._snapshot_timer: asyncio.TimerHandle | None = None
        self._incarnation_saved = 0
        self._saved: Snapshot | None = None
        self._closed = False
        self._core: Serf | None = None
        self._transport: Transport | None = None
        self._clock: PauseClock | None = None
        self._ended: asyncio.Future[None] | None = None

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens, and is a cluster of one until it joins another. With a snapshot, tries to rejoin
        the peers that it names, for ever. Raises BindFailed, ConfigurationError, UnknownFormat."""
        assert self._core is None, "a membership starts once"
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._keyring = await self._load_keyring()
        past = await self._load_snapshot()
        self._transport = transport = self._make_transport(self._config, self._keyring)
        try:
            # What arrives before the core exists is lost, like any packet.
            address = await self._advertised(transport, await transport.start(self))
        except BaseException:  # cancelled too: the ports would stay taken
            await transport.close()
            raise
        self._clock = PauseClock(loop.time, limits.pause_seconds_max)
        core = self._make_core(address, self._config.tags, past)
        self._save(core)
        # Whatever this life says, the next one will outbid: so that is written first.
        await self._keeper.written()
        self._core = core
        core.start(self._clock.now())
        self._pump()

    def _make_core(self, address: Address, tags: dict[str, str], past: Snapshot | None) -> Serf:
        return Serf(
            name=self._config.name,
            address=address,
            tags=tags,
            timing=self._config.timing,
            keyring=self._keyring,
            rng=self._ports.random,
            now=self._now(),
            past=past,
        )

    async def begin_anew(self) -> None:
        """After a fault of the core, which `wait_ended` has raised: a new core looks for those whom
        the old one knew, as after a restart of the process. Nothing if this node has left."""
        old = self._core
        assert old is not None
        if self._closed or old.phase is not Phase.RUNNING:
            return
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiting in self._exchanged.values():
            if not waiting.done():
                waiting.set_result("this node has just begun anew to look for others")
        self._exchanged.clear()
        self._ended = asyncio.get_running_loop().create_future()
        self._core = core = self._make_core(old.address, old.tags, self._saved)
        core.start(self._now())
        self._pump()

    async def _advertised(self, transport: Transport, bound: Address) -> Address:
        config = self._config
        port = config.advertise_port or bound.port
        if config.advertise_host is None:
            return Address(bound.host, port)
        try:
            found = await transport.resolve(config.advertise_host, port)
        except ExchangeFailed as error:
            raise ConfigurationError(f"gossip address to advertise: {error}") from error
        for address in found:
            # What listens everywhere can be reached at an address of either family.
            if config.bind_host == EVERYWHERE or bound.can_reach(address):
                return address
        raise ConfigurationError(
            f"gossip address to advertise: {config.advertise_host} has no address of the family of "
            f"{bound.host}, where gossip listens"
        )

    async def close(self) -> None:
        """Stops without a word: to the others this node has failed, unless it has left before."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._timer, self._snapshot_timer):
            if timer is not None:
                timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._transport is not None:
            await self._transport.close()
        if self._core is not None:
            self._save_snapshot()
            await self._keeper.written()
        for subscription in self._subscriptions:
            subscription.close()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def wait_ended(self) -> None:
        """Returns when the membership is closed; raises what broke it, if something did."""
        assert self._ended is not None, "not started"
        await asyncio.shield(self._ended)

    # --- membership ------------------------------------------------------------------------------

    async def join(self, addresses: Sequence[str]) -> int:
        """Joins the cluster of the nodes at these addresses (`host` or `host:port`), all at once.

        Returns how many could be joined; an address of this node itself is passed over. Raises
        JoinFailed if none could and at least one failed, NotRunning.
        """
        core = self._running()
        outcomes = await asyncio.gather(*map(self._join_name, addresses))
        joined = sum(count for count, _ in outcomes)
        reasons = [reason for _, found in outcomes for reason in found]
        if joined:
            core.announce_join(self._now())
            self._pump()
        elif reasons:
            raise JoinFailed("could not join: " + "; ".join(reasons))
        return joined

    async def _join_name(self, text: str) -> tuple[int, list[str]]:
        assert self._transport is not None
        try:
            host, port = split_host_port(text, DEFAULT_PORT)
            found = await self._transport.resolve(host, port)
        except (ValueError, ExchangeFailed) as error:
            return 0, [str(error)]
        own = self._running().address
        outcomes = [await self._join_address(address) for address in found if address != own]
        reasons = [reason for reason in outcomes if reason is not None]
        return len(outcomes) - len(reasons), reasons

    async def _join_address(self, address: Address) -> str | None:
        """Why the node there could not be joined, or None."""
        number = self._running().join(address, self._now())
        done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._exchanged[number] = done
        self._pump()
        return await done

    def members(self) -> list[Member]:
        """All members by name, this node and those that are gone included."""
        return self._require().members()

    @property
    def local(self) -> Member:
        """This node."""
        name = self._config.name
        return next(member for member in self.members() if member.name == name)

    def set_tags(self, tags: dict[str, str]) -> None:
        """Replaces this node's tags. Raises TagsTooLarge, NotRunning."""
        self._running().set_tags(tags, self._now())
        self._pump()

    async def leave(self) -> None:
        """Leaves gracefully: returns when the others have been told, or after some seconds. Then
        only `close` remains."""
        core = self._require()
        left = asyncio.Event()
        core.leave(left.set, self._now())
        self._pump()
        await left.wait()
        self._save_snapshot()

    def force_leave(self, name: str, *, prune: bool = False) -> None:
        """Declares a failed member to have left; with `prune` it is not even listed any more. A
        member that is alive objects, and stays. Raises NotRunning."""
        self._running().force_leave(name, self._now(), prune=prune)
        self._pump()

    # --- events and queries ----------------------------------------------------------------------

    def subscribe(self) -> Subscription:
        """Events from now on. Close it when it is not read any more."""
        subscription = Subscription()
        self._subscriptions = [kept for kept in self._subscriptions if not kept.closed]
        self._subscriptions.append(subscription)
        if self._closed:
            subscription.close()
        return subscription

    def user_event(self, name: str, payload: bytes = b"") -> None:
        """Tells every member, this one included. Raises EventTooLarge, NotRunning."""
        self._running().user_event(name, payload, self._now())
        self._pump()

    async def query(
        self, name: str, payload: bytes = b"", *, timeout_s: float | None = None
    ) -> QueryResult:
        """Asks every member, and collects answers until the timeout (by default one that fits the
        size of the cluster). Raises EventTooLarge, NotRunning."""
        done: asyncio.Future[QueryResult] = asyncio.get_running_loop().create_future()

        def finish(result: QueryResult) -> None:
            if not done.done():
                done.set_result(result)

        self._running().query(name, payload, timeout_s, finish, self._now())
        self._pump()
        return await done

    def respond(self, query: Query, payload: bytes) -> None:
        """Answers a query that came as an event. Raises EventTooLarge."""
        self._require().respond(query, payload, self._now())
        self._pump()

    # --- encryption keys -------------------------------------------------------------------------

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The keys of this node, the primary first."""
        return self._keyring.keys

    def install_key(self, key: bytes) -> None:
        """On this node alone, like the next two; `query("_serf_install-key", ...)`, or `serf keys`
        on any agent, reaches the cluster. Raises KeyRefused."""
        self._keyring.install(key)
        self._publish(KeyringChanged(self._keyring.keys))

    def use_key(self, key: bytes) -> None:
        """Raises KeyRefused."""
        self._keyring.use(key)
        self._publish(KeyringChanged(self._keyring.keys))

    def remove_key(self, key: bytes) -> None:
        """Raises KeyRefused."""
        self._keyring.remove(key)
        self._publish(KeyringChanged(self._keyring.keys))

    # --- introspection ---------------------------------------------------------------------------

    def statistics(self) -> MembershipStatistics:
        assert self._transport is not None
        return MembershipStatistics(
            core=self._require().statistics(),
            transport=self._transport.statistics(),
            events_lost=self._events_lost,
            file_failures=self._keeper.failures,
            last_file_failure=self._keeper.last_failure,
        )

    # --- called by the transport -----------------------------------------------------------------

    @property
    def _is_idle(self) -> bool:
        """Whether there is no core that could be trusted with anything."""
        return self._closed or self._core is None or self._ended is None or self._ended.done()

    def on_packet(self, data: bytes, source: Address) -> None:
        if self._is_idle:
            return
        assert self._core is not None
        with self._breaking():
            self._core.receive_packet(data, source, self._now())
            self._pump()

    def on_stream(self, message: StreamMessage) -> StreamMessage | None:
        """Raises MalformedMessage."""
        if self._is_idle:
            return None
        assert self._core is not None
        answer = None
        with self._breaking():
            answer = self._core.serve(message, self._now())
            self._pump()
        return answer

    # --- driving the core ------------------------------------------------------------------------

    def _require(self) -> Serf:
        if self._core is None:
            raise NotRunning(f"the membership of {self._config.name} has not been started")
        return self._core

    def _running(self) -> Serf:
        core = self._require()
        if self._closed or core.phase is not Phase.RUNNING:
            raise NotRunning(f"the membership of {self._config.name} has ended")
        return core

    def _now(self) -> float:
        assert self._clock is not None
        return self._clock.now()

    def _pump(self) -> None:
        """Does what the core wants done, and sleeps until it wants to be woken."""
        assert self._core is not None
        assert self._transport is not None
        for effect in self._core.take():
            match effect:
                case SendPacket(address, data):
                    self._transport.send(address, data)
                case OpenExchange():
                    self._spawn(self._exchange(effect))
                case Report(event):
                    self._publish(event)
        if self._core.incarnation + limits.incarnation_reserved // 2 > self._incarnation_saved:
            self._save_snapshot()
        self._sleep()

    def _sleep(self) -> None:
        assert self._core is not None
        deadline = self._core.next_deadline
        assert deadline is not None, "the core always gossips again"
        if self._closed or (self._timer is not None and self._timer_deadline <= deadline):
            # A timer that comes early finds nothing to do, and is cheaper than moving it each time.
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_deadline = deadline
        delay = max(_SLEEP_MIN_S, deadline - self._now())
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        assert self._core is not None
        self._timer = None
        if self._is_idle:
            return
        with self._breaking():
            self._core.tick(self._now())
            self._pump()

    async def _exchange(self, effect: OpenExchange) -> None:
        assert self._core is not None
        assert self._transport is not None
        reply, reason = None, None
        try:
            reply = await self._transport.exchange(effect.address, effect.message, effect.timeout_s)
        except ExchangeFailed as error:
            reason = str(error)
        refused = self._core.finish_exchange(effect.id, reply, self._now())
        done = self._exchanged.pop(effect.id, None)
        if done is not None and not done.done():
            done.set_result(reason or (refused and f"{effect.address}: {refused}"))
        self._pump()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap_task)

    def _reap_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._break(task.exception())

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """A fault of the core ends the membership, with whoever waits in `wait_ended` being told: a
        node that believes something impossible must not go on gossiping it."""
        try:
            yield
        except MembershipError:
            raise
        except Exception as error:  # noqa: BLE001  # told by `wait_ended`, not by the socket
            self._break(error)

    def _break(self, error: BaseException | None) -> None:
        if self._ended is not None and not self._ended.done() and error is not None:
            self._ended.set_exception(error)
            # Seen by `wait_ended`, if anybody waits; not reported a second time by asyncio if not.
            self._ended.exception()

    def _publish(self, event: Event) -> None:
        if isinstance(event, KeyringChanged) and self._config.keyring_path is not None:
            self._keeper.save(self._config.keyring_path, encode_keyring(event.keys))
        if self._config.snapshot_path is not None and self._snapshot_timer is None:
            loop = asyncio.get_running_loop()
            self._snapshot_timer = loop.call_later(_SNAPSHOT_DELAY_S, self._save_snapshot)
        for subscription in self._subscriptions:
            if not subscription.closed and not subscription.put(event):
                self._events_lost += 1

    # --- files -----------------------------------------------------------------------------------

    async def _load_keyring(self) -> Keyring:
        path = self._config.keyring_path
        keys = self._config.keys
        content = await self._load(path, limits.keyring_bytes_max)
        if content is not None:
            try:
                keys = decode_keyring(content)
            except KeyRefused as error:
                raise ConfigurationError(f"{path}: {error}") from error
        return Keyring(keys, self._ports.random.randbytes)

    async def _load_snapshot(self) -> Snapshot | None:
        path = self._config.snapshot_path
        if path is None:
            return None
        try:
            content = await self._load(path, limits.snapshot_bytes_max)
            return None if content is None else decode_snapshot(content)
        except (MalformedMessage, _Unreadable) as error:
            # A hint that is broken is no hint.
            self._keeper.failed(path, error)
            return None
        except NewerVersion as newer:
            raise UnknownFormat.of(path, str(newer)) from None

    async def _load(self, path: Path | None, size_max: int) -> bytes | None:
        try:
            return None if path is None else await self._keeper.load(path, size_max)
        except OSError as error:
            kind = _Unreadable if error.errno == errno.EIO else ConfigurationError
            raise kind(f"cannot read {path}: {error}") from error

    def _save_snapshot(self) -> None:
        if self._snapshot_timer is not None:
            self._snapshot_timer.cancel()
            self._snapshot_timer = None
        if self._core is not None:
            self._save(self._core)

    def _save(self, core: Serf) -> None:
        self._saved = snapshot = core.snapshot()
        self._incarnation_saved = snapshot.incarnation
        if self._config.snapshot_path is not None:
            self._keeper.save(self._config.snapshot_path, encode_snapshot(snapshot))
