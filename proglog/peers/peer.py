"""One other node: where it may be found, and both lanes that we dial to it."""

from __future__ import annotations

from collections.abc import Sequence

from proglog import limits
from proglog.peers.dialled import DialledLane
from proglog.peers.frames import Lane, Type, frame
from proglog.peers.hello import Life, Refusal
from proglog.peers.local import Known, Local
from proglog.peers.offsets import Offsets


class Peer:
    """See the module. The bulk lane lives beside the control lane, and ends with it."""

    def __init__(self, local: Local, uuid: str) -> None:
        self._local = local
        self.uuid = uuid
        self.offsets = Offsets()
        self.known: dict[int, Known] = {}
        """By the groups that it is a server of."""
        self.control = DialledLane(local, self, Lane.CONTROL)
        self.bulk = DialledLane(local, self, Lane.BULK)
        self._hints: list[str] = []
        """Addresses that others told, the newest first. Nothing is believed: each is tried beside
        the configured one, and whoever answers must prove who it is."""
        self._hinted_name = ""
        self._proved = ""
        """Where it was found last."""
        self.life: Life | None = None
        """The latest of its lives that is known. A life is one start of one directory, and its
        number only grows: see `why_not`."""

    # --- who it is -------------------------------------------------------------------------------

    def why_not(self, life: Life) -> Refusal | None:
        """Why one that calls itself this is not believed to be this peer as it is now.

        An earlier life has forgotten what a later one has promised. Of two that bear one number,
        one is a copy, or has lost that it began: which of them cannot be known, so it is the later
        to come.
        """
        named = next((known.name for known in self.known.values()), life.name)
        if life.name != named:
            return Refusal("NAME", f"{life.uuid} is {named} here, not {life.name}")
        last = self.life
        if last is None or life.incarnation > last.incarnation or life == last:
            return None
        if life.incarnation < last.incarnation:
            return Refusal(
                "OLD_LIFE",
                f"this is start {life.incarnation} of {life.name}, and start {last.incarnation} "
                "was seen: the directory is an older copy",
            )
        return Refusal(
            "TWIN",
            f"another process was seen that is start {life.incarnation} of {life.name} too: its "
            "directory was copied, or was set back",
        )

    def lives_as(self, life: Life) -> None:
        """It has proved to be this one, which is no earlier one than the last."""
        if life != self.life:
            self.life, before = life, self.life
            if before is not None:
                self.give_up(before, "it was started anew")

    def give_up(self, life: Life, why: str) -> None:
        """Ends the lanes to this life of it."""
        for lane in (self.control, self.bulk):
            if lane.connection is not None and lane.connection.life == life:
                lane.give_up(why)

    def refused(self, refusal: Refusal, address: str) -> None:
        """It does not take us for what we say. Not believed of whoever answers where gossip says
        that it is: what is heard there stops nobody."""
        if any(address == known.address for known in self.known.values()):
            self._local.home.doubted(refusal, self.name)

    # --- where it is -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What to call it in front of people."""
        configured = next((known.name for known in self.known.values()), "")
        return configured or self._hinted_name or self.uuid

    @property
    def configured(self) -> tuple[str, str] | None:
        """Its name and address as a log's configuration has them, if it is a server of one."""
        return next(((known.name, known.address) for known in self.known.values()), None)

    @property
    def address(self) -> str:
        """Where it is, as far as we know; perhaps "". What others tell counts last: they could
        send clients anywhere."""
        if self.control.is_open:
            return self._proved
        return next(iter(self.addresses(Lane.CONTROL)), "")

    @property
    def is_wanted(self) -> bool:
        """Whether connections are kept to it."""
        return bool(self.known)

    @property
    def is_hinted(self) -> bool:
        """Whether anybody else has told of it."""
        return bool(self._hints)

    @property
    def redial_seconds_max(self) -> float:
        """The longest pause between two dials."""
        if any(known.is_voter for known in self.known.values()):
            return limits.voter_redial_seconds_max
        return limits.redial_seconds_max

    def hint(self, name: str, address: str) -> None:
        """Somebody told where it can be reached."""
        self._hinted_name = name
        self._hints = [address, *(hint for hint in self._hints if hint != address)]
        del self._hints[limits.hints_of_a_peer_max :]

    def addresses(self, lane: Lane) -> Sequence[str]:
        """Where to dial: the configured addresses, where it was last, what others told."""
        if lane is Lane.BULK:
            return [self._proved] if self.control.is_open else []
        places = [*(known.address for known in self.known.values()), self._proved, *self._hints]
        return list(dict.fromkeys(filter(None, places)))

    def dial_soon(self, *, now: bool = False) -> None:
        """Begins to connect where that is not done."""
        self.control.dial_soon(now=now)
        self.bulk.dial_soon(now=now)

    def opened(self, lane: Lane, address: str) -> None:
        """A lane is open. The first that it brings is what we state in each log.

        Who answered there may be of a newer life than the last that is known. Only its own greeting
        makes it the last: that is where it is asked whether the one before is still there.
        """
        for group in self._local.groups:
            self.state(group, lane)
        if lane is Lane.CONTROL:
            self._proved = address
            self.bulk.dial_soon(now=True)
            for receiver in list(self._local.groups.values()):
                receiver.reconnected(self.uuid)

    def state(self, group: int, lane: Lane) -> None:
        """Tells it where we stand in a log, if this lane is open."""
        dialled = self.control if lane is Lane.CONTROL else self.bulk
        if not dialled.is_open:
            return
        if (statement := self._local.groups[group].statement()) is not None:
            dialled.write(frame(Type.STAND, group, statement))

    def lost(self, lane: Lane) -> None:
        """A lane has ended."""
        if lane is Lane.CONTROL:
            self.bulk.give_up("so does the control lane")
            return
        for receiver in list(self._local.groups.values()):
            receiver.unreachable(self.uuid)

    def beat(self) -> None:
        """Time has passed."""
        self.control.beat()
        self.bulk.beat()

    def close(self) -> None:
        """For good."""
        self.control.close()
        self.bulk.close()
