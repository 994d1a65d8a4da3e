"""AES-GCM encryption of gossip, with several keys, as memberlist and Serf do it.

A sealed payload is: version (1 byte: 1), nonce (12 bytes), ciphertext, tag (16 bytes). Version 0 is
the same with the plaintext padded to 16 bytes (PKCS #7); we read it and write version 1. The
primary key seals, any installed key opens: so a key is replaced in three steps, each of which
reaches the whole cluster before the next: install it, use it, remove the old one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proglog.membership import limits
from proglog.membership.errors import KeyRefused, MalformedMessage

_KEY_SIZES = (16, 24, 32)
_NONCE_BYTES, _TAG_BYTES, _BLOCK_BYTES = 12, 16, 16
OVERHEAD_BYTES = 1 + _NONCE_BYTES + _TAG_BYTES


class Keyring:
    """The keys in force; the first is the primary. A keyring without keys encrypts nothing.

    Whether a cluster encrypts is decided at the start: an empty keyring stays empty, another one
    never becomes so. The dictionary of keys is replaced, never changed: a thread that decodes a
    large stream may be going through it.
    """

    def __init__(self, keys: Iterable[bytes], nonce: Callable[[int], bytes]) -> None:
        """`nonce` gives that many random bytes; for one key they must never repeat."""
        self._keys: dict[bytes, AESGCM] = {}
        self._nonce = nonce
        for key in keys:
            self._add(key)

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All keys, the primary first."""
        return tuple(self._keys)

    def install(self, key: bytes) -> None:
        """From now on what is sealed with this key can be opened. Raises KeyRefused."""
        if not self._keys:
            raise KeyRefused("no keyring to modify: encryption is not enabled")
        self._add(key)

    def use(self, key: bytes) -> None:
        """Makes an installed key the primary one. Raises KeyRefused."""
        if key not in self._keys:
            raise KeyRefused("requested key is not in the keyring")
        self._keys = {key: self._keys[key]} | self._keys

    def remove(self, key: bytes) -> None:
        """Forgets a key that is not the primary one. Raises KeyRefused."""
        if self._keys and key == self.keys[0]:
            raise KeyRefused("removing the primary key is not allowed")
        self._keys = {kept: cipher for kept, cipher in self._keys.items() if kept != key}

    def seal(self, plain: bytes, associated: bytes = b"") -> bytes:
        """Encrypts with the primary key."""
        nonce = self._nonce(_NONCE_BYTES)
        primary = next(iter(self._keys.values()))
        return b"\x01" + nonce + primary.encrypt(nonce, plain, associated or None)

    def open(self, sealed: bytes, associated: bytes = b"") -> bytes:
        """Decrypts with whichever key fits. Raises MalformedMessage."""
        if len(sealed) < OVERHEAD_BYTES:
            raise MalformedMessage(f"encrypted payload of {len(sealed)} bytes")
        version = sealed[0]
        if version > 1:
            raise MalformedMessage(f"encryption version {version}")
        nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        for cipher in self._keys.values():
            try:
                plain = cipher.decrypt(nonce, body, associated or None)
            except InvalidTag:
                continue
            return plain if version == 1 else _unpad(plain)
        raise MalformedMessage("no installed key opens the payload")

    def _add(self, key: bytes) -> None:
        if len(key) not in _KEY_SIZES:
            raise KeyRefused("key size must be 16, 24 or 32 bytes")
        if len(self._keys) >= limits.keys_max and key not in self._keys:
            raise KeyRefused(f"the keyring holds at most {limits.keys_max} keys")
        self._keys = self._keys | {bytes(key): AESGCM(key)}


def _unpad(plain: bytes) -> bytes:
    if not plain or not 1 <= plain[-1] <= _BLOCK_BYTES or plain[-1] > len(plain):
        raise MalformedMessage("encrypted payload with broken padding")
    return plain[: -plain[-1]]


def decode_key(text: str) -> bytes:
    """A key as people write it, base64. Raises KeyRefused."""
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise KeyRefused("a gossip key is base64 of 16, 24 or 32 bytes") from error
    if len(key) not in _KEY_SIZES:
        raise KeyRefused("a gossip key is base64 of 16, 24 or 32 bytes")
    return key


def encode_key(key: bytes) -> str:
    return base64.b64encode(key).decode()


def encode_keyring(keys: Iterable[bytes]) -> bytes:
    """A keyring file as Serf writes it: a JSON list of base64 keys, the primary first."""
    return json.dumps([encode_key(key) for key in keys], indent=2).encode()


def decode_keyring(data: bytes) -> tuple[bytes, ...]:
    """Keys of a keyring file. Raises KeyRefused."""
    try:
        texts = json.loads(data)
    except ValueError as error:
        raise KeyRefused("the keyring file is no JSON") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise KeyRefused("the keyring file is no JSON list of keys")
    if len(texts) > limits.keys_max:
        raise KeyRefused(f"the keyring holds at most {limits.keys_max} keys")
    return tuple(decode_key(text) for text in texts)
