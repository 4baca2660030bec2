"""Proxies on the VIP that choose the node by the URL: every byte passes them, in and out.

They are set up as one would run them: as many threads or workers as there are cores (their defaults),
connections to the nodes kept and shared, nothing logged, the client's address passed on in a header.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.contestants.contestant import PORT
from bench.errors import BenchError
from lab import Lab, Process

START_SECONDS = 5
POLL_SECONDS = 0.01

HAPROXY = """\
global
    maxconn 4000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option forwardfor
    {option}
frontend clients
    bind {vip}:{port}
    default_backend nodes
backend nodes
    balance uri
    hash-type consistent
    http-reuse always
{servers}
"""
HAPROXY_SERVER = "    server {node.name} {node.backend}:{port}"
SPLICE = "option splice-response"

# Buffered answers would otherwise go to disk where the client is slower than the node.
NGINX = """\
daemon off;
user root;
worker_processes auto;
pid {directory}/proxy.pid;
error_log stderr notice;
events {{
    worker_connections 20000;
}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    upstream nodes {{
        hash $request_uri consistent;
{servers}
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {vip}:{port} backlog=4096;
        location / {{
            proxy_pass http://nodes;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_buffers 16 32k;
            proxy_max_temp_file_size 0;
        }}
    }}
}}
"""
NGINX_SERVER = "        server {node.backend}:{port};"


@contextmanager
def haproxy(lab: Lab) -> Iterator[None]:
    with _haproxy(lab, option=""):
        yield


@contextmanager
def haproxy_splice(lab: Lab) -> Iterator[None]:
    """Bodies go from socket to socket through a pipe, without a copy to user space."""
    with _haproxy(lab, option=SPLICE):
        yield


@contextmanager
def nginx(lab: Lab) -> Iterator[None]:
    directory = _directory(lab, "nginx-proxy")
    configuration = directory / "proxy.conf"
    configuration.write_text(_filled(lab, NGINX, NGINX_SERVER, directory=str(directory)))
    with _running(lab, ["nginx", "-p", str(directory), "-c", str(configuration)], "nginx-proxy"):
        yield


@contextmanager
def _haproxy(lab: Lab, *, option: str) -> Iterator[None]:
    configuration = _directory(lab, "haproxy") / "haproxy.cfg"
    configuration.write_text(_filled(lab, HAPROXY, HAPROXY_SERVER, option=option))
    with _running(lab, ["haproxy", "-db", "-f", str(configuration)], "haproxy"):
        yield


def _directory(lab: Lab, name: str) -> Path:
    directory = lab.balancer.directory / name
    directory.mkdir(exist_ok=True)
    return directory


def _filled(lab: Lab, template: str, server: str, **values: str) -> str:
    servers = "\n".join(server.format(node=node, port=PORT) for node in lab.topology.nodes)
    return template.format(vip=lab.topology.service.vip, port=PORT, servers=servers, **values)


@contextmanager
def _running(lab: Lab, argv: Sequence[str], name: str) -> Iterator[None]:
    process = lab.balancer.start(argv, name=name)
    try:
        _wait_until_it_listens(lab, process)
        yield
    finally:
        process.stop()


def _wait_until_it_listens(lab: Lab, process: Process) -> None:
    listening = ["ss", "-Hltn", "src", f"{lab.topology.service.vip}:{PORT}"]
    deadline = time.monotonic() + START_SECONDS
    while not lab.balancer.run(listening).stdout:
        if not process.running or time.monotonic() > deadline:
            raise BenchError(f"nothing listens on the VIP:\n{process.read_log()}")
        time.sleep(POLL_SECONDS)
