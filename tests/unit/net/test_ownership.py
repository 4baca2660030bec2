from ipaddress import IPv4Address

from common.net import intake
from common.net.interfaces import Interface, LinkType
from common.net.ownership import backend_name, drop_rules, mark_rules, table_name

QUOTED_TCP = "@th,64,8 0x45 @th,112,16 & 0x1fff == 0 @th,136,8 6"
VIP = IPv4Address("192.168.33.10")
TAPPED = [
    Interface(index, f"eth{index}", LinkType.ETHERNET, 1500, True, False, False, 0, ()) for index in (2, 5)
]


def test_balancers_rules_drop_its_intake() -> None:
    assert drop_rules(intake.of_balancer(VIP, 80), TAPPED).splitlines() == [
        "chain prerouting {",
        "type filter hook prerouting priority -500; policy accept;",
        "iif != { 2, 5 } accept",
        "ip daddr != 192.168.33.10 accept",
        "ip frag-off & 0x1fff != 0 accept",
        "tcp dport { 80 } drop",
        f"icmp type {{ 3, 11, 12 }} {QUOTED_TCP} @th,160,32 == 0xc0a8210a @th,224,16 {{ 80 }} drop",
        "}",
    ]


def test_rules_for_all_interfaces_spare_the_loopback_interface_alone() -> None:
    everywhere = drop_rules(intake.of_balancer(VIP, 80)).splitlines()
    somewhere = drop_rules(intake.of_balancer(VIP, 80), TAPPED).splitlines()
    assert everywhere[2] == "iif lo accept"
    assert [*everywhere[:2], *everywhere[3:]] == [*somewhere[:2], *somewhere[3:]]


def test_packetbridges_rules_drop_tagged_packets_only() -> None:
    rules = drop_rules(intake.of_packetbridge(VIP, [8080, 80]), TAPPED).splitlines()
    assert rules[4] == "ip dscp 0 accept"
    assert rules[6] == "tcp dport { 80, 8080 } drop"
    assert "@th,160,32 != 0xc0a8210a @th,224,16 { 80, 8080 } drop" in rules[7]


def test_rules_of_health_checks_drop_a_range_of_ports() -> None:
    checks = intake.of_health_checks(VIP, range(61000, 65096))
    rules = drop_rules(checks, TAPPED).splitlines()
    assert rules[5] == "tcp dport 61000-65095 drop"
    assert rules[6].endswith("@th,160,32 == 0xc0a8210a @th,224,16 61000-65095 drop")
    assert table_name(checks.name) == "l3dsr_health_check_source_192_168_33_10"


def test_backends_rules_mark_what_it_sends() -> None:
    assert mark_rules((VIP, 8080), 7).splitlines() == [
        "chain output {",
        "type route hook output priority 300; policy accept;",
        "ip saddr 192.168.33.10 tcp sport 8080 meta mark set 7",
        "}",
    ]


def test_tables_of_the_same_subject_have_the_same_name() -> None:
    assert table_name(intake.of_balancer(VIP, 80).name) == "l3dsr_vip_192_168_33_10_80"
    assert table_name(intake.of_balancer(VIP, 81).name) == "l3dsr_vip_192_168_33_10_81"
    assert table_name(backend_name((VIP, 80))) == "l3dsr_backend_192_168_33_10_80"
    ports = [80], [80, 81]
    names = {table_name(intake.of_packetbridge(VIP, each).name) for each in ports}
    assert names == {"l3dsr_bridge_address_192_168_33_10"}
