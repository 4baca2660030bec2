"""The handoff keys as the programs have them: map `handoff_keys`, one entry, replaced as a whole."""

from common.bpf.abi import HANDOFF_KEYS, HandoffKeys
from common.bpf.maps import HashMap
from common.keyring import Keyring, key_id

_ONLY = (0).to_bytes(4, "little")


def halves(key: bytes) -> tuple[int, int]:
    """A SipHash key's low and high half, of which the bytes are little-endian."""
    return int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")


def write(handoff_keys: HashMap, keyring: Keyring) -> None:
    current, previous = keyring.keys[0], keyring.keys[-1]
    handoff_keys.update(
        _ONLY,
        HANDOFF_KEYS.pack(
            HandoffKeys(
                *halves(current),
                *halves(previous),
                current_id=key_id(current),
                previous_id=key_id(previous),
                has_previous=len(keyring.keys) > 1,
            )
        ),
    )
