import http.client
import io
import socket
from typing import BinaryIO, Literal, cast

import pytest

from balancer.core.http import ErrorStatus, error_answer


class ReceivedBytes:
    """As much of a socket as http.client reads an answer from."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, _mode: Literal["rb"]) -> BinaryIO:
        return io.BytesIO(self.data)


def as_client_reads(answer: bytes, method: str) -> tuple[http.client.HTTPResponse, bytes]:
    response = http.client.HTTPResponse(cast(socket.socket, ReceivedBytes(answer)), method=method)
    response.begin()
    return response, response.read()


ANSWERS: list[tuple[ErrorStatus, bytes, bytes]] = [
    (
        400,
        (
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n"
            b"Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        ),
        b"400 Bad Request\n",
    ),
    (
        414,
        (
            b"HTTP/1.1 414 URI Too Long\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n"
            b"Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        ),
        b"414 URI Too Long\n",
    ),
    (
        503,
        (
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 24\r\n"
            b"Cache-Control: no-store\r\nConnection: close\r\nRetry-After: 5\r\n\r\n"
        ),
        b"503 Service Unavailable\n",
    ),
]


@pytest.mark.parametrize(("status", "head", "body"), ANSWERS)
def test_answer_is_a_whole_response_in_one_small_segment(
    status: ErrorStatus, head: bytes, body: bytes
) -> None:
    assert error_answer(status) == head + body
    assert len(error_answer(status)) <= 536


@pytest.mark.parametrize(("status", "head", "body"), ANSWERS)
def test_answer_to_head_has_the_same_head_and_no_body(status: ErrorStatus, head: bytes, body: bytes) -> None:
    assert error_answer(status, to_head=True) == head
    response, read = as_client_reads(error_answer(status, to_head=True), "HEAD")
    assert (response.status, read) == (status, b"")
    assert response.getheader("Content-Length") == str(len(body))


@pytest.mark.parametrize(("status", "head", "body"), ANSWERS)
def test_http_client_reads_status_body_and_close(status: ErrorStatus, head: bytes, body: bytes) -> None:
    response, read = as_client_reads(error_answer(status), "GET")
    assert f"HTTP/1.1 {response.status} {response.reason}".encode() == head.partition(b"\r\n")[0]
    assert read == body
    assert response.will_close
