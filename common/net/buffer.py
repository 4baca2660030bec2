"""The receive buffer: one packet, its IPv4 header always at `IP_AT`.

        VNET_AT           IP_AT
    ----+-----------------+---------------------------------
        | virtio_net_hdr  | IPv4 header, payload
    ----+-----------------+---------------------------------

The offsets in the virtio_net_hdr count from the IP header, as on a TUN, so that what a tap has received can
be written to a TUN as it stands. In front of it is room for the link header that a tap receives between both.
"""

from common.wire import offload

VNET_SIZE = offload.SIZE
MAX_LINK_HEADER_SIZE = 14
"""Ethernet's."""
IP_AT = VNET_SIZE + MAX_LINK_HEADER_SIZE
VNET_AT = IP_AT - VNET_SIZE
BUFFER_SIZE = IP_AT + 65536


def new_buffer() -> bytearray:
    return bytearray(BUFFER_SIZE)
