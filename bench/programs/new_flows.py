"""Run as a program on the lab's client: HOST PORT PER_SECOND SECONDS PATH...

Opens PER_SECOND connections for SECONDS, whether earlier ones are answered or not, and makes one request over
each, for the PATHs in turn. Prints as JSON a list of the seconds from the call of connect to the end of each
answer; null for one that did not come within ANSWER_SECONDS, or was an error.
"""

import asyncio
import json
import sys
from itertools import cycle

ANSWER_SECONDS = 4.0
"""Enough for a SYN that the kernel repeats after a second, and once more after two."""


async def visit(address: tuple[str, int], path: str) -> float | None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        answer = await asyncio.wait_for(_answer(address, path), ANSWER_SECONDS)
    except (OSError, EOFError, TimeoutError):
        return None
    return loop.time() - started if answer.startswith(b"HTTP/1.1 200 ") else None


async def _answer(address: tuple[str, int], path: str) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\n\r\n".encode())
        return await reader.read(-1)
    finally:
        writer.close()


async def main() -> None:
    host, port, per_second, seconds = sys.argv[1:5]
    paths = cycle(sys.argv[5:])
    loop = asyncio.get_running_loop()
    began = loop.time()
    visits = []
    for number in range(int(float(per_second) * float(seconds))):
        await asyncio.sleep(began + number / float(per_second) - loop.time())
        visits.append(asyncio.create_task(visit((host, int(port)), next(paths))))
    print(json.dumps([await each for each in visits]))


if __name__ == "__main__":
    asyncio.run(main())
