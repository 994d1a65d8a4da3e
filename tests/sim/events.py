"""What happened in a world, a line an event, for whoever looks for why: `--events`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

import structlog

from proglog.raft.messages import Message
from tests.sim.processes import running_host

if TYPE_CHECKING:
    from tests.sim.node import SimNode

_NOT_SHOWN = ("sender", "to", "entries", "configuration")


class Events:
    """Virtual seconds, who, what. The lines that nodes log are among them."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self.now: Callable[[], float] = float
        self.nodes: Iterable[SimNode] = ()

    def add(self, who: str, what: object) -> None:
        self._write(f"{self.now():9.4f} {who:<5} {self._named(str(what))}")

    def sent(self, who: str, message: Message) -> None:
        """A message leaves a node."""
        fields = [
            f"{name} {value:d}" if isinstance(value, bool) else f"{name} {value}"
            for name, value in message._asdict().items()
            if name not in _NOT_SHOWN
        ]
        self.add(who, f"-> {message.to} {type(message).__name__} {' '.join(fields)}")

    def _named(self, text: str) -> str:
        """Servers by their names."""
        for node in self.nodes:
            if node.uuid:
                text = text.replace(node.uuid, node.name)
        return text

    def log_here(self) -> None:
        """Lines that nodes log become events."""
        structlog.configure(
            processors=[self._logged],
            wrapper_class=structlog.make_filtering_bound_logger(20),
            logger_factory=structlog.ReturnLoggerFactory(),
        )

    def _logged(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        facts = " ".join(f"{name}={value}" for name, value in event.items() if name != "event")
        self.add(running_host(), f"log {method}: {event['event']} {facts}".rstrip())
        return ""
