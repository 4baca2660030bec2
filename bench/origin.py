"""The nodes' NGINX while it is measured: any number of URLs for a file, and nothing logged.

It stands in place of the lab's own, and listens on every address of its node, so that each contestant
reaches the same server whatever address its packets end up at.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from bench.contestants import PORT
from bench.errors import BenchError
from lab import Lab

FILES = ("1k", "64k", "100m")
URLS_PER_FILE = 64

CONFIGURATION = """\
daemon off;
user root;
worker_processes {workers};
worker_rlimit_nofile 19000;
pid {directory}/origin.pid;
error_log stderr notice;
events {{
    worker_connections {worker_connections};
}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    server {{
        listen {port} backlog={backlog} {reuseport};
        add_header X-Node {node} always;
        root {content};
{locations}
        location / {{
            return 200 "any\\n";
        }}
    }}
}}
"""
LOCATION = "        location /{file}/ {{ try_files /{file} =404; }}"
BACKLOG = 4096
WORKER_CONNECTIONS = 18_000
"""NGINX closes idle connections once it is near its limit."""


def urls(file: str) -> list[str]:
    """Paths that all name the content of `file`, and that a hash spreads over the nodes."""
    if file not in FILES:
        raise BenchError(f"no such file: {file}")
    return [f"/{file}/{number}" for number in range(URLS_PER_FILE)]


@contextmanager
def serving(lab: Lab, *, workers: int = 1) -> Iterator[None]:
    """`workers` of each node share one port, and the kernel spreads connections over them."""
    for node in lab.topology.nodes:
        nginx = lab.nginx[node.name]
        nginx.stop()
        configuration = nginx.directory / "origin.conf"
        configuration.write_text(
            CONFIGURATION.format(
                workers=workers,
                worker_connections=WORKER_CONNECTIONS,
                directory=nginx.directory,
                port=PORT,
                backlog=BACKLOG,
                reuseport="reuseport" if workers > 1 else "",
                node=node.name,
                content=lab.content.directory,
                locations="\n".join(LOCATION.format(file=file) for file in FILES),
            )
        )
    started = [
        lab.hosts[name].start(
            ["nginx", "-p", str(nginx.directory), "-c", str(nginx.directory / "origin.conf")], name="origin"
        )
        for name, nginx in lab.nginx.items()
    ]
    try:
        for process in started:
            process.wait_for("start worker process ")
        yield
    finally:
        for process in started:
            process.stop()
