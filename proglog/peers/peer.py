"""One other node: where it may be found, and both lanes that we dial to it."""

from __future__ import annotations

from collections.abc import Sequence

from proglog import limits
from proglog.peers.dialled import DialledLane
from proglog.peers.frames import Lane
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
        """A lane is open."""
        if lane is Lane.CONTROL:
            self._proved = address
            self.bulk.dial_soon(now=True)
            for receiver in list(self._local.groups.values()):
                receiver.reconnected(self.uuid)

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
