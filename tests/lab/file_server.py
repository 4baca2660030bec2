"""A web server for one directory at one address: `file_server.py ADDRESS DIRECTORY`, port 80."""

import functools
import sys
from http.server import SimpleHTTPRequestHandler
from socketserver import ThreadingTCPServer

READY = "serving"


def main() -> None:
    address, directory = sys.argv[1:]
    answer = functools.partial(SimpleHTTPRequestHandler, directory=directory)
    with ThreadingTCPServer((address, 80), answer) as server:
        print(READY, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
