/* ICMP errors about packets from the VIP to a client go to the flow's node, as if sent by the client
 * (balancer/core/icmp_errors.py). */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balancer/arrival.h"
#include "balancer/egress.h"
#include "counters.h"
#include "frame.h"

enum icmp_type {
    ICMP_UNREACHABLE = 3,
    ICMP_TIME_EXCEEDED = 11,
    ICMP_PARAMETER_PROBLEM = 12,
};

#define FRAGMENT_OFFSET_MASK 0x1fff
/* Of TCP: ports and sequence number. */
#define ICMP_QUOTED_TCP 8

/* An ICMP error, as far as it can be relied on. */
struct icmp_error {
    __u8 type;
    __u8 code;
    __be16 check;
    __be32 rest;
    struct iphdr quoted;
    __be16 source_port;
    __be16 destination_port;
};

/* What tells whether an error is about us. */
#define ICMP_LOOK __builtin_offsetof(struct icmp_error, destination_port)

static __always_inline int is_icmp_error(__u8 type)
{
    return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER_PROBLEM;
}

/* The service that an ICMP message is about: it is an error and quotes a TCP packet of the VIP that it was
 * sent to. NULL: it is the host's. */
static __always_inline struct balancer_service *service_of_icmp(struct __sk_buff *skb, const struct iphdr *ip)
{
    struct icmp_error error = {};

    if (bpf_skb_load_bytes(skb, IP_AT + ip->ihl * 4, &error, ICMP_LOOK))
        return NULL;
    if (!is_icmp_error(error.type))
        return NULL;
    if (error.quoted.version != 4 || error.quoted.ihl != IP_SIZE / 4 || error.quoted.protocol != IPPROTO_TCP)
        return NULL;
    if (error.quoted.frag_off & bpf_htons(FRAGMENT_OFFSET_MASK) || error.quoted.saddr != ip->daddr)
        return NULL;
    return service_at(ip->daddr, error.source_port);
}

/* What is wrong with its IP header or its length: a counter, or negative. */
static __always_inline int fault_of_icmp(struct __sk_buff *skb, const struct iphdr *ip)
{
    __u32 total = bpf_ntohs(ip->tot_len), size = ip->ihl * 4;

    if (total < size || total > skb->len - LINK)
        return COUNT_DROPPED_TRUNCATED;
    if (ip->frag_off & bpf_htons(FRAGMENT_MASK))
        return COUNT_DROPPED_FRAGMENT;
    if (size != IP_SIZE)
        return COUNT_DROPPED_IP_OPTIONS;
    if (total < IP_SIZE + ICMP_LOOK - sizeof(__be16) + ICMP_QUOTED_TCP)
        return COUNT_DROPPED_TRUNCATED;
    return -1;
}

static __always_inline int send_to_node(struct __sk_buff *skb, const struct iphdr *ip,
                                       const struct balancer_service *service)
{
    struct flow_id id = {.vip_index = service->vip_index};
    struct icmp_error error = {};
    struct balancer_flow *flow;

    if (bpf_skb_load_bytes(skb, IP_AT + IP_SIZE, &error, sizeof(error)))
        return TC_ACT_SHOT;
    id.client = error.quoted.daddr;
    id.client_port = error.destination_port;
    flow = bpf_map_lookup_elem(&flows, &id);
    if (!flow) {
        count(COUNT_DROPPED_ICMP_OF_UNKNOWN_FLOW);
        return TC_ACT_SHOT;
    }
    count(COUNT_FORWARD_ICMP);
    return leave_readdressed(skb, ip, id.client, flow->node, service, bpf_ntohs(ip->tot_len));
}

/* Of an ICMP message that is no later fragment. A verdict. */
__attribute__((noinline)) int receive_icmp(struct __sk_buff *skb)
{
    struct balancer_service *service;
    struct iphdr ip;
    int fault;

    if (bpf_skb_load_bytes(skb, IP_AT, &ip, sizeof(ip)))
        return TC_ACT_UNSPEC;
    service = service_of_icmp(skb, &ip);
    if (!service)
        return TC_ACT_UNSPEC;
    fault = fault_of_icmp(skb, &ip);
    if (fault < 0)
        return send_to_node(skb, &ip, service);
    count(fault);
    return TC_ACT_SHOT;
}
