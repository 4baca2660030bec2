/* What stands in front of the IP header, and which packets are for this host at all.
 *
 * The same choice as that of the taps' filters (common/net/cbpf.py): a packet for another station or of a
 * VLAN on this interface is left alone. Priority tags (VLAN 0) are none. */
#pragma once

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/types.h>

#define VLAN_ID 0x0fff

/* 14, or 0 where packets begin with the IP header (TUN, WireGuard). */
const volatile __u32 link_header_size = ETH_HLEN;
#define LINK link_header_size

/* Whether it is an IPv4 packet on no VLAN. For egress. */
static __always_inline int link_carries_ipv4(struct __sk_buff *skb)
{
    if (skb->protocol != bpf_htons(ETH_P_IP))
        return 0;
    return !skb->vlan_present || !(skb->vlan_tci & VLAN_ID);
}

/* Whether it is also addressed to this host's link address. For ingress. */
static __always_inline int link_is_ours(struct __sk_buff *skb)
{
    return skb->pkt_type == PACKET_HOST && link_carries_ipv4(skb);
}

/* Exchange the MAC addresses, if there are any. 0, or a negative error. */
static __always_inline int link_swap(struct __sk_buff *skb)
{
    __u16 macs[6], swapped[6];

    if (LINK != ETH_HLEN)
        return 0;
    if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
        return -1;
    for (int at = 0; at < 3; at++) {
        swapped[at] = macs[at + 3];
        swapped[at + 3] = macs[at];
    }
    return bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0);
}
