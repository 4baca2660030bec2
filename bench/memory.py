"""How much memory flows take in each daemon, and in the kernel's maps that it holds.

All flows are real connections that have been answered once and now stand idle. They ask for the same
path, so that one node has all of them. A process may have 20000 files open where nothing else is said, so
several clients and NGINX workers share them.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import origin
from bench.contestants import PORT, daemons
from bench.errors import BenchError
from bench.programs import script
from bench.readings import Observation
from lab import Lab, Process

FLOW_MEMORY = "resident memory of an idle flow"
PATH = "/idle"
OPEN_SECONDS = 240
FIRST_CONNECTIONS = 200
"""Opened before memory is counted: what the first flows of a daemon need is needed only once."""
CONNECTIONS_PER_PROCESS = 12_500
BYTES_PER_KIB = 1024
BYTES_PER_MIB = 1 << 20


def idle_memory(lab: Lab, engine: str, flows: int) -> list[Observation]:
    """Of the daemons that have `flows` connections, and that had served nothing before."""
    name = daemons.name(engine)
    workers = _processes_for(flows + FIRST_CONNECTIONS)
    with origin.serving(lab, workers=workers), daemons.running(lab, engine) as running:
        measured = {"balancer": running.balancer, "packetbridge": running.packetbridges[_serving_node(lab)]}
        with _idle(lab, FIRST_CONNECTIONS):
            before = {which: resident_bytes(daemon) for which, daemon in measured.items()}
            with _idle(lab, flows):
                after = {which: resident_bytes(daemon) for which, daemon in measured.items()}
                maps = {which: map_bytes(daemon) for which, daemon in measured.items()}
    observations = []
    for which in measured:
        growth = (after[which] - before[which]) / flows
        total = f"resident memory with {flows:,} idle flows, {which}"
        in_maps = f"memory of the kernel's maps with {flows:,} idle flows, {which}"
        observations += [
            Observation(name, f"{FLOW_MEMORY}, {which}", "bytes", 0, [growth]),
            Observation(name, total, "MiB", 1, [after[which] / BYTES_PER_MIB]),
            Observation(name, in_maps, "MiB", 1, [maps[which] / BYTES_PER_MIB]),
        ]
    return observations


def resident_bytes(process: Process) -> int:
    """As the kernel counts it now. BenchError where the process has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        status = ""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise BenchError(f"{' '.join(process.argv)} has ended:\n{process.read_log()}")
    return int(found[1]) * BYTES_PER_KIB


def map_bytes(process: Process) -> int:
    """Of the BPF maps that the process has open, each counted once."""
    sizes = {}
    for path in Path(f"/proc/{process.pid}/fdinfo").iterdir():
        try:
            fields = dict(re.findall(r"^(\w+):\s+(\S+)$", path.read_text(), re.MULTILINE))
        except FileNotFoundError:  # closed meanwhile
            continue
        if "map_id" in fields:
            sizes[fields["map_id"]] = int(fields["memlock"])
    return sum(sizes.values())


def _serving_node(lab: Lab) -> str:
    url = f"http://{lab.topology.service.vip}:{PORT}{PATH}"
    return lab.client.run(
        ["curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%header{x-node}", "--max-time", "10", url]
    ).stdout


@contextmanager
def _idle(lab: Lab, count: int) -> Iterator[None]:
    """All of them stand."""
    processes = _processes_for(count)
    shares = [(count + number) // processes for number in range(processes)]
    addresses = [str(address) for address in lab.topology.client.addresses]
    command = [
        sys.executable,
        "-I",
        str(script("idle_connections.py")),
        str(lab.topology.service.vip),
        str(PORT),
        PATH,
    ]
    holding = [
        lab.client.start([*command, str(share), *addresses], name="idle-connections") for share in shares
    ]
    try:
        for process, share in zip(holding, shares, strict=True):
            process.wait_for(f"open {share}\n", OPEN_SECONDS)
        yield
    finally:
        for process in holding:
            process.begin_stop()
        for process in holding:
            process.stop()


def _processes_for(connections: int) -> int:
    return -(-connections // CONNECTIONS_PER_PROCESS)
