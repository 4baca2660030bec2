"""The testbed: a client, a router, a balancer and three nodes with real NGINX, in network namespaces.

    with Lab() as lab:
        lab.client.run(["curl", "-sS", "http://192.168.33.30/64k", "-o", "/dev/null"])

`python -m lab up` makes one that stands until `python -m lab down`.
"""

from lab.disorder import Faults
from lab.errors import LabError
from lab.host import Host, Traffic
from lab.impairment import FROM_NODE, FROM_VIP, NODES, TO_CLIENT, TO_NODE, TO_VIP, Direction, Impairment
from lab.nginx import Nginx
from lab.process import Process
from lab.testbed import Lab, daemon_program
from lab.topology import Topology, load

__all__ = [
    "FROM_NODE",
    "FROM_VIP",
    "NODES",
    "TO_CLIENT",
    "TO_NODE",
    "TO_VIP",
    "Direction",
    "Faults",
    "Host",
    "Impairment",
    "Lab",
    "LabError",
    "Nginx",
    "Process",
    "Topology",
    "Traffic",
    "daemon_program",
    "load",
]
