"""How a connection begins: who dials whom, and what the other one says to it.

Documents of JSON, of which members that are not known are ignored: a later version may say more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from proglog.batch import Buffer
from proglog.peers.frames import GREETING_BYTES_MAX, NODE, FrameError, Type, frame

PROTOCOLS = (2, 2)
"""The first and the last version that is spoken here. The first one was never released."""
FEATURES: tuple[str, ...] = ()
"""What this version can do beyond its protocol, in words."""
_TEXT_MAX = 512
_FEATURES_MAX = 64
_T = TypeVar("_T")


class Life(NamedTuple):
    """Which start of which node."""

    uuid: str
    name: str
    incarnation: int
    """Grows with every start."""
    session: str
    """Random for every start."""


class Hello(NamedTuple):
    """Who dials whom, for what."""

    life: Life
    address: str
    cluster_id: str
    """Empty while the sender belongs to none."""
    cluster_name: str
    to: str
    """The uuid of who is meant."""
    lane: str
    """One that is not known here is refused."""
    protocols: tuple[int, int] = PROTOCOLS
    features: tuple[str, ...] = FEATURES
    level: int = 1
    """The latest level of replicated state that the sender can compute."""


class Welcome(NamedTuple):
    """Who answered."""

    life: Life
    cluster_id: str
    protocol: int
    features: tuple[str, ...] = FEATURES
    level: int = 1


class Refusal(NamedTuple):
    """Why there is no connection: a word for programs, a sentence for people."""

    code: str
    why: str


def encode_hello(hello: Hello) -> list[Buffer]:
    return _encode(
        Type.HELLO,
        **_life(hello.life),
        address=hello.address,
        cluster_id=hello.cluster_id,
        cluster_name=hello.cluster_name,
        to=hello.to,
        lane=hello.lane,
        protocols=hello.protocols,
        features=hello.features,
        level=hello.level,
    )


def decode_hello(payload: Buffer) -> Hello:
    return _decode(
        payload,
        lambda document: Hello(
            life=_life_of(document),
            address=_text(document["address"]),
            cluster_id=_text(document["cluster_id"]),
            cluster_name=_text(document["cluster_name"]),
            to=_text(document["to"]),
            lane=_text(document["lane"]),
            protocols=_protocols(document["protocols"]),
            features=_words(document["features"]),
            level=_number(document.get("level", 1)),
        ),
    )


def encode_welcome(welcome: Welcome) -> list[Buffer]:
    return _encode(
        Type.WELCOME,
        **_life(welcome.life),
        cluster_id=welcome.cluster_id,
        protocol=welcome.protocol,
        features=welcome.features,
        level=welcome.level,
    )


def decode_welcome(payload: Buffer) -> Welcome:
    return _decode(
        payload,
        lambda document: Welcome(
            life=_life_of(document),
            cluster_id=_text(document["cluster_id"]),
            protocol=_number(document["protocol"]),
            features=_words(document["features"]),
            level=_number(document.get("level", 1)),
        ),
    )


def encode_refusal(refusal: Refusal) -> list[Buffer]:
    return _encode(Type.REFUSAL, code=refusal.code, why=refusal.why[:_TEXT_MAX])


def decode_refusal(payload: Buffer) -> Refusal:
    return _decode(
        payload, lambda document: Refusal(_text(document["code"]), _text(document["why"]))
    )


def common_protocol(theirs: tuple[int, int]) -> int:
    """The newest one that both speak; 0 if there is none."""
    first, last = max(theirs[0], PROTOCOLS[0]), min(theirs[1], PROTOCOLS[1])
    return last if first <= last else 0


def _encode(type_: Type, **members: Any) -> list[Buffer]:
    return frame(type_, NODE, json.dumps(members).encode())


def _decode(payload: Buffer, read: Callable[[dict[str, Any]], _T]) -> _T:
    if len(payload) > GREETING_BYTES_MAX:
        raise FrameError(f"a greeting of {len(payload)} bytes is too long")
    try:
        return read(json.loads(bytes(payload)))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise FrameError(f"malformed greeting: {error}") from None


def _life(life: Life) -> dict[str, Any]:
    return life._asdict()


def _life_of(document: dict[str, Any]) -> Life:
    return Life(
        uuid=_text(document["uuid"]),
        name=_text(document["name"]),
        incarnation=_number(document["incarnation"]),
        session=_text(document["session"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value[:_TEXT_MAX]


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**64:
        raise TypeError(f"{value!r:.40} is no number")
    return value


def _protocols(value: list[object]) -> tuple[int, int]:
    first, last = value
    return _number(first), _number(last)


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list of words")
    return tuple(map(_text, value[:_FEATURES_MAX]))
