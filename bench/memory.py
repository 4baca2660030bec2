"""How much memory idle flows take in each daemon.

All flows are real connections that have been answered once and now stand idle. They ask for the same
path, so that one node has all of them; its NGINX makes room for another that allows so many. A process may
have 20000 files open where nothing else is said, so several clients and NGINX workers share them.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.contestants import Contestant
from bench.errors import BenchError
from bench.measurement import Measure, Observation, Quantity, Threshold
from bench.workloads import program
from lab import Host, Lab, Process

LIMIT_MIB = 50.0
LIMIT_FLOWS = 50_000
PATH = "/idle"
OPEN_SECONDS = 120
FIRST_CONNECTIONS = 200
"""Opened before memory is counted: what the first flows of a daemon need is needed only once."""
CONNECTIONS_PER_PROCESS = 12_500
WORKER_CONNECTIONS = 18_000
"""NGINX closes idle connections once it is near its limit, and reuseport shares them out by a hash."""
KIB_PER_MIB = 1024

NGINX_CONFIGURATION = """\
daemon off;
user root;
worker_processes {workers};
worker_rlimit_nofile 19000;
pid {directory}/idle.pid;
error_log stderr notice;
events {{
    worker_connections {worker_connections};
}}
http {{
    access_log off;
    keepalive_timeout 1h;
    server {{
        listen {address}:{port} reuseport;
        location / {{
            return 200 "idle\\n";
        }}
    }}
}}
"""


def idle_memory(
    lab: Lab, contestant: Contestant, balancer: Process, packetbridges: Mapping[str, Process], flows: int
) -> list[Observation]:
    """By how much each daemon's resident memory has grown; `packetbridges` by their node's name."""
    node_name = _serving_node(lab, contestant)
    _make_room(lab, node_name, flows)
    daemons = {"balancer": balancer, "packetbridge": packetbridges[node_name]}
    holding = _open_idle(lab, contestant, FIRST_CONNECTIONS)
    before = {name: resident_mib(daemon) for name, daemon in daemons.items()}
    holding += _open_idle(lab, contestant, flows)
    grown = {name: resident_mib(daemon) - before[name] for name, daemon in daemons.items()}
    for process in holding:
        process.stop()
    threshold = Threshold(Measure.VALUE, LIMIT_MIB * flows / LIMIT_FLOWS, at_most=True)
    return [
        Observation(Quantity(f"memory of {flows:,} idle flows, {name}", "MiB", 1, threshold), [growth])
        for name, growth in grown.items()
    ]


def resident_mib(process: Process) -> float:
    """As the kernel counts it now. BenchError where the process has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        status = ""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise BenchError(f"{' '.join(process.argv)} has ended:\n{process.read_log()}")
    return int(found[1]) / KIB_PER_MIB


def _serving_node(lab: Lab, contestant: Contestant) -> str:
    argv = ["curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%header{x-node}", contestant.url(PATH)]
    return lab.client.run(argv).stdout


def _make_room(lab: Lab, node_name: str, flows: int) -> None:
    nginx = lab.nginx[node_name]
    nginx.stop()
    address = lab.topology.node(node_name).backend
    configuration = nginx.directory / "idle.conf"
    configuration.write_text(
        NGINX_CONFIGURATION.format(
            workers=_processes_for(flows + FIRST_CONNECTIONS),
            worker_connections=WORKER_CONNECTIONS,
            directory=nginx.directory,
            address=address,
            port=lab.topology.service.port,
        )
    )
    host: Host = lab.hosts[node_name]
    roomy = host.start(["nginx", "-p", str(nginx.directory), "-c", str(configuration)], name="idle-nginx")
    roomy.wait_for("start worker process ")


def _open_idle(lab: Lab, contestant: Contestant, count: int) -> list[Process]:
    """The programs that hold the connections open, once all of them stand."""
    processes = _processes_for(count)
    shares = [(count + number) // processes for number in range(processes)]
    addresses = [str(address) for address in lab.topology.client.addresses]
    command = [
        sys.executable,
        str(program("idle_connections.py")),
        contestant.host,
        str(contestant.port),
        PATH,
    ]
    holding = [
        (lab.client.start([*command, str(share), *addresses], name="idle-connections"), share)
        for share in shares
    ]
    for process, share in holding:
        process.wait_for(f"open {share}\n", OPEN_SECONDS)
    return [process for process, _ in holding]


def _processes_for(connections: int) -> int:
    return -(-connections // CONNECTIONS_PER_PROCESS)
