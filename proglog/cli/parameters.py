"""Types of the commands' parameters: how each is read from text and shown in the help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import CoercionError, Parameter, Token

from proglog.cli.units import (
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
    parse_timestamp,
)
from proglog.client.tls import Tls
from proglog.config import RPC_PORT_DEFAULT, Address, join_addresses
from proglog.errors import ConfigurationError

NONE = "none"
"""How a setting that may be absent is said to be: a flag takes back what a file sets."""


def _told(parse: Callable[[str], Any], text: str, token: Token) -> Any:
    """What `parse` makes of a text. Raises CoercionError, which says where the text stands."""
    try:
        return parse(text)
    except ValueError as error:
        file = "" if token.source in {"cli", "env"} else f" (in {token.source})"
        raise CoercionError(msg=f"{error}{file}", token=token) from None


def _read(parse: Callable[[str], Any], metavar: str, show: Callable[[Any], str] = str) -> Parameter:
    return Parameter(
        converter=lambda _type, tokens: _told(parse, tokens[0].value, tokens[0]),
        n_tokens=1,
        accepts_keys=False,
        metavar=metavar,
        show_default=lambda value: NONE if value is None else show(value),
    )


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text == NONE else parse(text)


def _listener(text: str, port: int | None = None) -> Address:
    try:
        return Address.parse(text, port=port)
    except ConfigurationError:
        raise ValueError(f"{text!r} is not like host:port") from None


def _told_address(text: str) -> Address:
    return _listener(text, 0)


def _server(text: str) -> Address:
    return _listener(text, RPC_PORT_DEFAULT)


def _read_list(
    parse: Callable[[str], Any], metavar: str, show: Callable[[Any], str], least: int = 0
) -> Parameter:
    """Of several values: a flag, an item of a file's list, the whole text of a file's value or of a
    variable may each hold one or more, with commas or spaces between. Empty, or `none`: no value.
    """

    def read(text: str) -> tuple[Any, ...]:
        entries = [] if text.strip() in {"", NONE} else [part.split() for part in text.split(",")]
        if not all(entries) or len(entries) < least:
            # Without the text: it may be keys.
            raise ValueError(f"a value is missing: expected {metavar}")
        return tuple(parse(word) for words in entries for word in words)

    return Parameter(
        converter=lambda _type, tokens: _told(
            read, ",".join(token.value for token in tokens), tokens[0]
        ),
        n_tokens=1,
        accepts_keys=False,
        negative=(),
        env_var_split=lambda _type, text, **_: [text],
        metavar=metavar,
        show_default=lambda value: show(value) or NONE,
    )


Size: TypeAlias = Annotated[int, _read(parse_bytes, "SIZE", format_bytes)]
"""Bytes."""
OptionalSize: TypeAlias = Annotated[int | None, _read(_optional(parse_bytes), "SIZE", format_bytes)]
Duration: TypeAlias = Annotated[float, _read(parse_seconds, "DURATION", format_seconds)]
"""Seconds."""
OptionalDuration: TypeAlias = Annotated[
    float | None, _read(_optional(parse_seconds), "DURATION", format_seconds)
]
Timestamp: TypeAlias = Annotated[int, _read(parse_timestamp, "TIME")]
"""Milliseconds since the epoch."""
ListenAddress: TypeAlias = Annotated[Address, _read(_listener, "HOST:PORT")]
OptionalListenAddress: TypeAlias = Annotated[
    Address | None, _read(_optional(_listener), "HOST:PORT")
]
OptionalToldAddress: TypeAlias = Annotated[
    Address | None, _read(_optional(_told_address), "HOST[:PORT]")
]
Server: TypeAlias = Annotated[
    Address, _read(_server, "HOST:PORT"), Parameter(env_var="PROGLOG_SERVER")
]
"""One node, and no other."""
Servers: TypeAlias = Annotated[
    tuple[Address, ...],
    _read_list(_server, "HOST:PORT[,...]", join_addresses, least=1),
    Parameter(env_var="PROGLOG_SERVER"),
]
"""Some nodes of a cluster: the next is asked where one does not answer."""
Words: TypeAlias = Annotated[tuple[str, ...], _read_list(str, "WORD[,...]", ",".join)]
"""A setting of several values, which is checked where it is used."""
Json: TypeAlias = Annotated[bool, Parameter(name="--json", negative=())]
"""Whether what is shown is JSON, an object a line."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """How a command reaches nodes that speak TLS.

    Attributes:
        tls_ca_file: Authorities that sign nodes' certificates; TLS is spoken where it is given.
        tls_cert_file: Our certificate.
        tls_key_file: Its key.
    """

    tls_ca_file: Annotated[Path | None, Parameter(env_var="PROGLOG_TLS_CA_FILE")] = None
    tls_cert_file: Annotated[Path | None, Parameter(env_var="PROGLOG_TLS_CERT_FILE")] = None
    tls_key_file: Annotated[Path | None, Parameter(env_var="PROGLOG_TLS_KEY_FILE")] = None

    @property
    def tls(self) -> Tls | None:
        """For the client; None is plaintext. Raises ConfigurationError."""
        if self.tls_ca_file is None and self.tls_cert_file is None:
            return None
        return Tls(ca=self.tls_ca_file, cert=self.tls_cert_file, key=self.tls_key_file)


PLAINTEXT = TlsFiles()
SERVER_DEFAULT = Address("127.0.0.1", RPC_PORT_DEFAULT)
SERVERS_DEFAULT = (SERVER_DEFAULT,)
