"""Run as a program on the lab's client: HOST PORT CONNECTIONS DOWNLOADS PATH DOWNLOAD_PATH.

Opens CONNECTIONS that ask for PATH again and again, with a pause, and DOWNLOADS that read the content of
DOWNLOAD_PATH slowly, and prints `standing` when all have got something. None is ever opened again. At
SIGTERM, which is to come before the content's end, it prints as JSON how many `requests` were answered, how
many `bytes` were downloaded, and as a list by what those ended that are `broken`: an error, or nothing for
STALL_SECONDS.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial

STALL_SECONDS = 10.0
PAUSE_SECONDS = 0.1
READ_BYTES = 1 << 16
DOWNLOAD_BYTES_PER_SECOND = 1 << 20


@dataclass
class Account:
    requests: int = 0
    bytes: int = 0
    broken: list[str] = field(default_factory=list)


Connection = Callable[[asyncio.Event], Coroutine[None, None, None]]
"""Given what it sets once it has got something; it goes on until it breaks."""


async def ask_again_and_again(
    address: tuple[str, int], path: str, account: Account, standing: asyncio.Event
) -> None:
    reader, writer = await asyncio.open_connection(*address)
    while True:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address[0]}\r\n\r\n".encode())
        await asyncio.wait_for(_answer(reader), STALL_SECONDS)
        account.requests += 1
        standing.set()
        await asyncio.sleep(PAUSE_SECONDS)


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(f"answered {head[:40]!r}")
    length = next(
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    await reader.readexactly(length)


async def download(address: tuple[str, int], path: str, account: Account, standing: asyncio.Event) -> None:
    reader, writer = await asyncio.open_connection(*address, limit=READ_BYTES)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address[0]}\r\n\r\n".encode())
    while True:
        received = await asyncio.wait_for(reader.read(READ_BYTES), STALL_SECONDS)
        if not received:
            raise ConnectionError("ended early")
        account.bytes += len(received)
        standing.set()
        await asyncio.sleep(len(received) / DOWNLOAD_BYTES_PER_SECOND)


async def watched(connection: Connection, account: Account, standing: asyncio.Event) -> None:
    try:
        await connection(standing)
    except (OSError, EOFError, TimeoutError) as error:
        account.broken.append(f"{type(error).__name__} {error}".strip())
        standing.set()


async def main() -> None:
    host, port, connections, downloads, path, download_path = sys.argv[1:]
    address = (host, int(port))
    account = Account()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    wanted: list[Connection] = [
        *[partial(ask_again_and_again, address, path, account)] * int(connections),
        *[partial(download, address, download_path, account)] * int(downloads),
    ]
    standing = [asyncio.Event() for _ in wanted]
    running = [
        asyncio.create_task(watched(each, account, stands))
        for each, stands in zip(wanted, standing, strict=True)
    ]
    await asyncio.gather(*(stands.wait() for stands in standing))
    print("standing", flush=True)
    await ended.wait()
    for task in running:
        task.cancel()
    print(json.dumps({"requests": account.requests, "bytes": account.bytes, "broken": account.broken}))


if __name__ == "__main__":
    asyncio.run(main())
