/* ICMP errors about packets from a VIP to a client, on their way to the backend, and such as the backend's
 * host would send about a bridged flow (packetbridge/core/icmp_passage.py and departure.py; RFC 5508 section
 * 4.2). */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "frame.h"
#include "icmp_error.h"
#include "packetbridge/intake.h"
#include "packetbridge/passage.h"

/* Words of the quoted packet. */
#define ICMP_QUOTED_WORDS 7

/* Translates the quoted packet to what the backend sent. */
static __always_inline void icmp_requote(struct icmp_error *is, const struct icmp_error *was,
                                         const struct bridge_service *service, __u32 seq_delta)
{
    *is = *was;
    is->ip.saddr = service->backend;
    is->source_port = service->backend_port;
    is->seq = bpf_htonl(bpf_ntohl(was->seq) - seq_delta);
    ip_update(&was->ip, &is->ip);
    is->check = ~sum_fold((__u16)~was->check + sum_words_diff(&was->ip, &is->ip, ICMP_QUOTED_WORDS));
}

/* Sends the error on to the local stack, as one about the backend's packet. */
static __always_inline int icmp_pass(struct __sk_buff *skb, const struct iphdr *ip,
                                     const struct icmp_error *error, const struct bridge_flow *flow,
                                     const struct bridge_service *service)
{
    struct iphdr to = *ip;
    struct icmp_error is;

    icmp_requote(&is, error, service, flow->seq_delta);
    to.tos &= ECN_MASK;
    to.daddr = service->backend;
    ip_update(ip, &to);
    if (bpf_skb_store_bytes(skb, IP_AT, &to, sizeof(to), 0) ||
        bpf_skb_store_bytes(skb, IP_AT + IP_SIZE, &is, sizeof(is), 0))
        return drop(COUNT_UNWRITTEN);
    count(COUNT_ICMP_PASSED);
    return TC_ACT_UNSPEC;
}

/* Whether the IP header's checksum is right, whatever options it has. */
static __always_inline int icmp_outer_holds(struct __sk_buff *skb, const struct iphdr *ip)
{
    __u32 sum = 0;

    return !skb_sum(skb, IP_AT, ip->ihl * 4, &sum) && sum_fold(sum) == 0xffff;
}

/* A tagged ICMP packet: an error about a service's flow is passed on, and one that concerns nobody is the
 * host's own. */
static __noinline int icmp_from_balancer(struct __sk_buff *skb, const struct iphdr *ip)
{
    struct bridge_service *service = service_of(ip->tos >> DSCP_SHIFT);
    struct icmp_error error = {};
    __u32 held = icmp_load(skb, ip, &error);
    __u32 total = bpf_ntohs(ip->tot_len);
    struct bridge_flow *flow;
    struct flow_id id = {};

    if (!held || !icmp_is_error(&error) || !icmp_quotes_tcp(&error) || error.ip.saddr == ip->daddr)
        return TC_ACT_UNSPEC;
    if (!intake_has(ip->daddr, error.source_port))
        return TC_ACT_UNSPEC;
    if (total < ip->ihl * 4 || total > skb->len - LINK)
        return drop(COUNT_TRUNCATED);
    if (!icmp_outer_holds(skb, ip))
        return drop(COUNT_BAD_IP_CHECKSUM);
    if (ip->frag_off & bpf_htons(FRAGMENT_MASK))
        return drop(COUNT_FRAGMENT);
    if (ip->ihl != IP_SIZE / 4)
        return drop(COUNT_IP_OPTIONS);
    if (held < sizeof(error) || total < IP_SIZE + sizeof(error))
        return drop(COUNT_TRUNCATED);
    if (!service || service->bridge != ip->daddr)
        return drop(COUNT_UNKNOWN_DSCP);
    if (error.ip.saddr != service->vip || error.source_port != service->vip_port)
        return drop(COUNT_ICMP_QUOTES_NO_VIP);
    id.client = error.ip.daddr;
    id.client_port = error.destination_port;
    id.vip_index = ip->tos >> DSCP_SHIFT;
    flow = bpf_map_lookup_elem(&flows, &id);
    if (!flow || flow->state == STATE_OPENING)
        return drop(COUNT_ICMP_OF_UNKNOWN_FLOW);
    return icmp_pass(skb, ip, &error, flow, service);
}

/* An ICMP packet that leaves: an error about a bridged flow would tell the client of the backend. */
static __noinline int icmp_from_backend(struct __sk_buff *skb, const struct iphdr *ip)
{
    struct icmp_error error = {};
    struct endpoint backend = {};
    struct flow_id id = {};
    __u32 *vip_index;

    if (icmp_load(skb, ip, &error) < sizeof(error) || !icmp_is_error(&error) || !icmp_quotes_tcp(&error))
        return TC_ACT_UNSPEC;
    backend.address = error.ip.daddr;
    backend.port = error.destination_port;
    vip_index = bpf_map_lookup_elem(&backends, &backend);
    if (!vip_index)
        return TC_ACT_UNSPEC;
    id.client = error.ip.saddr;
    id.client_port = error.source_port;
    id.vip_index = *vip_index;
    return bpf_map_lookup_elem(&flows, &id) ? drop(COUNT_ICMP_FROM_BACKEND) : TC_ACT_UNSPEC;
}
