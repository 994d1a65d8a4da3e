"""The logs of one node by name. There is one at first."""

from __future__ import annotations

from proglog.errors import UnknownLog, quoted
from proglog.replica.replica import Replica

DEFAULT = "default"


class Logs:
    """Finds a replica by the name of its log."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._by_name = {replica.name: replica for replica in replicas}

    def get(self, name: str) -> Replica:
        """The log called `name`; empty means the default one. Raises UnknownLog."""
        replica = self._by_name.get(name or DEFAULT)
        if replica is None:
            known = ", ".join(sorted(self._by_name))
            raise UnknownLog(f"there is no log {quoted(name)} here, only {known}", log=name)
        return replica
