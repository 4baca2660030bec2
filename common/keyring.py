"""The shared key of the handoff's tag: SipHash-2-4 (Aumasson and Bernstein, 2012) under 128 bits.

The key file has one or two lines of 32 hex digits: the current key, which signs, and the previous one, which
is still accepted while the daemons are moved over one after another.
"""

import hmac
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from siphash24 import siphash24

from common.config import ConfigError
from common.wire import channel, handoff
from common.wire.handoff import Handoff
from common.wire.mac import Mac

KEY_SIZE = 16
_MAX_KEYS = 2
_INSECURE_KEY = bytes(KEY_SIZE)


def make_mac(key: bytes) -> Mac:
    """SipHash-2-4 under a key of 16 bytes."""

    def mac(message: bytes) -> bytes:
        digest: bytes = siphash24(message, key=key).digest()
        return digest

    return mac


@dataclass(frozen=True, slots=True)
class Keyring:
    keys: tuple[bytes, ...]
    """16 bytes each, the current one first."""

    def sign(self, message: Handoff) -> Handoff:
        """With key id and tag of the current key."""
        key = self.keys[0]
        return handoff.sign(message._replace(key_id=key_id(key)), make_mac(key))

    def verify(self, message: Handoff) -> bool:
        """Whether the tag is right under one of the keys that the key id may mean."""
        signed = handoff.signed_bytes(message)
        return any(
            hmac.compare_digest(make_mac(key)(signed), message.tag)
            for key in self.keys
            if key_id(key) == message.key_id
        )

    def channel_keys(self) -> tuple[channel.Key, ...]:
        """Those of the channel, the current one first.

        Each is made of a handoff key, so that no tag of a datagram is ever that of a handoff.
        """
        derived = (b"".join(map(make_mac(key), channel.KEY_LABELS)) for key in self.keys)
        return tuple(
            channel.Key(key_id(key), make_mac(made)) for key, made in zip(self.keys, derived, strict=True)
        )


def load(path: Path) -> Keyring:
    """The keys in ``path``. `ConfigError` where there are none, or where others can read them."""
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().split()
    except FileNotFoundError:
        raise ConfigError(
            f"key file {path} does not exist: make one, the same on balancer and nodes, with"
            f" `(umask 077; openssl rand -hex {KEY_SIZE} > {path})`, or pass --insecure"
        ) from None
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"key file {path} cannot be read: it is not text of hex digits") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"key file {path} is open to others than its owner: run `chmod 600 {path}`")
    if not 1 <= len(lines) <= _MAX_KEYS:
        raise ConfigError(f"key file {path} has {len(lines)} keys: one or two lines are allowed")
    return Keyring(tuple(_parse_key(path, number, line) for number, line in enumerate(lines, 1)))


def insecure() -> Keyring:
    """A key that everybody knows: it finds damage, not forgery."""
    return Keyring((_INSECURE_KEY,))


class KeySource:
    """The keys in force, read again on demand."""

    def __init__(self, path: Path, *, is_insecure: bool) -> None:
        """`ConfigError` where the keys cannot be used."""
        self.is_insecure = is_insecure
        self._path = path
        self._keyring = self.read()

    def read(self) -> Keyring:
        """What the key file says now; nothing changes yet. `ConfigError`."""
        return insecure() if self.is_insecure else load(self._path)

    def take(self, keyring: Keyring) -> None:
        self._keyring = keyring

    @property
    def keyring(self) -> Keyring:
        return self._keyring

    def sign(self, message: Handoff) -> Handoff:
        return self._keyring.sign(message)

    def verify(self, message: Handoff) -> bool:
        return self._keyring.verify(message)


def _parse_key(path: Path, number: int, line: str) -> bytes:
    try:
        key = bytes.fromhex(line)
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE:
        raise ConfigError(f"key file {path} line {number} is not {2 * KEY_SIZE} hex digits")
    return key


def key_id(key: bytes) -> int:
    """What a handoff says of the key that made its tag."""
    return key[-1] & 1
