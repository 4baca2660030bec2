"""Request lines in the programs: wherever they settle one, they say what the Python plane says."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from enum import IntEnum

import pytest

from balancer.ebpf.abi import KeyKind
from common.bpf.run import PacketRun
from common.hashing.request_key import (
    DEFAULT_TARGET_LIMIT,
    KeySpec,
    NeedMore,
    NotHttp,
    RequestHead,
    TargetForm,
    parse_request_head_untrusted,
    request_key,
)
from common.hashing.xxh64 import xxh64
from tests.root.bpf.hashes import PATH_SERVICE, Given, Hashes, told

pytestmark = pytest.mark.root


class Verdict(IntEnum):
    """The enum request_verdict of bpf/include/request_line.h."""

    KEY = 0
    NEED_MORE = 1
    NOT_HTTP = 2
    ODD = 3


KINDS = {"path": KeyKind.PATH, "uri": KeyKind.URI, "segments": KeyKind.SEGMENTS}
PATH, URI = KeySpec("path"), KeySpec("uri")
SPECS = [PATH, URI, *(KeySpec("segments", count) for count in (1, 2, 3, 64))]

Answer = tuple[Verdict, int | None]
"""With the key's digest, if there is one."""


@pytest.fixture(scope="module")
def programs() -> Iterator[Hashes]:
    with Hashes() as programs:
        yield programs


def configure(programs: Hashes, spec: KeySpec, limit: int = DEFAULT_TARGET_LIMIT, seed: int = 0) -> None:
    service = PATH_SERVICE._replace(
        key_kind=KINDS[spec.kind], key_argument=spec.argument, target_limit=limit, hash_seed=seed
    )
    programs.give(Given(service=service))


def answer(programs: Hashes, data: bytes) -> Answer:
    return answer_of(programs.run("read_request", data))


def answer_to_long(programs: Hashes, data: bytes) -> Answer:
    programs.write_text(data)
    return answer_of(programs.run("read_long_request", cb=(len(data),)))


def answer_of(done: PacketRun) -> Answer:
    verdict = Verdict(done.verdict)
    return verdict, told(done) if verdict is Verdict.KEY else None


LEFT_TO_PYTHON = re.compile(rb"(?:\r?\n){0,8}(?:CONNECT |[^ ]+ [^/])")
"""Not even waited for: a CONNECT, and a target that does not begin with a slash."""


def python_answer(data: bytes, spec: KeySpec, limit: int = DEFAULT_TARGET_LIMIT, seed: int = 0) -> Answer:
    match parse_request_head_untrusted(data, limit):
        case NeedMore():
            return Verdict.ODD if LEFT_TO_PYTHON.match(data) else Verdict.NEED_MORE, None
        case NotHttp():
            return Verdict.NOT_HTTP, None
        case RequestHead(form=TargetForm.ORIGIN) as head:
            return Verdict.KEY, xxh64(request_key(head, spec), seed)
    return Verdict.ODD, None


PIECES = [
    *(
        b"/",
        b"/",
        b"/",
        b".",
        b"..",
        b"/./",
        b"//",
        b"%",
        b"%2",
        b"%2e",
        b"%2F",
        b"%34",
        b"%61",
        b"%41",
        b"%7e",
    ),
    *(b"%zz", b"%C3%a9", b"?", b"#", b"=", b"&", b"a", b"b.ts", b"live", b"\xc3\xa9", b"\x80", b"\xff", b"*"),
    *(b" ", b"\r\n", b"\n", b"\r", b"\t", b"\x00", b"\x7f", b"x" * 40, b"http://h", b"h:443", b"%%34%31"),
]
ORDINARY = 28
METHODS = [
    *[b"GET"] * 40,
    b"HEAD",
    b"POST",
    b"M-SEARCH",
    b"M" * 32,
    b"M" * 33,
    b"OPTIONS",
    b"CONNECT",
    b"PRI",
]
METHODS += [
    b"CONNECTX",
    b"XCONNECT",
    b"PRIX",
    b"XPRI",
    b"",
    b"(",
    b"G\x80T",
    b"A" * 9 + b"PRI",
    b"\x16\x03\x01",
]
BEGINNINGS = [
    *[b""] * 8,
    b"\r\n",
    b"\n",
    b"\r\n\n\r\n",
    b"\r",
    b"\n" * 8,
    b"\n" * 9,
    b"\r\n" * 8,
    b"\r\n" * 9,
]
BEGINNINGS += [b"\n" * 8 + b"\r", b"\r\r\n", b"\r\n" * 8 + b"\r"]
VERSIONS = [
    *[b" HTTP/1.1\r\nHost: h\r\n\r\n"] * 6,
    b" HTTP/1.0\r\n",
    b" HTTP/2.9x",
    b" HTTP/1.",
    b" HTTP/x.1",
]
VERSIONS += [b" HTP/1.1\r\n", b" HTTP/11", b"  HTTP/1.1", b"\r\n", b"", b" ", b" http/1.1\r\n", b" HTTP/1,1"]


def random_request(source: random.Random) -> bytes:
    pieces = PIECES[:ORDINARY] if source.random() < 0.8 else PIECES
    target = b"".join(source.choices(pieces, k=source.randrange(12)))
    if source.random() < 0.85:
        target = b"/" + target
    method, space = source.choice(METHODS), b" " if source.random() < 0.97 else source.choice([b"", b"\t"])
    line = source.choice(BEGINNINGS) + method + space + target + source.choice(VERSIONS)
    return line[: source.randrange(1, len(line))] if line and source.random() < 0.2 else line


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_random_request_lines_are_answered_as_by_the_python_plane(programs: Hashes, spec: KeySpec) -> None:
    source = random.Random(str(spec))
    settled: Counter[Verdict] = Counter()
    limit, seed = DEFAULT_TARGET_LIMIT, 0
    for number in range(17_000):
        if number % 1000 == 0:
            limit = source.choice([*[DEFAULT_TARGET_LIMIT] * 9, 4, 30, 100])
            seed = source.choice([0, source.getrandbits(64)])
            configure(programs, spec, limit, seed)
        data = random_request(source)
        found = answer(programs, data)
        assert found == python_answer(data, spec, limit, seed), data
        settled[found[0]] += 1
    assert min(settled[verdict] for verdict in Verdict) > 500
    assert settled[Verdict.KEY] > 2000


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\n\n\r\nGET /a?b=c HTTP/1.1\r\n\r\n",
        b"GET //live/%63h1/./seg%2f1.ts?t=%61%2f#x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"CONNECT h:443 HTTP/1.1\r\n\r\n",
        b"POST http://h:80/x/y?z HTTP/1.1\r\n\r\nbody",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n" * 9 + b"GET / HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/x.1\r\n\r\n",
    ],
    ids=lambda data: data[:16].decode(),
)
def test_cut_at_every_byte_the_answer_is_the_python_planes(
    programs: Hashes, spec: KeySpec, request_bytes: bytes
) -> None:
    configure(programs, spec)
    for cut in range(1, len(request_bytes) + 1):
        assert answer(programs, request_bytes[:cut]) == python_answer(request_bytes[:cut], spec)


@pytest.mark.parametrize(
    "line",
    [
        b"@GET /a HTTP/1.1",
        b"G@T /a HTTP/1.1",
        b"GET@/a HTTP/1.1",
        b"GET @a HTTP/1.1",
        b"GET /a@ HTTP/1.1",
        b"GET /a/@b/@ HTTP/1.1",
        b"GET /a%@1 HTTP/1.1",
        b"GET /a%6@ HTTP/1.1",
        b"GET /a?b@c HTTP/1.1",
        b"GET /a?%4@ HTTP/1.1",
        b"GET /a#b@c HTTP/1.1",
        b"GET /a@HTTP/1.1",
        b"GET /a H@TP/1.1",
        b"GET /a HTTP/@.1",
        b"GET /a HTTP/1.@",
    ],
    ids=bytes.decode,
)
def test_any_byte_at_any_place_is_taken_as_by_the_python_plane(programs: Hashes, line: bytes) -> None:
    configure(programs, URI)
    for byte in range(256):
        data = line.replace(b"@", bytes((byte,)))
        assert answer(programs, data) == python_answer(data, URI), data


def test_any_encoding_is_spelled_as_by_the_python_plane(programs: Hashes) -> None:
    configure(programs, URI)
    for byte in range(256):
        for form in (b"%%%02x", b"%%%02X"):
            data = b"GET /a/" + form % byte + b"/b?c" + form % byte + b" HTTP/1.1"
            assert answer(programs, data) == python_answer(data, URI), data


@pytest.mark.parametrize(
    ("target", "spec", "key"),
    [
        (b"/", PATH, b"/"),
        (b"/a/b.html?c", PATH, b"/a/b.html"),
        (b"/%61%2D%2e%5F%7e%5a%39", PATH, b"/a-._~Z9"),
        (b"/a%2fb%3f%c3%a9", PATH, b"/a%2Fb%3F%C3%A9"),
        (b"/%2541%%34%31%61", PATH, b"/%2541%%34%31%61"),
        (b"/./a/././b/.//./c/.", PATH, b"/a/b/c/"),
        (b"//a///b//%2e", PATH, b"/a/b/"),
        (b"/a/.b/c./../...", PATH, b"/a/.b/c./../..."),
        (b"/.?a/./b//c=%2f", URI, b"/?a/./b//c=%2F"),
        (b"/%zz%61?%61%zz%61#%61", URI, b"/%zz%61?a%zz%61"),
        (b"/a?", URI, b"/a?"),
        (b"/a#?", URI, b"/a"),
        (b"//live/./1.ts", KeySpec("segments", 1), b"/live"),
        (b"/live", KeySpec("segments", 1), b"/live"),
        (b"/live/", KeySpec("segments", 2), b"/live/"),
        (b"/a/b/c/d", KeySpec("segments", 3), b"/a/b/c"),
    ],
)
def test_key_is_the_normalised_part_that_the_spec_names(
    programs: Hashes, target: bytes, spec: KeySpec, key: bytes
) -> None:
    configure(programs, spec, seed=99)
    assert answer(programs, b"GET " + target + b" HTTP/1.1\r\n") == (Verdict.KEY, xxh64(key, 99))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("size", [500, 507, 508, 509, 1000, 1020, 1424, 3000])
def test_long_target_is_read_in_several_chunks(programs: Hashes, spec: KeySpec, size: int) -> None:
    source = random.Random(size)
    configure(programs, spec)
    for _ in range(50):
        target = b"/" + b"".join(source.choices(PIECES[:ORDINARY], k=size // 2))
        data = b"GET " + target[:size].ljust(size, b"x") + b" HTTP/1.1\r\n"
        assert answer(programs, data) == python_answer(data, spec)
        assert answer(programs, data[: size + 4]) == (Verdict.NEED_MORE, None)


def test_target_over_the_limit_is_left_to_python_at_its_first_byte_over(programs: Hashes) -> None:
    configure(programs, PATH, limit=4)
    assert answer(programs, b"GET /345") == (Verdict.NEED_MORE, None)
    assert answer(programs, b"GET /345 HTTP/1.1") == (Verdict.KEY, xxh64(b"/345"))
    assert answer(programs, b"GET /3456") == (Verdict.ODD, None)
    assert answer(programs, b"GET /3456 HTTP/1.1") == (Verdict.ODD, None)


@pytest.mark.parametrize("beginning", [b"GET ", b"\r\n" * 8 + b"M" * 32 + b" "], ids=["short", "long"])
@pytest.mark.parametrize("end", [b" HTTP/1.1", b" HTTP/1.1\r\n" + b"x" * 5000, b" HTTP/1", b""])
@pytest.mark.parametrize("size", [4096, 9215, 9216, 9217])
def test_target_of_9_kib_is_read_wherever_it_stands(
    programs: Hashes, beginning: bytes, end: bytes, size: int
) -> None:
    configure(programs, PATH)
    data = beginning + (b"/" + b"p//%41" * 2000)[:size] + end
    assert answer_to_long(programs, data) == python_answer(data, PATH)


def test_request_line_that_ends_behind_10_kib_is_left_to_python(programs: Hashes) -> None:
    configure(programs, PATH, limit=16000)
    line = b"GET /%s HTTP/1.1"
    fitting = line % (b"p" * (10240 - len(line) + 2))
    assert answer_to_long(programs, fitting) == python_answer(fitting, PATH, 16000)
    assert answer_to_long(programs, fitting + b"\r\n" * 50) == python_answer(fitting, PATH, 16000)
    assert answer_to_long(programs, fitting[:-1]) == (Verdict.NEED_MORE, None)
    assert answer_to_long(programs, fitting.replace(b"HTTP", b"pHTTP")) == (Verdict.ODD, None)
    assert answer_to_long(programs, b"GET /" + b"p" * 15000) == (Verdict.ODD, None)


@pytest.mark.parametrize("data", [b"GET /a HTTP/1.1\r\n", b"G", b"\x16\x03\x01"])
def test_key_of_a_kind_that_only_python_reads_is_left_to_it(programs: Hashes, data: bytes) -> None:
    programs.give(Given(service=PATH_SERVICE._replace(key_kind=KeyKind.UNREAD)))
    assert answer(programs, data) == (Verdict.ODD, None)
