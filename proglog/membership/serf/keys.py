"""Serf's internal queries about encryption keys: what `serf keys` asks of every node."""

from __future__ import annotations

from collections.abc import Callable

from proglog.membership import limits
from proglog.membership.codec.keyring import Keyring, encode_key
from proglog.membership.codec.serf_messages import (
    KeyRequest,
    KeyResponse,
    SerfType,
    decode_serf,
    encode_serf,
)
from proglog.membership.errors import KeyRefused


def answer_key_query(verb: str, payload: bytes, keyring: Keyring) -> KeyResponse | None:
    """Carries out `install-key`, `use-key`, `remove-key` or `list-keys`; None for another verb.
    Raises MalformedMessage."""
    operations: dict[str, Callable[[bytes], None]] = {
        "install-key": keyring.install,
        "use-key": keyring.use,
        "remove-key": keyring.remove,
    }
    if verb == "list-keys":
        return _list_keys(keyring)
    if verb not in operations:
        return None
    request = decode_serf(SerfType.KEY_REQUEST, payload)
    assert isinstance(request, KeyRequest)
    if not keyring:
        return KeyResponse(message="No keyring to modify (encryption not enabled)")
    try:
        operations[verb](request.key)
    except KeyRefused as error:
        return KeyResponse(message=str(error))
    return KeyResponse(result=True)


def _list_keys(keyring: Keyring) -> KeyResponse:
    if not keyring:
        return KeyResponse(message="Keyring is empty (encryption not enabled)")
    keys = tuple(map(encode_key, keyring.keys))
    response = KeyResponse(result=True, keys=keys, primary_key=keys[0])
    # An answer has to fit into one packet; what does not is said.
    shown = len(keys)
    while len(encode_serf(response)) > limits.query_bytes_max - 2 * limits.name_bytes_max:
        shown -= 1
        response = KeyResponse(
            result=True,
            keys=keys[:shown],
            primary_key=keys[0],
            message=f"truncated key list response, showing first {shown} of {len(keys)} keys",
        )
    return response
