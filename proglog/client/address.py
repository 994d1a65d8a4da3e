"""Where a log is: addresses from a URL, and which of them to ask next."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from proglog.config import RPC_PORT_DEFAULT, Address, split_addresses
from proglog.errors import ConfigurationError


def parse_url(url: str) -> tuple[list[Address], str]:
    """`proglog://host:port[,host:port...][/log]`: the addresses, and the log, "" if none is named.

    Raises ConfigurationError.
    """
    # str(): a list of addresses, say, is as wrong as another scheme, and told the same.
    scheme, separator, rest = str(url).partition("://")
    hosts, _, log = rest.partition("/")
    names = split_addresses(hosts)
    if scheme != "proglog" or not separator or "/" in log or not names:
        raise ConfigurationError(
            f"the URL of a log is proglog://host:port[,host:port...][/log], not {url!r}"
        )
    addresses = [Address.parse(name, "an address of the log", RPC_PORT_DEFAULT) for name in names]
    return addresses, unquote(log)


class Picker:
    """Which node to ask: the leader as last heard of, else the known addresses in turn."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        assert addresses, "a log has at least one address"
        self._addresses = addresses
        self._turn = 0
        self._leader: Address | None = None

    @property
    def current(self) -> Address:
        return self._leader or self._addresses[self._turn]

    def others(self, asked: Address) -> list[Address]:
        """All known addresses but one."""
        known = [*self._addresses, *([self._leader] if self._leader else [])]
        return [address for address in dict.fromkeys(known) if address != asked]

    def redirect(self, asked: Address, leader: str) -> None:
        """`asked` said who leads, or with "" that it does not know."""
        try:
            leader_address = Address.parse(leader)
        except ConfigurationError:
            self.failed(asked)
            return
        if leader_address == asked:
            self.failed(asked)  # It cannot be itself: it does not know yet that it leads no more.
        else:
            self._leader = leader_address

    def failed(self, asked: Address) -> None:
        """`asked` was of no use. Says so once: others that failed with it change nothing more."""
        if asked != self.current:
            return
        if self._leader is None:
            self._turn = (self._turn + 1) % len(self._addresses)
        self._leader = None
