/* How packets leave: to a node, to a client, up to Python. */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balancer/maps.h"
#include "balancer_abi.h"
#include "counters.h"
#include "frame.h"

#define AF_INET 2

/* The kernel routes the packet, decrements its TTL, and says what is wrong with it. */
static __always_inline int leave_by_kernel(void)
{
    return bpf_redirect(tun_ifindex, BPF_F_INGRESS);
}

static __always_inline int leave_by(struct route *way)
{
    struct bpf_redir_neigh hop = {.nh_family = AF_INET, .ipv4_nh = way->next_hop};

    if (!way->ifindex)
        return leave_by_kernel();
    return bpf_redirect_neigh(way->ifindex, &hop, sizeof(hop), 0);
}

/* How a packet of this TTL leaves for the node; `size` is its bytes, of a superpacket those of the largest
 * that it stands for. ifindex 0: by the kernel. */
static __always_inline struct route way_to_node(__be32 node, __u32 size, __u32 node_mtu, __u8 ttl)
{
    struct route *route = bpf_map_lookup_elem(&routes, &node);
    struct route way = {};

    if (!route || !route->ifindex)
        count(COUNT_NO_ROUTE);
    else if (ttl > 1 && size <= node_mtu)
        way = *route;
    return way;
}

/* Bytes of the largest IP packet that goes over the wire for this one. */
static __always_inline __u32 size_on_wire(struct __sk_buff *skb, __u32 total, __u32 tcp_size)
{
    return skb->gso_size ? IP_SIZE + tcp_size + skb->gso_size : total;
}

/* To the node as it is, but for addresses, DSCP and TTL; `was` is its IP header, of whose checksum an
 * error stays one. The transport's checksum is the caller's: it covers the destination. */
static __always_inline int leave_readdressed(struct __sk_buff *skb, const struct iphdr *was, __be32 source,
                                             __be32 node, const struct balancer_service *service, __u32 size)
{
    struct route way = way_to_node(node, size, service->node_mtu, was->ttl);
    struct iphdr is = *was;

    is.saddr = source;
    is.daddr = node;
    is.tos = service->vip_index << 2 | (was->tos & ECN_MASK);
    count_more(COUNT_BYTES_TO_NODES, bpf_ntohs(was->tot_len));
    if (way.ifindex)
        is.ttl--;
    ip_update(was, &is);
    if (bpf_skb_store_bytes(skb, IP_AT, &is, IP_SIZE, 0)) {
        count(COUNT_DROPPED_UNWRITABLE);
        return TC_ACT_SHOT;
    }
    return leave_by(&way);
}

/* A segment of the client to its flow's node. */
static __always_inline int leave_for_node(struct __sk_buff *skb, const struct iphdr *was, __be32 node,
                                          const struct balancer_service *service, __u32 tcp_size)
{
    __u32 size = size_on_wire(skb, bpf_ntohs(was->tot_len), tcp_size);

    if (bpf_l4_csum_replace(skb, TCP_CHECK_AT, was->daddr, node, BPF_F_PSEUDO_HDR | sizeof(node))) {
        count(COUNT_DROPPED_UNWRITABLE);
        return TC_ACT_SHOT;
    }
    return leave_readdressed(skb, was, was->saddr, node, service, size);
}

/* A packet of ours to a client, by the way that the kernel would find for what enters by the TUN. While
 * the daemon is away there is none: then back by where the segment came from. */
static __always_inline int leave_for_client(struct __sk_buff *skb, const struct iphdr *ip)
{
    struct bpf_fib_lookup asked = {
        .family = AF_INET,
        .l4_protocol = IPPROTO_TCP,
        .tot_len = bpf_ntohs(ip->tot_len),
        .ifindex = tun_ifindex,
        .ipv4_src = ip->saddr,
        .ipv4_dst = ip->daddr,
    };
    long answer = bpf_fib_lookup(skb, &asked, sizeof(asked), 0);
    struct route way = {.ifindex = asked.ifindex, .next_hop = asked.ipv4_dst};

    if (answer < 0)
        return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
    if (answer != BPF_FIB_LKUP_RET_SUCCESS && answer != BPF_FIB_LKUP_RET_NO_NEIGH)
        return leave_by_kernel();
    return asked.family == AF_INET ? leave_by(&way) : leave_by_kernel();
}
