"""A node's NGINX: the distribution's own, with a configuration and directories of its own.

It listens on both backend addresses at port 80, and on the first at `OTHER_PORT`, too.
What it answers (each answer has X-Node, X-Client and X-Backend, the address it was asked at):

    /1k /4k /64k /1m /100m        the files of lab.content
    /echo                         the request's body
    /slow/answer/<seconds>        a small text, after so many seconds
    /slow/file/<bytes/s>/<file>   a file, at about that rate
    anything else                 a small text that names node and URI
"""

import subprocess
from pathlib import Path

from lab.content import FILES, Content
from lab.errors import LabError
from lab.host import Host
from lab.process import Process
from lab.topology import Node

DEFAULT_BACKLOG = 511
OTHER_PORT = 8080
ECHO_MODULE = "ngx_http_echo_module.so"

CONFIGURATION = """\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {directory}/nginx.pid;
error_log stderr notice;
load_module {modules}/{echo_module};

events {{
    worker_connections 32768;
}}

http {{
    log_format lab '$remote_addr $remote_port $server_addr $status $body_bytes_sent "$request" '
                   '"$http_x_request_id"';
    access_log {directory}/access.log lab;

    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;

    sendfile on;
    tcp_nopush on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    large_client_header_buffers 8 64k;
    types_hash_max_size 2048;
    default_type application/octet-stream;

    server {{
        listen {node.backend}:80 backlog={backlog};
        listen {node.second_backend}:80 backlog={backlog};
        listen {node.backend}:{other_port} backlog={backlog};
        server_name {node.name};

        add_header X-Node {node.name} always;
        add_header X-Client $remote_addr always;
        add_header X-Backend $server_addr always;

        location / {{
            default_type text/plain;
            return 200 "{node.name} $request_uri\\n";
        }}
        location ~ ^/({files})$ {{
            root {content};
        }}
        location = /echo {{
            echo_read_request_body;
            echo_request_body;
        }}
        location ~ ^/slow/answer/(?<seconds>[0-9.]+)$ {{
            default_type text/plain;
            echo_sleep $seconds;
            echo "{node.name} $request_uri";
        }}
        location ~ ^/slow/file/(?<rate>[0-9]+)/(?<file>{files})$ {{
            limit_rate $rate;
            alias {content}/$file;
        }}
    }}
}}
"""


class Nginx:
    """`directory` is made by the first start."""

    def __init__(self, host: Host, node: Node, content: Content) -> None:
        self.host = host
        self.node = node
        self.content = content
        self.directory = host.directory / "nginx"
        self._process: Process | None = None

    @property
    def access_log(self) -> Path:
        """One line a request: client address, port, address asked at, status, body bytes, "request line",
        "X-Request-Id".
        """
        return self.directory / "access.log"

    @property
    def process(self) -> Process:
        """The master. Raises LabError where it was not started."""
        if self._process is None:
            raise LabError(f"{self.node.name}: NGINX was not started")
        return self._process

    def begin_start(self, *, backlog: int = DEFAULT_BACKLOG) -> None:
        """`backlog` is the accept queue's length (of each listening socket)."""
        self.directory.mkdir(exist_ok=True)
        configuration = self.directory / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                directory=self.directory,
                modules=_modules_directory(),
                echo_module=ECHO_MODULE,
                node=self.node,
                other_port=OTHER_PORT,
                backlog=backlog,
                content=self.content.directory,
                files="|".join(FILES),
            )
        )
        self._process = self.host.start(
            ["nginx", "-p", str(self.directory), "-c", str(configuration)], name="nginx"
        )

    def wait_started(self) -> None:
        """Raises LabError showing NGINX's log where it does not come up."""
        self.process.wait_for("start worker process ")

    def start(self, *, backlog: int = DEFAULT_BACKLOG) -> None:
        self.begin_start(backlog=backlog)
        self.wait_started()

    def stop(self) -> None:
        """Its port is closed then: connections are reset, new ones refused."""
        self.process.stop()


def _modules_directory() -> str:
    shown = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=True).stderr
    for argument in shown.split():
        option, _, value = argument.partition("=")
        if option == "--modules-path":
            return value
    raise LabError("nginx -V names no --modules-path")
