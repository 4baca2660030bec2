"""The handoff key: its file, and tags under one or two keys."""

from pathlib import Path

import pytest

from common.config import ConfigError
from common.keyring import Keyring, KeySource, insecure, load, make_mac
from common.wire.handoff import Handoff

OLD, NEW, OTHER = bytes(range(16)), bytes(range(1, 17)), bytes(15) + b"\x02"
"""Their last bytes are 15, 16 and 2, so that the second and third have the same key id."""


def a_handoff() -> Handoff:
    return Handoff(
        client=bytes((198, 51, 100, 7)),
        node=bytes((192, 168, 33, 20)),
        client_port=40000,
        service_port=80,
        vip_index=1,
        seq=1000,
        ack=2000,
        window=64240,
        mss=1460,
        window_scale=7,
        sack_permitted=True,
        timestamps=None,
        promised_scale=7,
        fin=False,
        time=4711,
        payload=b"GET / HTTP/1.1\r\n\r\n",
    )


def key_file(directory: Path, text: str, mode: int = 0o600) -> Path:
    path = directory / "handoff.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_mac_gives_the_reference_vector_of_siphash_2_4() -> None:
    # Appendix A of the SipHash paper: key 00..0f, message 00..0e.
    assert make_mac(bytes(range(16)))(bytes(range(15))).hex() == "e545be4961ca29a1"


def test_a_signed_handoff_verifies_under_the_same_key() -> None:
    signed = Keyring((NEW,)).sign(a_handoff())
    assert Keyring((NEW,)).verify(signed)


@pytest.mark.parametrize("other", [OLD, OTHER], ids=["other_key_id", "same_key_id"])
def test_another_key_refuses_the_tag(other: bytes) -> None:
    assert not Keyring((other,)).verify(Keyring((NEW,)).sign(a_handoff()))


@pytest.mark.parametrize("previous", [OLD, OTHER], ids=["other_key_id", "same_key_id"])
def test_during_a_change_the_previous_key_is_still_accepted(previous: bytes) -> None:
    both = Keyring((NEW, previous))
    assert both.verify(Keyring((previous,)).sign(a_handoff()))
    assert both.verify(Keyring((NEW,)).sign(a_handoff()))
    assert Keyring((NEW,)).verify(both.sign(a_handoff())), "the first key signs"


def test_insecure_still_finds_damage() -> None:
    signed = insecure().sign(a_handoff())
    assert insecure().verify(signed)
    assert not insecure().verify(signed._replace(seq=signed.seq + 1))


def test_the_file_has_the_current_key_and_the_previous_one(tmp_path: Path) -> None:
    assert load(key_file(tmp_path, f"{NEW.hex()}\n{OLD.hex()}\n")).keys == (NEW, OLD)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has 0 keys"),
        (f"{OLD.hex()}\n" * 3, "has 3 keys"),
        (f"{OLD.hex()}\n{OLD.hex()[:-1]}\n", "line 2 is not 32 hex digits"),
        ("zz" * 16, "line 1 is not 32 hex digits"),
        ("ä" * 32, "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_and_the_line_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(key_file(tmp_path, text))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        load(key_file(tmp_path, OLD.hex(), mode))


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"openssl rand -hex 16 > .*missing\.key"):
        load(tmp_path / "missing.key")


def test_reloading_takes_the_new_key_and_keeps_the_old_one_if_the_file_is_bad(tmp_path: Path) -> None:
    path = key_file(tmp_path, OLD.hex())
    keys = KeySource(path, is_insecure=False)
    path.write_text(NEW.hex())
    assert keys.verify(Keyring((OLD,)).sign(a_handoff()))
    keys.take(keys.read())
    assert keys.verify(Keyring((NEW,)).sign(a_handoff()))
    path.write_text("rubbish")
    with pytest.raises(ConfigError):
        keys.take(keys.read())
    assert keys.verify(Keyring((NEW,)).sign(a_handoff()))
