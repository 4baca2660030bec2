"""Reports as a balancer and a packetbridge give them."""

from common.reports import (
    BalancerReport,
    FlowReport,
    FlowSide,
    NodeReport,
    PacketbridgeReport,
    ServiceReport,
    VipReport,
)

UP = NodeReport(
    name="node1",
    address="192.168.33.20",
    state="up",
    reason="",
    weight=10,
    effective_weight=10.0,
    share=0.75,
    flows=1234,
    bytes_to_clients=5 << 30,
    handoffs=98765,
    handoffs_per_second=12.34,
    channel="ok",
    version="0.2.0",
    checked=0.7,
)
DOWN = NodeReport(
    name="node2",
    address="192.168.33.21",
    state="down",
    reason="backend refused: nothing listens at 192.168.33.31:80",
    weight=10,
    effective_weight=0.0,
    share=0.0,
    flows=None,
    bytes_to_clients=None,
    handoffs=3,
    handoffs_per_second=0.0,
    channel="silent",
    version="",
    checked=None,
)
BALANCER = BalancerReport(
    version="0.2.0",
    engine="ebpf",
    uptime=3 * 3600 + 720,
    generation=2,
    services=[ServiceReport("www", "192.168.33.10:80", 7, "path", 1.5, [UP, DOWN])],
    counters={"handoffs": 98768, "dropped_bad_checksum": 3, "resets_sent": 12, "flow_table_full": 0},
    sizes={"flows": 1234, "half_open": 0},
    warnings=["the clock of node2 is 70 seconds ahead"],
)
PACKETBRIDGE = PacketbridgeReport(
    version="0.2.0",
    engine="raw",
    uptime=42.0,
    generation=1,
    bridge="192.168.33.20",
    vips=[VipReport("192.168.33.10:80", 7, "192.168.33.30:8080", 5)],
    counters={"handoff_bad_tag": 4},
    sizes={"flows": 5},
)
FLOW = FlowReport("203.0.113.7", 49152, 7, "192.168.33.20", "established", 61.0, 0.25)
SIDES = [
    FlowSide("balancer", "node1", FLOW),
    FlowSide(
        "packetbridge",
        "node1",
        FlowReport(
            *("203.0.113.7", 49152, 7, "192.168.33.20", "spliced", 60.9, 0.25),
            details={"client_isn": 16909060, "seq_delta": 1000, "fin": False, "window_scale": None},
        ),
    ),
]
