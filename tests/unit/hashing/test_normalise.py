import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.hashing.normalise import normalise_path, normalise_query

TARGETS = st.one_of(
    st.binary(max_size=60),
    st.text("/.%2eEfF45a?", max_size=40).map(str.encode),
    st.lists(
        st.sampled_from([b"/", b".", b"..", b"%", b"%2", b"%2e", b"%2F", b"%34", b"%61", b"a", b"\xc3"])
    ).map(b"".join),
)


def decoded_bytewise(text: bytes) -> bytes:
    """Rule 1 as a C program does it: one pass, two bytes of look-ahead."""
    out, at, decoding = bytearray(), 0, True
    while at < len(text):
        digits = text[at + 1 : at + 3].decode("latin-1")
        if text[at] == ord("%") and decoding:
            if len(digits) == 2 and all(digit in string.hexdigits for digit in digits):
                character = chr(int(digits, 16))
                plain = character in string.ascii_letters + string.digits + "-._~"
                out += (character if plain else f"%{digits.upper()}").encode()
                at += 3
                continue
            decoding = False
        out.append(text[at])
        at += 1
    return bytes(out)


def collapsed_bytewise(path: bytes) -> bytes:
    """Rule 2 as the automaton of the module's documentation."""
    out, state = bytearray(), "plain"
    for byte in path:
        character = chr(byte)
        if state == "plain":
            out.append(byte)
            state = "slash" if character == "/" else "plain"
        elif state == "slash":
            state = {"/": "slash", ".": "dot"}.get(character, "plain")
            if state == "plain":
                out.append(byte)
        elif character == "/":
            state = "slash"
        else:
            out += b"." + bytes((byte,))
            state = "plain"
    return bytes(out)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/", b"/"),
        (b"/a/b.html", b"/a/b.html"),
        (b"/%61%2D%2e%5F%7e%5a%39", b"/a-._~Z9"),
        (b"/a%2fb%3f%c3%a9", b"/a%2Fb%3F%C3%A9"),
        (b"/%2541", b"/%2541"),
        (b"/\xc3\xa9 \x00", b"/\xc3\xa9 \x00"),
        (b"/CaSe", b"/CaSe"),
        (b"//a///b//", b"/a/b/"),
        (b"/./a/././b/.//./c", b"/a/b/c"),
        (b"/a/.", b"/a/"),
        (b"/.", b"/"),
        (b"/a//.", b"/a/"),
        (b"/%2e/a/%2E", b"/a/"),
        (b"/a/.b/c./d", b"/a/.b/c./d"),
        (b"/...", b"/..."),
        (b"/.\n", b"/.\n"),
        (b"", b""),
    ],
)
def test_path_has_one_spelling(path: bytes, expected: bytes) -> None:
    assert normalise_path(path) == expected


@pytest.mark.parametrize("path", [b"/a/../b", b"/..", b"/../", b"/a/.."])
def test_double_dot_segments_stay(path: bytes) -> None:
    assert normalise_path(path) == path


def test_encoded_double_dot_is_spelled_out_but_stays() -> None:
    assert normalise_path(b"/a//%2e%2E/b") == b"/a/../b"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/%61%%34%31", b"/a%%34%31"),
        (b"/%61%4", b"/a%4"),
        (b"/%61%", b"/a%"),
        (b"/%61%g1%61%c3", b"/a%g1%61%c3"),
        (b"/%zz//%2e/./%61", b"/%zz/%2e/%61"),
    ],
)
def test_nothing_is_decoded_from_a_malformed_encoding_on(path: bytes, expected: bytes) -> None:
    assert normalise_path(path) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", b""),
        (b"b=2&a=1&&", b"b=2&a=1&&"),
        (b"u=http://h//x/./y/.", b"u=http://h//x/./y/."),
        (b"%61=%2f+%2B", b"a=%2F+%2B"),
        (b"off=50%&%61=1", b"off=50%&%61=1"),
    ],
)
def test_query_changes_only_in_its_percent_encodings(query: bytes, expected: bytes) -> None:
    assert normalise_query(query) == expected


@given(TARGETS)
@example(b"/%%34%31")
@example(b"/./.")
def test_path_normalisation_is_idempotent_and_never_grows(path: bytes) -> None:
    once = normalise_path(path)
    assert normalise_path(once) == once
    assert len(once) <= len(path)


@given(TARGETS)
def test_query_normalisation_is_idempotent_and_never_grows(query: bytes) -> None:
    once = normalise_query(query)
    assert normalise_query(once) == once
    assert len(once) <= len(query)


@given(TARGETS)
def test_equals_the_documented_byte_by_byte_automaton(text: bytes) -> None:
    assert normalise_query(text) == decoded_bytewise(text)
    assert normalise_path(text) == collapsed_bytewise(decoded_bytewise(text))
