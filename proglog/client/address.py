"""Where a log is: addresses from a URL."""

from __future__ import annotations

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
