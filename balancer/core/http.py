"""The HTTP answers that the balancer gives by itself (RFC 9110 section 15, RFC 9112).

They are small enough for one segment on any path (536 bytes of payload, RFC 9293 section 3.7.1), and equal
arguments give equal bytes, because an answer is built again for each retransmission. For both reasons
there is no Date: the core has no clock (RFC 9110 section 6.6.1). `no-store` is there because a 414 may
otherwise be cached, and what is too long for the balancer is not so for ever.
"""

from typing import Literal, TypeAlias

ErrorStatus: TypeAlias = Literal[400, 414, 503]

_RETRY_AFTER_SECONDS = 5

_REASON_PHRASES: dict[ErrorStatus, str] = {
    400: "Bad Request",
    414: "URI Too Long",
    503: "Service Unavailable",
}


def error_answer(status: ErrorStatus, *, to_head: bool = False) -> bytes:
    """A whole response, after which the connection closes.

    `to_head` leaves the body out, as the answer to a HEAD request must; Content-Length still says
    what a GET would get.
    """
    reason = f"{status} {_REASON_PHRASES[status]}"
    body = f"{reason}\n"
    lines = [
        f"HTTP/1.1 {reason}",
        "Content-Type: text/plain",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if status == 503:
        lines.append(f"Retry-After: {_RETRY_AFTER_SECONDS}")
    head = "".join(f"{line}\r\n" for line in lines)
    return f"{head}\r\n{'' if to_head else body}".encode("ascii")
