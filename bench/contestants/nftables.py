"""L3DSR as it is done without reading the URL: the balancer writes node and DSCP into each packet, by a hash
of the client's address and port; the node's table writes the VIP back. Neither keeps a state.

The VIP stands on the nodes' loopback interface, and replies go out from there.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.contestants.contestant import PORT
from lab import Host, Lab

TABLE = "bench"
ON_BALANCER = """\
table ip {table} {{
    chain to_nodes {{
        type filter hook prerouting priority raw;
        ip daddr {vip} tcp dport {port} ip dscp set {dscp} \
ip daddr set jhash ip saddr . tcp sport mod {count} map {{ {nodes} }}
    }}
}}
"""
ON_NODE = """\
table ip {table} {{
    chain from_balancer {{
        type filter hook prerouting priority raw;
        ip daddr {bridge} ip dscp {dscp} ip dscp set 0 ip daddr set {vip}
    }}
}}
"""


@contextmanager
def l3dsr(lab: Lab) -> Iterator[None]:
    service = lab.topology.service
    vip = f"{service.vip}/32"
    nodes = ", ".join(f"{number} : {node.bridge}" for number, node in enumerate(lab.topology.nodes))
    with ExitStack() as undo:
        for node in lab.topology.nodes:
            host = lab.hosts[node.name]
            host.run(["ip", "address", "add", vip, "dev", "lo"])
            undo.callback(host.run, ["ip", "address", "delete", vip, "dev", "lo"])
            rules = ON_NODE.format(table=TABLE, bridge=node.bridge, dscp=service.dscp, vip=service.vip)
            _load(host, rules, undo)
        _forward(lab.balancer, undo)
        rules = ON_BALANCER.format(
            table=TABLE,
            vip=service.vip,
            port=PORT,
            dscp=service.dscp,
            count=len(lab.topology.nodes),
            nodes=nodes,
        )
        _load(lab.balancer, rules, undo)
        yield


def _load(host: Host, rules: str, undo: ExitStack) -> None:
    host.run(["nft", "-f", "-"], input=rules)
    undo.callback(host.run, ["nft", "delete", "table", "ip", TABLE])


def _forward(host: Host, undo: ExitStack) -> None:
    """Without redirects: what goes out where it came in is on purpose."""
    host.sysctl("net.ipv4.ip_forward", 1)
    undo.callback(host.sysctl, "net.ipv4.ip_forward", 0)
    for scope in ("all", "eth0"):
        host.sysctl(f"net.ipv4.conf.{scope}.send_redirects", 0)
