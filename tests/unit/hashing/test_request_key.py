import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.hashing.request_key import (
    DEFAULT_KEY_SPEC,
    BadRequest,
    KeySpec,
    NeedMore,
    NotHttp,
    ParsedRequest,
    RequestHead,
    TargetForm,
    TooLong,
    parse_key_spec,
    parse_request_head_untrusted,
    request_key,
)

GET_A = RequestHead(b"GET", TargetForm.ORIGIN, b"/a", None)
VIDEO = b"GET //live/%63h1/./seg%2f1.ts?t=%61%2f#x HTTP/1.1\r\nHost: h\r\n\r\n"

REQUESTS = [
    b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /a HTTP/1.0\r\n\r\n",
    b"\r\n\n\r\nGET /a?b=c HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"CONNECT h:443 HTTP/1.1\r\n\r\n",
    b"POST http://h:80/x/y?z HTTP/1.1\r\n\r\nbody",
    b"GET /12345678901234567890123456789012 HTTP/1.1\r\n\r\n",
    b"GET nowhere HTTP/1.1\r\n\r\n",
    b"GET /a\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /a HTTP/x.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\r\n" * 9 + b"GET / HTTP/1.1\r\n\r\n",
    VIDEO,
]
FRAGMENTS = st.lists(
    st.sampled_from(
        [
            b"GET",
            b"OPTIONS",
            b"CONNECT",
            b"PRI",
            b" ",
            b"/",
            b"/a",
            b"*",
            b"h:1",
            b"http://h",
            b"?",
            b"#",
            b"%",
            b"HTTP/1.1",
            b"HTTP/",
            b"2.0",
            b"\r\n",
            b"\r",
            b"\n",
            b"\x00",
            b"\x7f",
            b"\xff",
            b"x" * 20,
        ],
    ),
    max_size=9,
).map(b"".join)
HOSTILE = st.one_of(st.binary(max_size=60), FRAGMENTS, st.sampled_from(REQUESTS))


def parse(data: bytes) -> ParsedRequest:
    return parse_request_head_untrusted(data, 8192)


def key_of(data: bytes, spec: str) -> bytes:
    head = parse(data)
    assert isinstance(head, RequestHead)
    return request_key(head, parse_key_spec(spec))


@pytest.mark.parametrize(
    ("data", "head"),
    [
        (b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", GET_A),
        (b"GET /a HTTP/1.0\r\n\r\n", GET_A),
        (b"GET /a HTTP/1.1", GET_A),
        (b"GET /a? HTTP/1.1", RequestHead(b"GET", TargetForm.ORIGIN, b"/a", b"")),
        (b"GET /a?b?c#d?e HTTP/1.1", RequestHead(b"GET", TargetForm.ORIGIN, b"/a", b"b?c")),
        (b"GET /a#b?c HTTP/1.1", GET_A),
        (b"M-SEARCH //h/ HTTP/1.1", RequestHead(b"M-SEARCH", TargetForm.ORIGIN, b"//h/", None)),
        (b'GET /\xc3\xa9"|%zz HTTP/1.1', RequestHead(b"GET", TargetForm.ORIGIN, b'/\xc3\xa9"|%zz', None)),
        (b"GET http://h/a?b HTTP/1.1", RequestHead(b"GET", TargetForm.ABSOLUTE, b"/a", b"b")),
        (b"GET HTTPS://u@[::1]:1 HTTP/1.1", RequestHead(b"GET", TargetForm.ABSOLUTE, b"/", None)),
        (b"GET http://h?b HTTP/1.1", RequestHead(b"GET", TargetForm.ABSOLUTE, b"/", b"b")),
        (b"OPTIONS * HTTP/1.1", RequestHead(b"OPTIONS", TargetForm.ASTERISK, b"", None)),
        (b"CONNECT h:443 HTTP/1.1", RequestHead(b"CONNECT", TargetForm.AUTHORITY, b"", None)),
    ],
)
def test_request_line_is_read(data: bytes, head: RequestHead) -> None:
    assert parse(data) == head


@pytest.mark.parametrize("empty_lines", [b"\r\n", b"\n", b"\r\n\n\r\n", b"\r\n" * 8])
def test_leading_empty_lines_are_skipped(empty_lines: bytes) -> None:
    assert parse(empty_lines + b"GET /a HTTP/1.1\r\n") == GET_A


@pytest.mark.parametrize("data", [b"\r\n" * 9, b"\n" * 9, b"\rG", b"\r\r\n"])
def test_endless_empty_lines_and_bare_cr_are_not_http(data: bytes) -> None:
    assert parse(data) == NotHttp()


@pytest.mark.parametrize(
    "data", [b"\x16", b"\x00", b"\x80", b"{", b" ", b"(", b"\r\n\x16", b"SSH\x00", b"a:", b"GET\t"]
)
def test_what_cannot_be_http_is_known_at_its_first_wrong_byte(data: bytes) -> None:
    assert parse(data) == NotHttp()
    assert parse(data[:-1]) == NeedMore()


def test_http2_with_prior_knowledge_is_declared_not_http1() -> None:
    assert parse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == NotHttp()
    assert parse(b"PRI ") == NotHttp()
    assert parse(b"PRIX /a HTTP/1.1") == RequestHead(b"PRIX", TargetForm.ORIGIN, b"/a", None)


@pytest.mark.parametrize(
    ("data", "method"),
    [
        (b"GET\r\n", b""),
        (b"GET\n", b""),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b""),
        (b"M" * 33, b""),
        (b"HEAD /a\r\n", b"HEAD"),
        (b"HEAD /a\n", b"HEAD"),
        (b"HEAD /a\tb", b"HEAD"),
        (b"HEAD /a\x00", b"HEAD"),
        (b"HEAD /a\x7f", b"HEAD"),
        (b"HEAD  /a HTTP/1.1", b"HEAD"),
        (b"HEAD /a b", b"HEAD"),
        (b"HEAD /a  ", b"HEAD"),
        (b"HEAD /a HTTP/1x", b"HEAD"),
        (b"HEAD /a http", b"HEAD"),
        (b"HEAD a HTTP/1.1", b"HEAD"),
        (b"HEAD ?a HTTP/1.1", b"HEAD"),
        (b"HEAD * HTTP/1.1", b"HEAD"),
        (b"HEAD h:443 HTTP/1.1", b"HEAD"),
        (b"HEAD http:///a HTTP/1.1", b"HEAD"),
        (b"HEAD http:/a HTTP/1.1", b"HEAD"),
        (b"HEAD 1http://h HTTP/1.1", b"HEAD"),
        (b"CONNECT /a HTTP/1.1", b"CONNECT"),
        (b"CONNECT h HTTP/1.1", b"CONNECT"),
        (b"INVITE sip:b@h SIP/2.0", b"INVITE"),
        (b"DESCRIBE rtsp://h/a RTSP/1.0", b"DESCRIBE"),
    ],
)
def test_malformed_request_line_is_a_bad_request_of_the_method_if_known(data: bytes, method: bytes) -> None:
    assert parse(data) == BadRequest(method)


def test_method_of_32_bytes_is_the_longest() -> None:
    assert parse(b"M" * 32 + b" /a HTTP/1.1") == RequestHead(b"M" * 32, TargetForm.ORIGIN, b"/a", None)


def test_target_over_the_limit_is_too_long_at_its_first_byte_over() -> None:
    assert parse_request_head_untrusted(b"GET /345", 4) == NeedMore()
    assert parse_request_head_untrusted(b"GET /345 HTTP/1.1", 4) == RequestHead(
        b"GET", TargetForm.ORIGIN, b"/345", None
    )
    assert parse_request_head_untrusted(b"GET /3456", 4) == TooLong(b"GET")
    assert parse_request_head_untrusted(b"GET /3456 HTTP/1.1\r\n", 4) == TooLong(b"GET")
    assert parse_request_head_untrusted(b"GET /345\x00", 4) == BadRequest(b"GET")


def test_default_limit_takes_a_path_of_8_kib_behind_scheme_and_host() -> None:
    path = b"/" + b"p" * 8191
    assert parse_request_head_untrusted(b"GET http://video.example" + path + b" HTTP/1.1\r\n") == RequestHead(
        b"GET", TargetForm.ABSOLUTE, path, None
    )
    assert parse_request_head_untrusted(b"GET /" + b"p" * 9216) == TooLong(b"GET")


@pytest.mark.parametrize("request_bytes", REQUESTS)
def test_cut_at_every_byte_it_needs_more_or_has_its_final_answer(request_bytes: bytes) -> None:
    whole = parse_request_head_untrusted(request_bytes, 30)
    answers = [parse_request_head_untrusted(request_bytes[:cut], 30) for cut in range(len(request_bytes))]
    settled = next((cut for cut, answer in enumerate(answers) if answer != NeedMore()), len(answers))
    assert settled > 0
    assert answers[:settled] == [NeedMore()] * settled
    assert answers[settled:] == [whole] * (len(answers) - settled)
    assert whole != NeedMore()


@given(HOSTILE, st.integers(1, 40))
@example(b"GET / H\n", 8)
def test_hostile_bytes_never_raise_and_an_answer_stays_final(data: bytes, limit: int) -> None:
    final: ParsedRequest = NeedMore()
    for cut in range(len(data) + 1):
        answer = parse_request_head_untrusted(data[:cut], limit)
        assert final in (NeedMore(), answer)
        final = answer


@given(HOSTILE, st.sampled_from(["path", "uri", "segments:1", "segments:3"]))
@example(VIDEO, "uri")
def test_keys_of_hostile_requests_never_exceed_them(data: bytes, spec: str) -> None:
    head = parse(data)
    if isinstance(head, RequestHead):
        key = request_key(head, parse_key_spec(spec))
        assert 1 <= len(key) <= len(data)
        assert key.startswith(b"/") or head.form in (TargetForm.ASTERISK, TargetForm.AUTHORITY)


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ("path", b"/live/ch1/seg%2F1.ts"),
        ("uri", b"/live/ch1/seg%2F1.ts?t=a%2F"),
        ("segments:1", b"/live"),
        ("segments:2", b"/live/ch1"),
        ("segments:3", b"/live/ch1/seg%2F1.ts"),
        ("segments:64", b"/live/ch1/seg%2F1.ts"),
    ],
)
def test_key_is_the_normalised_part_that_the_spec_names(spec: str, key: bytes) -> None:
    assert key_of(VIDEO, spec) == key


@pytest.mark.parametrize(
    "target", [b"/live", b"/live/", b"/live/1.ts", b"/live/a/2.ts?x", b"http://h//live/./3.ts"]
)
def test_all_segments_of_a_stream_have_one_key(target: bytes) -> None:
    assert key_of(b"GET " + target + b" HTTP/1.1\r\n", "segments:1") == b"/live"


@pytest.mark.parametrize("spec", ["path", "uri", "segments:1"])
def test_root_has_the_key_slash(spec: str) -> None:
    assert key_of(b"GET / HTTP/1.1\r\n", spec) == b"/"


def test_empty_query_is_another_uri_but_the_same_path() -> None:
    assert key_of(b"GET /a? HTTP/1.1\r\n", "uri") == b"/a?"
    assert key_of(b"GET /a? HTTP/1.1\r\n", "path") == b"/a"


def test_absolute_form_hashes_like_its_path() -> None:
    assert key_of(b"GET http://h:80/a/%62?c HTTP/1.1\r\n", "path") == b"/a/b"
    assert key_of(b"GET http://h:80?c HTTP/1.1\r\n", "uri") == b"/?c"


@pytest.mark.parametrize("spec", ["path", "uri", "segments:1"])
def test_asterisk_and_connect_have_constant_keys(spec: str) -> None:
    assert key_of(b"OPTIONS * HTTP/1.1\r\n", spec) == b"*"
    assert (
        key_of(b"CONNECT a:1 HTTP/1.1\r\n", spec) == key_of(b"CONNECT b:2 HTTP/1.1\r\n", spec) == b"CONNECT"
    )


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("path", KeySpec("path")),
        ("uri", KeySpec("uri")),
        ("segments:1", KeySpec("segments", 1)),
        ("segments:64", KeySpec("segments", 64)),
    ],
)
def test_key_spec_is_read_and_spelled_alike(text: str, spec: KeySpec) -> None:
    assert parse_key_spec(text) == spec
    assert str(spec) == text


def test_default_key_is_the_path() -> None:
    assert parse_key_spec("path") == DEFAULT_KEY_SPEC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Path",
        "path:",
        "path:1",
        "uri:x",
        "segments",
        "segments:",
        "segments:0",
        "segments:65",
        "segments:-1",
        "segments:1 ",
        "segments:1.5",
        "segments:\u0663",
        "segments:1:2",
        "segments:" + "1" * 5000,
        "host",
        ":",
    ],
)
def test_refused_key_spec_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="is none of: path, uri, segments:N") as refused:
        parse_key_spec(text)
    assert str(refused.value).startswith(f"hash key {text!r} ")
    assert str(refused.value).endswith("path, uri, segments:N (N from 1 to 64)")
