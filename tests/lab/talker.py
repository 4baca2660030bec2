"""A client that says exactly what it is told, segment by segment: a program that runs in a lab's namespace.

Standard input: a JSON object of `address`, `port`, `pause` (seconds between two chunks; 0: each client says
all it has before the next begins) and `clients`, a list of objects with the fields of `conversation.Client`,
of which bytes are Latin-1 strings. All connect before the first of them speaks. Standard output: a JSON list
with `answer`, what came until the end of the stream, `error`, the exception's name or "", and `port` of each.
"""

import json
import socket
import sys
import time
from typing import Any

PATIENCE_SECONDS = 40.0


class Talker:
    def __init__(self, said: dict[str, Any], server: tuple[str, int]) -> None:
        self.chunks = [chunk.encode("latin-1") for chunk in said["chunks"]]
        self.ending = said["ending"]
        self.error = ""
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, said["nodelay"])
        try:
            self.socket.connect(server)
        except OSError as error:
            self.error = type(error).__name__
        self.port = self.socket.getsockname()[1]

    def say(self, number: int) -> None:
        """The chunk of this number, and behind the last one the end of the stream where that is asked for."""
        if self.error or number >= len(self.chunks):
            return
        is_last = number == len(self.chunks) - 1
        flags = socket.MSG_MORE if is_last and self.ending == "in_last_segment" else 0
        try:
            view = memoryview(self.chunks[number])
            while view:
                view = view[self.socket.send(view, flags) :]
            if is_last and self.ending != "open":
                self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.error = type(error).__name__

    def listen(self) -> dict[str, str | int]:
        received = bytearray()
        try:
            while not self.error and (more := self.socket.recv(1 << 20)):
                received += more
        except OSError as error:
            self.error = type(error).__name__
        self.socket.close()
        return {"answer": received.decode("latin-1"), "error": self.error, "port": self.port}


def main() -> None:
    told = json.load(sys.stdin)
    talkers = [Talker(said, (told["address"], told["port"])) for said in told["clients"]]
    numbers = range(max(len(talker.chunks) for talker in talkers))
    if told["pause"]:
        for number in numbers:
            for talker in talkers:
                talker.say(number)
            time.sleep(told["pause"])
    else:
        for talker in talkers:
            for number in numbers:
                talker.say(number)
    json.dump([talker.listen() for talker in talkers], sys.stdout)


if __name__ == "__main__":
    main()
