"""Which flow a packet that leaves the backend's address may belong to, before anything else is known of it.

Direct connections, UDP and whatever else the host does share that address. Such packets must go on their way
untouched, and no packet of a bridged flow may, however odd it is.
"""

from common.wire import icmp, ipv4, segment
from common.wire.errors import WireError
from common.wire.segment import FLOW_KEY_AT, FLOW_KEY_END, FlowKey

_USUAL = 0x45
_FRAGMENT_OFFSET = 0x1FFF


def key_of(data: bytes) -> FlowKey | None:
    """The key, backend to client, of the TCP flow that the IPv4 packet is of, or that it is an error about.

    None where it is neither. Raises WireError for TCP of which the ports are not there.
    """
    if len(data) < FLOW_KEY_END or data[0] >> 4 != 4:
        return None
    if ipv4.carries(data, ipv4.PROTOCOL_ICMP):
        return _quoted_key(data)
    if not ipv4.carries(data, ipv4.PROTOCOL_TCP):
        return None
    if int.from_bytes(data[6:8], "big") & _FRAGMENT_OFFSET:
        raise WireError("fragment")
    if data[0] == _USUAL:
        return data[FLOW_KEY_AT:FLOW_KEY_END]
    ports_at = (data[0] & 0xF) * 4
    return data[FLOW_KEY_AT : FLOW_KEY_AT + 8] + data[ports_at : ports_at + 4]


def _quoted_key(data: bytes) -> FlowKey | None:
    try:
        header = ipv4.parse_untrusted(data)
        return segment.reverse(icmp.parse_untrusted(data[header.size :]).quoted_key)
    except WireError:
        return None
