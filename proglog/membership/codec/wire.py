"""Messages as msgpack maps, the way HashiCorp's go-msgpack 0.5 writes them.

A message is a frozen dataclass whose fields are declared once, with `Wire`: the Go name of the
field and how to check its value. Encoding and decoding both follow from that. The dialect is the
old msgpack specification: text and bytes are one type ("raw"), field names are strings, a nil
stands for the zero value, unknown names are skipped.

Everything here reads bytes from strangers: `MalformedMessage` is the only error that comes out, and
no length is believed beyond the bound of its field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, get_type_hints

import msgpack

from proglog.membership import limits
from proglog.membership.errors import MalformedMessage

Check = Callable[[Any], Any]
"""Turns a decoded msgpack value into a field's value, or raises MalformedMessage."""

M = TypeVar("M")

UNPACK_ERRORS = (ValueError, TypeError, OverflowError, msgpack.UnpackException)
"""What msgpack raises for bytes it does not like (TypeError: a map key that cannot be one)."""

UNPACK_LIMITS: dict[str, Any] = {
    "raw": True,
    "strict_map_key": False,
    "max_array_len": limits.array_items_max,
    "max_map_len": limits.map_items_max,
    "max_ext_len": 0,
}
# An array's length is allocated before its items are read, and arrays nest: the bound on the length
# is what keeps three bytes a level from asking for gigabytes.


def pack(value: object) -> bytes:
    """One value in the old dialect."""
    return msgpack.packb(value, use_bin_type=False)  # type: ignore[no-any-return]  # untyped library


def unpack(data: bytes | memoryview) -> object:
    """The one value that `data` is. Raises MalformedMessage."""
    try:
        return msgpack.unpackb(data, **UNPACK_LIMITS)
    except UNPACK_ERRORS as error:
        raise MalformedMessage(f"no msgpack: {error or type(error).__name__}") from error


# --- checks --------------------------------------------------------------------------------------


def unsigned(bits: int) -> Check:
    """An integer in [0, 2**bits)."""
    limit = 1 << bits

    def check(value: object) -> int:
        if type(value) is not int or not 0 <= value < limit:
            raise MalformedMessage(f"expected a number below 2**{bits}")
        return value

    return check


def lamport(value: object) -> int:
    """A Lamport time that an honest cluster can have reached."""
    if type(value) is not int or not 0 <= value <= limits.lamport_time_max:
        raise MalformedMessage("expected a Lamport time")
    return value


def flag(value: object) -> bool:
    if type(value) is not bool:
        raise MalformedMessage("expected a boolean")
    return value


def raw(size_max: int) -> Check:
    """Bytes, at most `size_max` of them."""

    def check(value: object) -> bytes:
        if type(value) is not bytes:
            raise MalformedMessage("expected bytes")
        if len(value) > size_max:
            raise MalformedMessage(f"{len(value)} bytes where {size_max} are allowed")
        return value

    return check


def text(size_max: int = limits.text_bytes_max) -> Check:
    """UTF-8 text of at most `size_max` bytes."""
    check_bytes = raw(size_max)

    def check(value: object) -> str:
        try:
            return str(check_bytes(value), "utf-8")
        except UnicodeDecodeError as error:
            raise MalformedMessage("text that is not UTF-8") from error

    return check


def name(value: object) -> str:
    """A node's name: never empty."""
    checked: str = _name(value)
    if not checked:
        raise MalformedMessage("a node without a name")
    return checked


_name = text(limits.name_bytes_max)


def items(check_item: Check, count_max: int) -> Check:
    """A list, as a tuple."""

    def check(value: object) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > count_max:
            raise MalformedMessage(f"expected at most {count_max} items")
        return tuple(check_item(item) for item in value)

    return check


def mapping(check_key: Check, check_value: Check, count_max: int) -> Check:
    def check(value: object) -> dict[Any, Any]:
        if type(value) is not dict or len(value) > count_max:
            raise MalformedMessage(f"expected a map of at most {count_max}")
        return {check_key(key): check_value(item) for key, item in value.items()}

    return check


def nested(kind: type[M]) -> Callable[[object], M]:
    """A map that is itself a message."""
    return lambda value: from_map(kind, value)


# --- messages ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Wire:
    """How a field travels: its Go name, how its value is checked, and how it becomes a msgpack
    value where it is not one. A field without a default must be present and not nil."""

    go_name: str
    check: Check
    dump: Callable[[Any], object] | None = None


class _Field(NamedTuple):
    attribute: str
    go_name: bytes
    check: Check
    dump: Callable[[Any], object]
    required: bool


_FIELDS: dict[type, tuple[_Field, ...]] = {}
"""What `_fields` has found, once for each kind of message."""


def _fields(kind: type) -> tuple[_Field, ...]:
    if kind not in _FIELDS:
        # In the order in which Go writes them: so our bytes are the same as a stock agent's.
        _FIELDS[kind] = tuple(sorted(_find_fields(kind), key=lambda field: field.go_name))
    return _FIELDS[kind]


def _find_fields(kind: type) -> Iterator[_Field]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        (wire,) = hints[field.name].__metadata__
        has_default = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        dump = wire.dump or _plain
        name = wire.go_name.encode()
        yield _Field(field.name, name, wire.check, dump, required=not has_default)


def from_map(kind: type[M], value: object) -> M:
    """The message of this kind that a decoded map is. Raises MalformedMessage."""
    if type(value) is not dict:
        raise MalformedMessage(f"{kind.__name__}: expected a map")
    arguments = {}
    for field in _fields(kind):
        item = value.get(field.go_name)
        if item is not None:
            arguments[field.attribute] = field.check(item)
        elif field.required:
            raise MalformedMessage(f"{kind.__name__} without {field.go_name.decode()}")
    return kind(**arguments)


def decode(kind: type[M], data: bytes | memoryview) -> M:
    """The message of this kind that `data` is. Raises MalformedMessage."""
    return from_map(kind, unpack(data))


def to_map(message: object) -> dict[bytes, object]:
    """A message as the map it travels as."""
    return {
        field.go_name: field.dump(getattr(message, field.attribute))
        for field in _fields(type(message))
    }


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return to_map(value)
    return value


def encode(message: object) -> bytes:
    return pack(to_map(message))
