"""For tests whose clients block: servers in a trio loop in a thread, and damaged requests."""

import random
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import trio


@contextmanager
def serving(serve: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """``serve`` runs meanwhile, and is cancelled at the end. What it raises is printed by the thread."""
    started = threading.Event()
    loops: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def run() -> None:
        with trio.CancelScope() as scope:
            loops.append((trio.lowlevel.current_trio_token(), scope))
            started.set()
            await serve()

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    assert started.wait(60)
    token, scope = loops[0]
    try:
        yield
    finally:
        trio.from_thread.run_sync(scope.cancel, trio_token=token)
        thread.join(60)
        assert not thread.is_alive()


def damaged(seeds: Sequence[bytes], seed: int) -> bytes:
    """One of ``seeds``, perhaps twice, with some bytes changed, lost or added."""
    chance = random.Random(seed)
    data = bytearray(chance.choice(seeds) * chance.choice((1, 1, 2)))
    for _ in range(chance.randrange(6)):
        at = chance.randrange(len(data) + 1)
        lost = chance.choice((0, 1, chance.randrange(9)))
        data[at : at + lost] = chance.randbytes(chance.choice((0, 1, chance.randrange(9))))
    return bytes(data)


def said_to(connection: socket.socket, data: bytes) -> bytes:
    """What the server answers until it closes the connection."""
    answer = b""
    try:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            answer += piece
    except ConnectionError:
        pass
    return answer
